"""Damages every file of runs, bases, exports and tasks, one at a time, and sees what every command makes of it.

    python tools/corrupt.py --sample 200 --seed 1      # 200 cases, spread evenly over targets and commands
    python tools/corrupt.py --only 'run/config.yaml:*' # all cases of one file
    python tools/corrupt.py --all --out matrix.json    # every case (hours); --work DIR keeps and uses the world again

A case is TARGET/FILE:DAMAGE:COMMAND. It may be `refused` (an exit code of the table, a message, no traceback) or
`equal` (exit code 0 and the results of the undamaged folder); `DIFFERENT` (exit code 0 and other results), `TRACEBACK`
and `SLOW` are findings, and make the tool fail. Figures are left out: they are drawn of report.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from trial_world import (
    QUESTIONS,
    TASKS,
    Ended,
    call,
    make_bases,
    make_exports,
    make_runs,
    quick_environment,
    without_figures,
)

LONGEST = 60  # seconds of CPU time a case
REFUSALS = frozenset({2, 3, 4, 5, 6, 7, 8})
FINDINGS = frozenset({"DIFFERENT", "TRACEBACK", "SLOW"})
NO_VICTIMS = frozenset({".lock", ".lock.json"})
RUN_RESULTS = ("report.json", "seed_*/cells.json", "seed_*/answers/*/*", "seed_*/variants/*/cells.json")
LEARNED = (*RUN_RESULTS, "seed_*/metrics.jsonl", "seed_*/tasks/*/meta.json")


@dataclass(frozen=True)
class Command:
    """A command line in the world, `{live}` in its words.

    Attributes:
      changed: folder that it writes; empty for one that prints.
      results: patterns of files in that folder which must be those of an undamaged world.
    """

    words: tuple[str, ...]
    changed: str = ""
    results: tuple[str, ...] = ()


def _ask(run: str) -> Command:
    return Command(("ask", f"{{live}}/{run}", "--file", f"{{live}}/{QUESTIONS}", "--json"))


def _resume(run: str) -> Command:
    return Command(("run", f"{{live}}/{run}/config.yaml", "--out", f"{{live}}/{run}", "--resume"), run, LEARNED)


def _export(run: str, form: str, *more: str) -> Command:
    return Command(("export", f"{{live}}/{run}", "{live}/out", "--to", form, *more), "out", ("*", "*/*", "*/*/*"))


def _adopt(base: str, *folders: str) -> Command:
    results = ("config.yaml", "seed_*/tasks/*/meta.json")
    return Command(("adopt", f"{{live}}/{base}", *(f"{{live}}/{name}" for name in folders), "--out", "{live}/out"),
                   "out", results)  # fmt: skip


def _convert(source: str) -> Command:
    # An exported run brings no towers of CLIP; the exported base does.
    words = ("convert", f"{{live}}/{source}", "{live}/out", "--clip", "{live}/hf_base/clip")
    return Command(words, "out", ("*.json", "model/*", "*.safetensors"))


def _verify(folder: str) -> Command:
    """`equal` for it means that the damage went unnoticed."""
    return Command(("verify", f"{{live}}/{folder}"))


def _of_run(run: str) -> dict[str, Command]:
    """What reads a run."""
    return {
        "verify": _verify(run),
        "ask": _ask(run),
        "eval": Command(("eval", f"{{live}}/{run}"), run, RUN_RESULTS),
        "report": Command(("report", f"{{live}}/{run}"), run, ("report.json",)),
        "resume": _resume(run),
        "export_peft": _export(run, "peft"),
        "export_hub": _export(run, "hub"),
    }


def targets() -> dict[str, dict[str, Command]]:
    """Folders whose files are damaged, and the commands that read them."""
    base = _of_run("run") | {"export_hf": _export("run", "hf", "--task", TASKS[0]), "adopt": _adopt("base", "hub")}
    sharded = _of_run("run_sharded") | {"adopt": _adopt("sharded", "hub")}
    adapters = ("peft/birds", "peft/fish")
    alone = {form: {"verify": _verify(form)} for form in ("hub", "peft", "vllm", "hf", "hf_base")}
    return {
        "run": _of_run("run"),
        "half": {"resume": _resume("half"), "verify": _verify("half")},
        "base": base | {"verify": _verify("base")},
        "sharded": sharded | {"verify": _verify("sharded")},
        TASKS[0]: {name: command for name, command in _of_run("run").items() if name != "export_peft"},
        "hub": {"adopt": _adopt("base", "hub")} | alone["hub"],
        "peft": {"adopt": _adopt("base", *adapters)} | alone["peft"],
        "vllm": {"adopt": _adopt("base", "vllm/birds", "vllm/fish")} | alone["vllm"],
        "hf": {"convert": _convert("hf")} | alone["hf"],
        "hf_base": {"convert": _convert("hf_base")} | alone["hf_base"],
    }


# --- damages ----------------------------------------------------------------------------------------------------------


def flip_bit(content: bytes, chance: random.Random) -> bytes:
    """One bit is another."""
    place = chance.randrange(len(content))
    changed = bytearray(content)
    changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _other_character(pattern: bytes, alphabet: bytes) -> Callable[[bytes, random.Random], bytes]:
    """A damage that replaces one character of an alphabet by another one of it."""

    def damage(content: bytes, chance: random.Random) -> bytes:
        places = [match.start() for match in re.finditer(pattern, content)]
        if not places:
            return content
        place = chance.choice(places)
        others = alphabet.replace(content[place : place + 1], b"")
        changed = bytearray(content)
        changed[place] = chance.choice(others)
        return bytes(changed)

    return damage


IN_PLACE = {
    "bit": flip_bit,
    "digit": _other_character(rb"[0-9]", b"0123456789"),
    "letter": _other_character(rb"[a-z]", b"abcdefghijklmnopqrstuvwxyz"),
    "half": lambda content, chance: content[: len(content) // 2],
    "empty": lambda content, chance: b"",
}
DAMAGES = (*IN_PLACE, "deleted", "swapped")


def sibling_of(path: Path) -> Path | None:
    """The next file beside this one, of its kind where there is one."""
    beside = sorted(other for other in path.parent.iterdir() if other.is_file() and other.name not in NO_VICTIMS)
    alike = [other for other in beside if other.suffix == path.suffix]
    group = alike if len(alike) > 1 else beside
    return None if len(group) < 2 else group[(group.index(path) + 1) % len(group)]


def spoil(path: Path, damage: str, chance: random.Random) -> bool:
    """Damages a file; False where the damage changes nothing, such as a digit in a text without one."""
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
        return True
    if damage == "swapped":
        sibling = sibling_of(path)
        if sibling is None or sibling.read_bytes() == content:
            return False
        path.write_bytes(sibling.read_bytes())
        sibling.write_bytes(content)
        return True
    changed = IN_PLACE[damage](content, chance) if content else content
    path.write_bytes(changed)
    return changed != content


# --- cases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One damage to one file, met by one command."""

    target: str
    file: str
    damage: str
    command: str

    @property
    def name(self) -> str:
        """The name that --only takes."""
        return f"{self.target}/{self.file}:{self.damage}:{self.command}"


def all_cases(made: Path) -> list[Case]:
    """Every case of a world."""
    cases = []
    for target, commands in targets().items():
        files = [path for path in sorted((made / target).rglob("*")) if path.is_file() and path.name not in NO_VICTIMS]
        for path in files:
            file = path.relative_to(made / target).as_posix()
            for damage in DAMAGES:
                cases += [Case(target, file, damage, command) for command in commands]
    return cases


def sampled(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """Some of the cases, in turn one of every file and command; the many files inside a checkpoint count as one."""
    from compat_compare import is_orbax

    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        file = "checkpoint" if is_orbax(Path(case.file)) else case.file
        groups.setdefault((case.target, file, case.command), []).append(case)
    chance = random.Random(seed)
    shuffled = list(groups.values())
    chance.shuffle(shuffled)
    for group in shuffled:
        chance.shuffle(group)
    chosen: list[Case] = []
    longest = max(map(len, shuffled), default=0)
    for turn in range(longest):
        chosen += [group[turn] for group in shuffled if turn < len(group)]
    return chosen[:count]


class World:
    """The folder `live` that commands work in, and `made`, the copy that it is restored from."""

    def __init__(self, work: Path, method: str):
        self.live = work / "live"
        self.made = work / "made"
        self.expected: dict[str, tuple] = {}
        if not self.made.is_dir():
            shutil.rmtree(self.live, ignore_errors=True)
            make_bases(self.live)
            make_runs(self.live, method)
            make_exports(self.live)
            shutil.copytree(self.live, self.made)
        shutil.rmtree(self.live)
        shutil.copytree(self.made, self.live)

    def restore(self, *names: str) -> None:
        """Puts folders back as they were made; one that was not made goes."""
        for name in names:
            shutil.rmtree(self.live / name, ignore_errors=True)
            if (self.made / name).is_dir():
                shutil.copytree(self.made / name, self.live / name)

    def carry_out(self, command: Command) -> Ended:
        """How a command ends, with what it prints about paths of the world as it is."""
        return call([word.format(live=self.live) for word in command.words])

    def results(self, command: Command, ended: Ended) -> dict[str, object]:
        """What a command has made: of one that writes nothing its output."""
        if not command.changed:
            return {"output": ended.output}
        return results_in(self.live / command.changed, command.results)

    def wanted(self, key: str, command: Command) -> dict[str, object]:
        """Results of a command in an undamaged world."""
        if key not in self.expected:
            self.restore(*filter(None, [command.changed]))
            ended = self.carry_out(command)
            if ended.code != 0:
                raise SystemExit(f"{key} failed without damage: {ended.code} {ended.errors}{ended.uncaught}")
            self.expected[key] = self.results(command, ended)
        return self.expected[key]


def results_in(folder: Path, patterns: Iterable[str]) -> dict[str, object]:
    """What of every file is compared (`compat_compare.comparable`), by relative path."""
    from compat_compare import PRESENTATION, comparable, is_orbax

    results: dict[str, object] = {}
    for pattern in patterns:
        for path in folder.glob(pattern):
            relative = path.relative_to(folder)
            if not path.is_file() or is_orbax(relative) or path.suffix in PRESENTATION or path.name in NO_VICTIMS:
                continue
            try:
                results[str(relative)] = comparable(path)
            except (ValueError, KeyError, UnicodeDecodeError):
                results[str(relative)] = path.read_bytes()
    return results


def differing(wanted: dict[str, object], results: dict[str, object]) -> list[str]:
    """Names of results that are not equal."""
    return sorted(name for name in wanted.keys() | results.keys() if wanted.get(name) != results.get(name))


def judge(ended: Ended, wanted: dict[str, object], results: dict[str, object]) -> tuple[str, str]:
    """The verdict on a case, and what it rests on."""
    if "TooSlow" in ended.uncaught:
        return "SLOW", f"more than {LONGEST} s of CPU time"
    if ended.code is None or "Traceback" in ended.errors:
        return "TRACEBACK", ended.uncaught[:200] or "a traceback was printed"
    if ended.code == 0:
        names = differing(wanted, results)
        return ("DIFFERENT", ", ".join(names[:4])) if names else ("equal", "")
    # `verify` prints what it has found, as that is its result.
    message = ended.errors.strip() or ended.output.strip()
    if ended.code not in REFUSALS or not message:
        return "TRACEBACK", f"exit code {ended.code}: {ended.errors[:200]}"
    lines = [line.strip() for line in message.splitlines()]
    return "refused", f"{ended.code}: {lines[-1][:120]}"


class TooSlow(Exception):
    """A case took too long."""


def _stop_late(number: int, frame: object) -> None:
    raise TooSlow


def try_case(world: World, case: Case, seed: int) -> tuple[str, str] | None:
    """The verdict on a case; None where the damage changes nothing."""
    command = targets()[case.target][case.command]
    key = " ".join(command.words)
    wanted = world.wanted(key, command)
    folders = tuple(filter(None, {case.target, command.changed}))
    world.restore(*folders)
    chance = random.Random(f"{seed} {case.target} {case.file} {case.damage}")
    try:
        if not spoil(world.live / case.target / case.file, case.damage, chance):
            return None
        signal.signal(signal.SIGPROF, _stop_late)
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        ended = world.carry_out(command)
        signal.setitimer(signal.ITIMER_PROF, 0)
        return judge(ended, wanted, world.results(command, ended))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        world.restore(*folders)


def table(done: Sequence[dict]) -> list[str]:
    """Verdicts by target and command."""
    verdicts = ("refused", "equal", *sorted(FINDINGS))
    counts = Counter((case["target"], case["command"], case["verdict"]) for case in done)
    lines = [f"{'target':<14}{'command':<14}" + "".join(f"{verdict:>11}" for verdict in verdicts)]
    for target, command in dict.fromkeys((case["target"], case["command"]) for case in done):
        cells = "".join(f"{counts[target, command, verdict]:>11}" for verdict in verdicts)
        lines.append(f"{target:<14}{command:<14}{cells}")
    total = Counter(case["verdict"] for case in done)
    return [*lines, f"{'all':<28}" + "".join(f"{total[verdict]:>11}" for verdict in verdicts)]


def work_through(world: World, cases: Iterable[Case], seed: int, out: Path | None) -> list[dict]:
    """Tries cases and prints the findings among them; writes JSON where `out` is given."""
    done = []
    for case in cases:
        started = time.process_time()
        verdict = try_case(world, case, seed)
        if verdict is None:
            continue
        seconds = round(time.process_time() - started, 2)
        done.append(asdict(case) | {"verdict": verdict[0], "because": verdict[1], "seconds": seconds})
        if verdict[0] in FINDINGS:
            print(f"{verdict[0]}: {case.name}  ({verdict[1]})", flush=True)
        if out is not None:
            out.write_text(json.dumps({"seed": seed, "cases": done}, indent=1) + "\n")
    return done


def main(words: Sequence[str] | None = None) -> int:
    """Reads the command line; exit code 1 with findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=100, help="number of cases (100)")
    parser.add_argument("--all", action="store_true", help="every case")
    parser.add_argument("--only", nargs="+", help="cases by name, with * as in file names")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of where a file is damaged")
    parser.add_argument("--method", default="hide", help="method of the runs: hide, cmoe, hidecmoe, stacked, ...")
    parser.add_argument("--work", type=Path, help="folder to keep the world in; a temporary one if not given")
    parser.add_argument("--out", type=Path, help="file for the verdicts as JSON")
    options = parser.parse_args(words)
    quick_environment()
    # Nothing here cuts the power, and a commit waits for the disk many times.
    os.fsync = lambda handle: None
    undo = without_figures()
    with tempfile.TemporaryDirectory() as folder:
        world = World((options.work or Path(folder)).resolve(), options.method)
        cases = all_cases(world.made)
        print(f"{len(cases)} cases in all")
        if options.only:
            cases = [case for case in cases if any(fnmatchcase(case.name, pattern) for pattern in options.only)]
        elif not options.all:
            cases = sampled(cases, options.sample, options.seed)
        done = work_through(world, cases, options.seed, options.out)
    undo()
    print("\n".join(table(done)))
    return int(any(case["verdict"] in FINDINGS for case in done))


if __name__ == "__main__":
    sys.exit(main())
