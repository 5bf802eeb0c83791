"""Raises an error of the system inside every command, at a call drawn by chance, and sees how the command ends.

    python tools/plant.py --count 300 --seed 0        # 300 errors, spread over commands, doors and kinds
    python tools/plant.py --only 'add:*' --out plant.json

A case is COMMAND:DOOR:ERROR: the n-th call of a door (a function through which a command meets disk, pictures, memory
or the device) raises the error. It is `refused` where the command ends with an exit code of the table and a message,
and `equal` where it ends with 0 and the results of a call without an error, as a cache that cannot be written does.
`DIFFERENT`, `TRACEBACK` (also of a child) and `UNKNOWN` (exit code 1) are findings, and make the tool fail.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import importlib
import json
import os
import pkgutil
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from corrupt import RUN_RESULTS, Command, World, differing, targets
from trial_world import NEXT_TASK, QUESTIONS, TASKS, Ended, quick_environment, without_figures

import hidecmoe_jax

CODES = frozenset({2, 3, 4, 5, 6, 7, 8, 75, 130, 141})
FINDINGS = frozenset({"DIFFERENT", "TRACEBACK", "UNKNOWN"})


def _system(number: int) -> Callable[[], Exception]:
    return lambda: OSError(number, os.strerror(number), "/planted/file")


class JaxRuntimeError(RuntimeError):
    """Named as JAX's own, by which it is known."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "ENOSPC": _system(errno.ENOSPC),
    "EDQUOT": _system(errno.EDQUOT),
    "EFBIG": _system(errno.EFBIG),
    "EROFS": _system(errno.EROFS),
    "EACCES": _system(errno.EACCES),
    "EIO": _system(errno.EIO),
    "memory": lambda: MemoryError("Unable to allocate 3.7 GiB for an array with shape (1000, 1000000)"),
    "device": lambda: JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes: f32[16,2048]"),
    "recursion": lambda: RecursionError("maximum recursion depth exceeded"),
    "pipe": lambda: BrokenPipeError(errno.EPIPE, "Broken pipe"),
}
_DISK = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO")
# Doors by name: module, function, and the errors that can be met there.
DOORS = {
    "open": (builtins, "open", _DISK),
    "rename": (os, "replace", _DISK),
    "fsync": (os, "fsync", ("ENOSPC", "EDQUOT", "EIO")),
    "mkdir": (os, "mkdir", _DISK),
    "print": ("cli.terminal", "print_text", ("pipe",)),
    "read": ("core.regular_files", "read_regular", ("EACCES", "EIO", "memory")),
    "json": ("core.json_text", "json_value", ("recursion", "memory")),
    "decode": ("data.images", "upright_of", ("EIO", "memory")),
    "load": ("storage.arrays", "read_store", ("EIO", "memory")),
    "store": ("storage.arrays", "write_store", ("ENOSPC", "memory")),
    "weights": ("models.store", "load_model", ("memory", "EIO")),
    "tower": ("data.vision", "_tower", ("device", "memory")),
    "answer": ("evaluate.engine", "_write", ("device", "memory")),
    "step": ("train.step", "take_step", ("device", "memory")),
}


def commands() -> dict[str, Command]:
    """The commands into which errors are planted."""
    live_run = "{live}/run"
    learned = (*RUN_RESULTS, "seed_*/tasks/*/meta.json", "edits.json", "config.yaml")

    def on_run(*words: str, results: tuple[str, ...] = learned) -> Command:
        return Command((words[0], live_run, *words[1:]), "run", results)

    listed = {name: command for name, command in targets()["run"].items() if name != "resume"}
    listed |= {
        "run": Command(("run", "{live}/hide_base.yaml", "--out", "{live}/out"), "out", learned),
        "resume": targets()["half"]["resume"],
        "add": on_run("add", f"{{live}}/{NEXT_TASK}"),
        "redo": on_run("add", f"{{live}}/{TASKS[1]}", "--redo"),
        "rollback": on_run("rollback", "1"),
        "merge": on_run("merge", *TASKS, "--allowed", "100", "--commit"),
        "retire": on_run("retire", TASKS[0], "--allowed", "100", "--commit"),
        "overlap": on_run("overlap"),
        "calibrate": on_run("calibrate"),
        "inspect": Command(("inspect", live_run)),
        "score": Command(("score", "--predictions", live_run, "--resamples", "0")),
        "audit": Command(("audit", "{live}/hide_base.yaml", "--out", "{live}/out"), "out", ("audit.json",)),
        "generate": Command(("generate", live_run, "--file", f"{{live}}/{QUESTIONS}", "--out", "{live}/out/a.jsonl"),
                            "out", ("a.jsonl",)),
        "export_vllm": Command(("export", live_run, "{live}/out", "--to", "vllm"), "out", ("*", "*/*", "*/*/*")),
        "export_hf": targets()["base"]["export_hf"],
        "adopt": targets()["hub"]["adopt"],
        "convert": targets()["hf_base"]["convert"],
        "data check": Command(("data", "check", f"{{live}}/{TASKS[0]}", f"{{live}}/{TASKS[1]}")),
    }  # fmt: skip
    return listed


def _places_of(door: str) -> list[tuple[object, str]]:
    """Every name under which the function of a door is called, since modules import functions by name."""
    home, name, _ = DOORS[door]
    if not isinstance(home, str):
        return [(home, name)]
    original = getattr(importlib.import_module(f"hidecmoe_jax.{home}"), name)
    places = []
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("hidecmoe_jax") and module is not None:
            places += [(module, key) for key, value in vars(module).items() if value is original]
    return places


@contextmanager
def watching(door: str, meet: Callable[[], None]) -> Iterator[None]:
    """Calls `meet` before every call of a door inside the block; `meet` may raise."""
    undo = []
    for home, name in _places_of(door):
        original = getattr(home, name)

        def through(*words: object, _original: Callable = original, **named: object) -> object:
            # Only files that are written; what Python itself reads is none of the command's.
            mode = str(named.get("mode", words[1] if len(words) > 1 else "r"))
            if door != "open" or set("wxa+") & set(mode):
                meet()
            return _original(*words, **named)

        setattr(home, name, through)
        undo.append((home, name, original))
    try:
        yield
    finally:
        for home, name, original in undo:
            setattr(home, name, original)


@dataclass(frozen=True)
class Case:
    """An error at the n-th call of a door inside a command; n is drawn when the number of calls is known."""

    command: str
    door: str
    error: str
    draw: float

    @property
    def name(self) -> str:
        """The name that --only takes."""
        return f"{self.command}:{self.door}:{self.error}"


def all_cases(seed: int) -> list[Case]:
    """Cases in random order, in turn one of every command and door."""
    chance = random.Random(seed)
    groups = []
    for command in commands():
        for door, (_, _, errors) in DOORS.items():
            groups.append([Case(command, door, error, chance.random()) for error in errors])
    chance.shuffle(groups)
    for group in groups:
        chance.shuffle(group)
    longest = max(map(len, groups))
    return [group[turn] for turn in range(longest) for group in groups if turn < len(group)]


class Bench:
    """A world in which commands end as they would without an error, and how often they pass a door."""

    def __init__(self, work: Path):
        self.world = World(work, "hide")
        # A module that is imported while a door is watched would keep the watched function.
        for module in pkgutil.walk_packages(hidecmoe_jax.__path__, "hidecmoe_jax."):
            if not module.name.endswith("__main__"):
                with suppress(ImportError):
                    importlib.import_module(module.name)
        self.counts: dict[tuple[str, str], int] = {}

    def begin(self, command: Command) -> None:
        """Puts back what the command changes."""
        self.world.restore(*{"run", *filter(None, [command.changed])})
        if command.words[0] == "generate":
            (self.world.live / "out").mkdir(exist_ok=True)

    def wanted(self, name: str) -> dict[str, object]:
        """Results without an error; counts how often the command passes each door."""
        if name not in self.world.expected:
            command = commands()[name]
            self.begin(command)
            passed: Counter[str] = Counter()
            with ExitStack() as watched:
                for door in DOORS:
                    watched.enter_context(watching(door, partial(passed.update, [door])))
                ended = self.world.carry_out(command)
            if ended.code != 0:
                raise SystemExit(f"{name} failed without an error: {ended.code} {ended.errors}{ended.uncaught}")
            self.counts |= {(name, door): passed[door] for door in DOORS}
            self.world.expected[name] = self.world.results(command, ended)
        return self.world.expected[name]

    def try_case(self, case: Case) -> tuple[str, str] | None:
        """The verdict on a case; None where the command does not pass the door."""
        wanted = self.wanted(case.command)
        count = self.counts[case.command, case.door]
        if not count:
            return None
        at = int(case.draw * count)
        passed = []

        def meet() -> None:
            passed.append(1)
            if len(passed) - 1 == at:
                raise ERRORS[case.error]()

        command = commands()[case.command]
        self.begin(command)
        with watching(case.door, meet):
            ended = self.world.carry_out(command)
        if len(passed) <= at:
            return None
        verdict, because = judge(ended, wanted, lambda: self.world.results(command, ended))
        return verdict, f"call {at + 1} of {count}: {because}"


def judge(ended: Ended, wanted: dict[str, object], results: Callable[[], dict[str, object]]) -> tuple[str, str]:
    """The verdict on how a command ended, and what it rests on."""
    if ended.code is None or "Traceback" in ended.errors:
        return "TRACEBACK", ended.uncaught[:300] or ended.errors[-300:]
    if ended.code == 0:
        names = differing(wanted, results())
        return ("DIFFERENT", ", ".join(names[:4])) if names else ("equal", "")
    message = ended.errors.strip() or ended.output.strip()
    if ended.code not in CODES or (not message and ended.code != 141):
        return "UNKNOWN", f"exit code {ended.code}: {message[-300:]}"
    return "refused", f"{ended.code}: {message.splitlines()[0][:120] if message else ''}"


def main(words: Sequence[str] | None = None) -> int:
    """Reads the command line; exit code 1 with findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="number of errors (300)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--only", nargs="+", help="cases by name, with * as in file names")
    parser.add_argument("--work", type=Path, help="folder to keep the world in; a temporary one if not given")
    parser.add_argument("--out", type=Path, help="file for the verdicts as JSON")
    options = parser.parse_args(words)
    quick_environment()
    undo = without_figures()
    done: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench((options.work or Path(folder)).resolve())
        for case in all_cases(options.seed):
            if len(done) == options.count:
                break
            if options.only and not any(fnmatchcase(case.name, pattern) for pattern in options.only):
                continue
            verdict = bench.try_case(case)
            if verdict is None:
                continue
            done.append(asdict(case) | {"verdict": verdict[0], "because": verdict[1]})
            if verdict[0] in FINDINGS:
                print(f"{verdict[0]}: {case.name}  ({verdict[1]})", flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps({"seed": options.seed, "cases": done}, indent=1) + "\n")
    undo()
    total = Counter(case["verdict"] for case in done)
    print(f"{len(done)} errors: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(total.items())))
    return int(any(case["verdict"] in FINDINGS for case in done))


if __name__ == "__main__":
    sys.exit(main())
