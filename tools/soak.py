"""Kills commands at random moments, calls them again, and compares the end with that of a call that nobody killed.

    python tools/soak.py --seeds 1 --methods hide                # one kill of every command
    python tools/soak.py --seeds 20 --work DIR                   # by hand: hide, cmoe, hidecmoe, stacked (hours)
    python tools/soak.py --only add rollback --without rename    # must fail: renames are copies in plain writes
    python tools/soak.py --only add --power --without fsync      # must fail: what was not synced is lost

A command runs in a process of its own, which gets SIGKILL when it has used a random part of the CPU time that the whole
command takes, from the end of its imports on. After the kill a question is answered as before the command or as after
it (or refused, while there is no run yet), and a folder that a command makes is not there or whole. Then the same call
(of `run`, with --resume where there is a run) must end with exit code 0, and all results must be those of an
uninterrupted call. With --power every file that the process wrote and did not sync is empty after the kill, as on a
disk that loses its power.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corrupt import LEARNED, differing, results_in
from trial_world import (
    NEXT_TASK,
    QUESTIONS,
    TASKS,
    call,
    make_bases,
    must,
    quick_environment,
    without_figures,
    write_config,
)

METHODS = ("hide", "cmoe", "hidecmoe", "stacked")
EDITS = {"hide": "merge", "hidecmoe": "merge", "cmoe": "retire", "stacked": "retire"}
RESULTS = (*LEARNED, "edits.json", "config.yaml", "report.json")
ALL_FILES = ("*", "*/*", "*/*/*")
MARK = "imported"  # what a child prints when its imports are done


@dataclass(frozen=True)
class Scene:
    """A command that is killed.

    Attributes:
      words: its command line, `{live}` for the world.
      begins: run that is copied to `changed` before it; empty where the command makes that folder.
      changed: folder that it changes or makes.
      results: patterns of what must be equal in that folder.
      asked: run that is asked after the kill; empty for none.
    """

    words: tuple[str, ...]
    begins: str
    changed: str
    results: tuple[str, ...] = RESULTS
    asked: str = ""

    @property
    def makes(self) -> bool:
        """Whether the command makes a folder that appears when it is whole."""
        return not self.begins and self.words[0] != "run"


def scenes(method: str) -> dict[str, Scene]:
    """The commands, on runs of a method."""
    run = "{live}/work"
    drop = ("merge", run, *TASKS) if EDITS[method] == "merge" else ("retire", run, TASKS[0])
    edit = (*drop, "--allowed", "100", "--commit")

    def on_run(*words: str, begins: str = "run", results: tuple[str, ...] = RESULTS) -> Scene:
        return Scene(words, begins, "work", results, "work")

    def export(form: str, *more: str) -> Scene:
        return Scene(("export", "{live}/run", "{live}/out", "--to", form, *more), "", "out", ALL_FILES, "run")

    listed = {
        "run": Scene(("run", f"{{live}}/{method}_base.yaml", "--out", run), "", "work", RESULTS, "work"),
        "add": on_run("add", run, f"{{live}}/{NEXT_TASK}"),
        "redo": on_run("add", run, f"{{live}}/{TASKS[1]}", "--redo"),
        "rollback": on_run("rollback", run, "1"),
        EDITS[method]: on_run(*edit),
        "restore": on_run("restore", run, begins="edited"),
        "eval": on_run("eval", run, begins="unanswered"),
        "report": on_run("report", run, results=("report.json",)),
        "hub": export("hub"),
        "adopt": Scene(("adopt", "{live}/base", "{live}/hub", "--out", run), "", "work",
                       ("config.yaml", "seed_*/tasks/*/meta.json"), "work"),
        "convert": Scene(("convert", "{live}/hf_base", "{live}/out", "--clip", "{live}/hf_base/clip"), "", "out",
                         ("*.json", "*.safetensors"), ""),
        "hf-base": export("hf-base"),
    }  # fmt: skip
    if method == "hide":
        listed |= {"peft": export("peft"), "vllm": export("vllm"), "hf": export("hf", "--task", TASKS[0])}
    return listed


def make_world(live: Path, method: str) -> None:
    """Writes bases, tasks, and the runs that commands begin with."""
    make_bases(live)
    run = live / "run"
    must(["run", str(write_config(live, method)), "--out", str(run)])
    must(["export", str(run), str(live / "hub"), "--to", "hub"])
    shutil.copytree(run, live / "unanswered")
    from hidecmoe_jax.runs.folder import SeedFolder
    from hidecmoe_jax.runs.withdraw import withdraw_measurements

    # Through the package: files of a run that are just gone are damage.
    for seed in (live / "unanswered").glob("seed_*"):
        withdraw_measurements(SeedFolder(seed))
    shutil.copytree(run, live / "work")
    must([word.format(live=live) for word in scenes(method)[EDITS[method]].words])
    (live / "work").rename(live / "edited")


# --- the process that is killed ---------------------------------------------------------------------------------------


def _plain_rename(old: str | Path, new: str | Path, **rest: object) -> None:
    """A copy in plain writes in place of a rename: a reader, or a kill, sees half of it."""
    if os.path.isdir(old):
        for path in sorted(Path(old).rglob("*")):
            target = Path(new) / path.relative_to(old)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                _plain_rename(path, target)
        shutil.rmtree(old)
        return
    content = Path(old).read_bytes()
    with open(new, "wb") as file:
        for start in range(0, max(len(content), 1), max(len(content) // 8, 1)):
            file.write(content[start : start + max(len(content) // 8, 1)])
            file.flush()
            _spend(0.2)
    os.unlink(old)


def _spend(seconds: float) -> None:
    """Uses CPU time, by which the moment of the kill is chosen."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def carry_out(synced: Path, without: str, words: Sequence[str]) -> int:
    """The process that is killed: a command, whose synced files are listed in `synced` by inode."""
    from hidecmoe_jax.cli.main import main as command

    sync = os.fsync
    listed = open(synced, "a", buffering=1)  # noqa: SIM115 (open until the process ends)

    def fsync(handle: int) -> None:
        if without != "fsync":
            sync(handle)
            listed.write(f"{os.fstat(handle).st_ino}\n")

    os.fsync = fsync
    if without == "rename":
        os.replace = _plain_rename
        os.rename = _plain_rename
    without_figures()
    print(MARK, flush=True)
    return command(list(words))


def start(world: World, words: Sequence[str], synced: Path, without: str) -> subprocess.Popen:
    """Starts the process; returns when its imports are done."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(synced), without, "--", *words]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=world.live, text=True)
    while child.stdout.readline().strip() not in (MARK, ""):
        pass
    return child


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all of its threads together; infinite where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    # A process that has ended stays as a zombie until it is waited for.
    if fields[0] == "Z":
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- kills ------------------------------------------------------------------------------------------------------------


class World:
    """`live`, in which commands work, and what uninterrupted ones end with."""

    def __init__(self, work: Path, method: str):
        self.live = work / method
        if not (self.live / "edited").is_dir():
            shutil.rmtree(self.live, ignore_errors=True)
            make_world(self.live, method)

    def begin(self, scene: Scene) -> None:
        """Puts the folder of a scene back to where its command begins."""
        shutil.rmtree(self.live / scene.changed, ignore_errors=True)
        # What a killed command leaves beside the folder that it makes.
        for path in self.live.glob(f".{scene.changed}*"):
            shutil.rmtree(path, ignore_errors=True)
        if scene.begins:
            shutil.copytree(self.live / scene.begins, self.live / scene.changed)

    def words(self, scene: Scene) -> list[str]:
        """The command line, of `run` with --resume where it has begun."""
        words = [word.format(live=self.live) for word in scene.words]
        has_run = (self.live / scene.changed / "run.json").is_file()
        return [*words, "--resume"] if words[0] == "run" and has_run else words

    def answers(self, run: str) -> str:
        """What a run answers; the exit code where it refuses."""
        if not run:
            return ""
        ended = call(["ask", str(self.live / run), "--file", str(self.live / QUESTIONS), "--json"])
        return ended.output if ended.code == 0 else f"exit {ended.code} {ended.uncaught}"

    def results(self, scene: Scene) -> dict[str, object]:
        """What must be equal."""
        return results_in(self.live / scene.changed, scene.results)


@dataclass(frozen=True)
class Reference:
    """An uninterrupted call: its CPU time up to the end of its imports and to its end, answers before and after it."""

    imports: float
    seconds: float
    before: str
    after: str
    results: dict[str, object]


def reference_of(world: World, scene: Scene, synced: Path) -> Reference:
    """Carries a command out without a kill.

    Raises:
      SystemExit: it failed.
    """
    world.begin(scene)
    before = world.answers(scene.asked)
    child = start(world, world.words(scene), synced, "nothing")
    imports = cpu_seconds(child.pid)
    seconds = imports
    while child.poll() is None:
        now = cpu_seconds(child.pid)
        seconds = seconds if now == float("inf") else now
        time.sleep(0.1)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(scene.words)}: exit {child.returncode} without a kill")
    return Reference(imports, seconds, before, world.answers(scene.asked), world.results(scene))


def kill(world: World, scene: Scene, at: float, synced: Path, without: str) -> bool:
    """Starts a command and kills it when it has used `at` seconds of CPU time; False where it ended before."""
    child = start(world, world.words(scene), synced, without)
    while child.poll() is None and cpu_seconds(child.pid) < at:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


def lose_unsynced(folder: Path, synced: Path, since: float) -> int:
    """Empties every file below a folder that was written since then and never synced; returns their number."""
    inodes = set(synced.read_text().split()) if synced.is_file() else set()
    count = 0
    for path in folder.rglob("*"):
        if not path.is_file() or path == synced:
            continue
        status = path.stat()
        if status.st_mtime >= since and str(status.st_ino) not in inodes:
            path.write_bytes(b"")
            count += 1
    return count


def judge(world: World, scene: Scene, wanted: Reference, killed: bool) -> str:
    """What is wrong after a kill, the same call and its end; empty where nothing is."""
    is_there = (world.live / scene.changed).exists()
    if scene.begins:
        answers = world.answers(scene.asked)
        if answers not in (wanted.before, wanted.after):
            return f"after the kill the answers are neither those before nor those after: {answers[:80]}"
    if scene.makes and is_there and differing(wanted.results, world.results(scene)):
        return f"after the kill {scene.changed} is there and not whole"
    # What a command has made whole, the same call refuses to make again; and where a killed call had done all of its
    # work and signed it off, the same call is a second one, which `restore` refuses.
    is_over = (
        not differing(wanted.results, world.results(scene))
        and not (world.live / scene.changed / "journal.json").exists()
    )
    if killed and not (scene.makes and is_there):
        again = call(world.words(scene))
        if again.code != 0 and not is_over:
            return f"the same call ended with {again.code}: {again.uncaught or again.errors.strip()[-160:]}"
    names = differing(wanted.results, world.results(scene))
    return f"the end differs: {', '.join(names[:4])}" if names else ""


def main(words: Sequence[str] | None = None) -> int:
    """Reads the command line; exit code 1 where a kill did harm."""
    arguments = list(sys.argv[1:] if words is None else words)
    quick_environment()
    if arguments[:1] == ["--child"]:
        return carry_out(Path(arguments[1]), arguments[2], arguments[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="kills of every command")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--only", nargs="+", help="commands: run, add, redo, rollback, restore, eval, report, hub, ...")
    parser.add_argument("--without", choices=["rename", "fsync"], default="nothing", help="must then fail")
    parser.add_argument("--power", action="store_true", help="what was not synced is lost")
    parser.add_argument("--work", type=Path, help="folder to keep the worlds in")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args(arguments)
    undo = without_figures()
    done = []
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)).resolve()
        for method in options.methods:
            done += soak(World(work, method), method, options)
            if options.out is not None:
                options.out.write_text(json.dumps(done, indent=1) + "\n")
    undo()
    harmed = [one for one in done if one["wrong"]]
    struck = sum(one["killed"] for one in done)
    print(f"{len(done)} calls, {struck} killed, {len(harmed)} with harm")
    return int(bool(harmed))


def soak(world: World, method: str, options: argparse.Namespace) -> list[dict]:
    """Kills the commands of a method once for every seed."""
    done = []
    synced = world.live / "synced.txt"
    for name, scene in scenes(method).items():
        if options.only and name not in options.only:
            continue
        wanted = reference_of(world, scene, synced)
        for seed in range(options.first, options.first + options.seeds):
            chance = random.Random(f"{method} {name} {seed}")
            at = wanted.imports + chance.random() * (wanted.seconds - wanted.imports)
            world.begin(scene)
            synced.unlink(missing_ok=True)
            since = time.time()
            killed = kill(world, scene, at, synced, options.without)
            if options.power and killed:
                lose_unsynced(world.live, synced, since)
            wrong = judge(world, scene, wanted, killed)
            done.append({"method": method, "command": name, "seed": seed, "killed": killed, "wrong": wrong})
            print(
                f"{method:<9} {name:<9} seed {seed}  {'killed' if killed else 'ended':<6}  {wrong or 'ok'}", flush=True
            )
    return done


if __name__ == "__main__":
    sys.exit(main())
