"""Compatibility proof between two checkouts: both use run folders that the old one made, and every file is compared.

    python tools/compat_check.py OLD NEW                  # the four main methods; exit code 1 if anything differs
    python tools/compat_check.py OLD NEW --methods all    # every method; or names: --methods hide stacked
    python tools/compat_check.py OLD NEW --work DIR       # keep DIR; the next call redoes only the side of NEW

OLD makes run folders of a tiny random base (`tests/tiny.py` of that checkout) for every method, in these states:

    finished     two tasks learned, evaluated and reported
    mid_stage    stopped after a checkpoint within a training stage of the third task
    stopped      stopped between two stages of the third task, or, where one stage trains, just before its commit
    edited       finished, then one merge or retire committed

Then each checkout, in a process of its own (`PYTHONPATH`), carries out the same steps on copies at the same paths
(`compat_steps.py`), and the files that result are compared (`compat_compare.py` lists how).

The result of a step is `same`, `DIFFERS`, `NEW FAILS` (OLD succeeded), `old cannot` (OLD failed and NEW did not) or
`both refuse` (equal exit codes); only `DIFFERS` and `NEW FAILS`, or another exit code of a failure, make the tool fail.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from compat_compare import compare
from compat_steps import (
    BEFORE_COMMIT,
    EDITS,
    MAIN_METHODS,
    METHODS,
    MID_STAGE,
    STEPS,
    STOPPED,
    Step,
    results_file,
    step_of,
    work_through,
    write_configs,
    write_plan,
)

FAILURES = frozenset({"DIFFERS", "NEW FAILS"})
# Exit status of a process that a crash point of storage/crash_points.py ended.
CRASH_STATUS = 137


def start(checkout: Path, work: Path, words: list[str], *, crash_at: str = "") -> int:
    """Runs this file with the package (and the tests' helpers) of `checkout`; returns its exit code."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(checkout), str(checkout / "tests")])
    environment["JAX_PLATFORMS"] = "cpu"
    # One cache for both sides: its keys are the programs themselves, so an equal program is compiled once.
    environment["JAX_COMPILATION_CACHE_DIR"] = str(work / "compiled")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    if crash_at:
        environment["HIDECMOE_CRASH_AT"] = crash_at
    command = [sys.executable, str(Path(__file__).resolve()), "--world", str(work / "world"), *words]
    return subprocess.run(command, env=environment, cwd=work, check=False).returncode


def run_steps(checkout: Path, work: Path, name: str, steps: list[Step]) -> dict[str, dict]:
    """Results of the steps, by name; `name` is that of the plan's file."""
    plan = work / f"{name}.json"
    results = results_file(plan)
    results.unlink(missing_ok=True)
    write_plan(plan, steps)
    code = start(checkout, work, ["--worker", str(plan)])
    done = json.loads(results.read_text()) if results.is_file() else {}
    if code != 0:
        # The step that ended the process, and those after it, have no result.
        for step in steps:
            done.setdefault(step.name, {"code": f"the process ended with {code}", "seconds": 0})
    return done


def crash(checkout: Path, work: Path, name: str, step: Step, point: str) -> None:
    """Carries out a step that ends at a crash point; raises SystemExit if the process ends in another way."""
    plan = work / f"{name}.json"
    write_plan(plan, [step])
    code = start(checkout, work, ["--worker", str(plan)], crash_at=point)
    if code != CRASH_STATUS:
        raise SystemExit(f"{name}: the process was to stop at {point}, and ended with {code}")


def make_runs(old: Path, work: Path, methods: list[str]) -> None:
    """Makes the run folders in all states with the old checkout, below `work/made`."""
    world = work / "world"
    made = work / "made"
    if start(old, work, ["--methods", *methods]) != 0:
        raise SystemExit("the old checkout could not make the base and the tasks")
    steps = []
    for method in methods:
        finished = made / method / "finished"
        steps.append(step_of(f"make {method}", "make", method, world, finished))
        if method in EDITS:
            edited = made / method / "edited"
            steps.append(step_of(f"edit {method}", "edit", method, world, edited, finished / "run"))
    results = run_steps(old, work, "making", steps)
    failed = [name for name, result in results.items() if result["code"] != 0]
    if failed:
        raise SystemExit(f"the old checkout could not make: {', '.join(failed)} (see stdout.txt below {made})")
    for method in methods:
        if method == "joint":  # it learns no task later, so there is nothing to stop
            continue
        points = {"mid_stage": MID_STAGE, "stopped": STOPPED.get(method, BEFORE_COMMIT)}
        source = made / method / "finished" / "run"
        for state, point in points.items():
            step = step_of(f"{state} {method}", "add", method, world, made / method / state, source)
            crash(old, work, f"crash_{method}_{state}", step, point)


def plan_of(work: Path, methods: list[str]) -> list[Step]:
    """The steps that both checkouts carry out, on copies below `work/live`."""
    plan = []
    for method in methods:
        for state, actions in STEPS.items():
            source = work / "made" / method / state / "run"
            if not source.is_dir():
                continue
            for action in actions:
                if action == "edit" and method not in EDITS:
                    continue
                place = work / "live" / method / state / action
                plan.append(step_of(f"{method} {state} {action}", action, method, work / "world", place, source))
    return plan


def run_side(checkout: Path, work: Path, side: str, methods: list[str]) -> dict[str, dict]:
    """Carries out the plan with one checkout and moves the results to `work/<side>`."""
    # Both sides work at the same paths, because paths are written into files.
    shutil.rmtree(work / "live", ignore_errors=True)
    shutil.rmtree(work / side, ignore_errors=True)
    results = run_steps(checkout, work, f"side_{side}", plan_of(work, methods))
    (work / "live").rename(work / side)
    return results


def verdict(old_code: int | str, new_code: int | str, differences: list[str]) -> str:
    """The result of a step from both exit codes and the differences of its files."""
    if old_code == 0 and new_code != 0:
        return "NEW FAILS"
    if old_code != 0 and new_code == 0:
        return "old cannot"
    # Texts of errors that no command reports may be worded anew; exit codes may not change.
    other_code = isinstance(old_code, int) and old_code != new_code
    if differences or other_code:
        return "DIFFERS"
    return "same" if old_code == 0 else "both refuse"


def stamp_of(checkout: Path, methods: list[str]) -> str:
    """SHA-256 of a checkout's package and of what this tool does with it."""
    settings = (methods, METHODS, EDITS, STOPPED, MID_STAGE, BEFORE_COMMIT)
    digest = hashlib.sha256(repr(settings).encode())
    modules = sorted((checkout / "hidecmoe_jax").rglob("*.py"))
    for path in [*modules, checkout / "tests" / "tiny.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def old_results(old: Path, work: Path, methods: list[str]) -> dict[str, dict]:
    """Results of the old checkout's steps; those of an earlier call with the same checkout are used again."""
    stamp_file = work / "old_side.json"
    stamp = stamp_of(old, methods)
    known = json.loads(stamp_file.read_text()) if stamp_file.is_file() else {}
    # An interrupted side lacks results, and so does one that was made for fewer steps.
    results = known.get("results", {})
    is_complete = all(step.name in results for step in plan_of(work, methods))
    if known.get("stamp") == stamp and is_complete:
        return results
    print("making run folders with the old checkout")
    for name in ("world", "made"):
        shutil.rmtree(work / name, ignore_errors=True)
    make_runs(old, work, methods)
    print("the old checkout uses them")
    results = run_side(old, work, "old", methods)
    stamp_file.write_text(json.dumps({"stamp": stamp, "results": results}, indent=1))
    return results


def check(old: Path, new: Path, work: Path, methods: list[str]) -> int:
    """Prints the table; returns the number of failures."""
    before = old_results(old, work, methods)
    print("the new checkout uses them")
    after = run_side(new, work, "new", methods)
    failures = 0
    print(f"\n{'method':<18}{'state':<11}{'step':<14}{'files':>6}  result")
    for step in plan_of(work, methods):
        relative = Path(step.place).relative_to(work / "live")
        method, state, action = relative.parts
        old_code = before[step.name]["code"]
        new_code = after[step.name]["code"]
        comparison = compare(work / "old" / relative, work / "new" / relative)
        result = verdict(old_code, new_code, comparison.differences)
        note = f"  (presentation: {', '.join(comparison.presentation)})" if comparison.presentation else ""
        print(f"{method:<18}{state:<11}{action:<14}{comparison.count:>6}  {result}{note}")
        if old_code != 0 or new_code != 0:
            print(f"    old: exit {old_code}; new: exit {new_code}")
        if result == "DIFFERS":
            for line in comparison.differences:
                print(f"    {line}")
        failures += result in FAILURES
    print(f"\n{failures} steps differ" if failures else "\nno difference")
    return failures


def main() -> int:
    """Reads the command line; also the entry of the processes that this tool starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, nargs="?", help="checkout that makes the run folders")
    parser.add_argument("new", type=Path, nargs="?", help="checkout that is checked")
    parser.add_argument(
        "--methods", nargs="+", choices=["all", *METHODS], default=MAIN_METHODS, help="; ".join(MAIN_METHODS)
    )
    parser.add_argument("--work", type=Path, help="folder to keep; a temporary one, if not given")
    parser.add_argument("--world", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    methods = list(METHODS) if "all" in options.methods else options.methods
    if options.worker:
        work_through(options.worker, options.world)
        return 0
    if options.world:
        write_configs(options.world, methods)
        return 0
    if options.new is None:
        parser.error("give two checkouts: OLD NEW")
    old = options.old.resolve()
    new = options.new.resolve()
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
        return int(check(old, new, options.work.resolve(), methods) > 0)
    with tempfile.TemporaryDirectory() as folder:
        return int(check(old, new, Path(folder).resolve(), methods) > 0)


if __name__ == "__main__":
    sys.exit(main())
