"""Compatibility proof between two checkouts: both use run folders that the old one made, and every file is compared.

    python tools/compat_check.py OLD NEW                  # the four main methods; exit code 1 if anything differs
    python tools/compat_check.py OLD NEW --methods all    # every method; or names: --methods hide stacked
    python tools/compat_check.py OLD NEW --work DIR       # keep DIR; the next call redoes only the side of NEW

OLD makes run folders of a tiny random base (`tests/tiny.py` of that checkout) for every method, in these states:

    finished     two tasks learned, evaluated and reported
    mid_stage    stopped after a checkpoint within a training stage of the third task
    stopped      stopped between two stages of the third task, or, where one stage trains, just before its commit
    edited       finished, then one merge or retire committed

Then each checkout, in a process of its own (`PYTHONPATH`), carries out the same steps on copies at the same paths. The
files that result are compared:

    *.json, *.jsonl          after replacing the values of VOLATILE_KEYS; order of keys counts
    checkpoints              by `meta.json`, which holds dtype, shape and SHA-256 of every array; Orbax' own files have
                             random names, and each side has verified them against that list after writing
    *.safetensors            header and tensors; the order of the header's metadata is random
    MANIFEST.json            without entries of files that are themselves compared in another way than byte by byte
    *.html, *.png, *.md      for presence; a difference in content is counted as "presentation" and is no failure
    everything else          byte by byte

The result of a step is `same`, `DIFFERS`, `NEW FAILS` (OLD succeeded), `old cannot` (OLD failed and NEW did not) or
`both refuse` (equal exit codes); only `DIFFERS` and `NEW FAILS`, or another exit code of a failure, make the tool fail.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Clocks, and what describes the machine and not the result. A dictionary below such a key keeps its keys.
VOLATILE_KEYS = frozenset({"seconds", "stages", "versions", "python", "devices", "date", "started", "hidecmoe_jax"})
# Size on disk of what Orbax wrote: compressed file names and all, another one for the same arrays.
VOLATILE_KEYS |= {"archived_bytes"}
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
PRESENTATION = frozenset({".html", ".png", ".md"})
NOT_COMPARED = frozenset({".lock", "stdout.txt"})
# Files and folders that Orbax writes into a checkpoint; their names or contents are random.
ORBAX_NAMES = frozenset({"d", "ocdbt.process_0", "manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA", "_sharding"})
ORBAX_NAMES |= {"commit_success.txt", "orbax.checkpoint", "array_metadatas"}
FAILURES = frozenset({"DIFFERS", "NEW FAILS"})
CRASH_STATUS = 137

MIXTURE = {
    "kind": "mixture",
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "sites": ["ffn"]},
    "probe": {"share": 0.75, "measured": 0.4, "steps": 2},
    "gate": {"kind": "locator", "by": {"kind": "vae", "hidden": 8, "latent": 2, "epochs": 2}, "kept_apart": 0.25},
}
MAIN_METHODS = ["hide", "cmoe", "hidecmoe", "sequential"]
METHODS = {
    "hide": {"kind": "routed"},
    "cmoe": MIXTURE,
    "hidecmoe": {
        "kind": "routed",
        "expand": "all",
        "gate": {"kind": "locator", "by": {"kind": "shared_gaussian", "directions": 2}, "kept_apart": 0.25},
        "train_projector": False,
    },
    "sequential": {"kind": "routed", "growth": "shared"},
    "joint": {"kind": "routed", "growth": "shared", "union": True},
    "stacked": {
        "kind": "stacked",
        "below": {"layers": 2, "lora": {"rank": 2, "alpha": 4, "dropout": 0.1}},
        "above": {key: value for key, value in MIXTURE.items() if key != "kind"},
    },
    "moelora": {"kind": "moelora", "lora": {"rank": 2, "alpha": 4, "dropout": 0.1}, "experts": 3},
    "chosen_by_probe": {"kind": "routed", "expand": {"layers": 1, "by": "probe", "share": 0.75, "steps": 2}},
}
# Crash points of storage/crash_points.py. Eight steps a task with a checkpoint every two, so step 3 is saved within
# the last training stage; a mixture also saves its learner after the stages 0 (probe) and 1 (count).
MID_STAGE = "after_progress_save:3"
STOPPED = {"cmoe": "after_progress_save:1", "stacked": "after_progress_save:1"}
BEFORE_COMMIT = "before_commit:trees"
EDITS = {
    "hide": ["merge", "birds", "fish"],
    "hidecmoe": ["merge", "birds", "fish", "--mode", "linear"],
    "cmoe": ["retire", "birds"],
    "stacked": ["merge", "birds", "fish"],
    "chosen_by_probe": ["retire", "birds"],
}


def write_configs(world: Path, methods: list[str]) -> None:
    """Writes a base, three tasks and one config a method into `world`; needs tests/tiny.py of the old checkout."""
    import tiny

    base = tiny.write_base(world / "base")
    folders = tiny.write_stream(world)
    for name in methods:
        method = METHODS[name]
        if "lora" not in method and method["kind"] != "stacked":
            method = method | {"lora": {"rank": 2, "dropout": 0.1}}
        config = {
            "method": method | {"name": name},
            "base": {"path": str(base)},
            "stream": {"pocket": None, "tasks": [{"folder": str(folder)} for folder in folders[:2]]},
            "tune": {"epochs": 2, "batch": 2, "bucket": 32, "max_length": 64, "rate": 0.01, "save_every": 2},
            "evaluate": {"writing": {"batch": 4, "max_new_tokens": 3, "max_length": 64}},
            "template": tiny.TEMPLATE,
            "capacity": 4,
        }
        (world / f"{name}.yaml").write_text(json.dumps(config, indent=1))  # YAML is a superset of JSON


def command_for(step: str, method: str, world: Path, place: Path) -> list[str]:
    """Words of the command line of a step; `place` holds the run folder `run` and takes exports as `out`."""
    run = str(place / "run")
    commands = {
        "make": ["run", str(world / f"{method}.yaml"), "--out", run],
        "report": ["report", run],
        "eval": ["eval", run],
        "add": ["add", run, str(world / "trees")],
        "overlap": ["overlap", run],
        "rollback": ["rollback", run, "1"],
        "restore": ["restore", run],
        "resume": ["run", str(place / "run" / "config.yaml"), "--out", run, "--resume"],
        "export_peft": ["export", run, str(place / "out"), "--to", "peft"],
        "export_hub": ["export", run, str(place / "out"), "--to", "hub"],
    }
    if step == "edit":
        verb, *words = EDITS[method]
        return [verb, run, *words, "--allowed", "100", "--commit"]
    return commands[step]


STEPS = {
    "finished": ["report", "eval", "ask", "add", "resume", "rollback", "overlap", "edit", "export_peft", "export_hub"],
    "mid_stage": ["resume"],
    "stopped": ["resume"],
    "edited": ["report", "eval", "ask", "add", "restore", "export_hub"],
}


# --- in the process of a checkout -------------------------------------------------------------------------------------


def carry_out(words: list[str]) -> int | str:
    """Exit code of a command line, or the last line of an error that the command line does not report."""
    import traceback

    from hidecmoe_jax.cli.main import main

    try:
        return main(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def ask(run: Path, world: Path, target: Path) -> int | str:
    """Asks a run about two pictures of every task and writes texts and task weights as JSON."""
    import traceback

    import hidecmoe_jax

    pictures = [world / task / "images" / f"{number}.png" for task in ("birds", "fish") for number in (8, 9)]
    try:
        assistant = hidecmoe_jax.load(run)
        replies = [assistant.answer([picture], "What is shown in picture 8?") for picture in pictures]
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    facts = [{"text": reply.text, "weights": reply.weights} for reply in replies]
    target.write_text(json.dumps(facts, indent=1))
    return 0


def worker(plan: Path) -> None:
    """Carries out the steps that `plan` (JSON) lists, each on a copy, and writes their results beside it."""
    import contextlib

    steps = json.loads(plan.read_text())
    results = {}
    for step in steps:
        place = Path(step["place"])
        place.mkdir(parents=True, exist_ok=True)
        if step["source"]:
            shutil.copytree(step["source"], place / "run", symlinks=True)
        if step["step"] == "eval":
            # Without its answers a run is evaluated anew; with them nothing would be computed.
            for seed in (place / "run").glob("seed_*"):
                for name in ("answers", "variants"):
                    shutil.rmtree(seed / name, ignore_errors=True)
                (seed / "cells.json").unlink(missing_ok=True)
        started = time.monotonic()
        with open(place / "stdout.txt", "w", encoding="utf-8") as log:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                if step["step"] == "ask":
                    code = ask(place / "run", Path(step["world"]), place / "replies.json")
                else:
                    code = carry_out(step["words"])
        results[step["name"]] = {"code": code, "seconds": round(time.monotonic() - started, 1)}
        print(f"    {step['name']:<36} {results[step['name']]['seconds']:6.1f} s  exit {code}", flush=True)
        # After every step, because a step may end the process (a crash point).
        plan.with_suffix(".results.json").write_text(json.dumps(results, indent=1))


# --- in the process of the tool ---------------------------------------------------------------------------------------


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
    command = [sys.executable, str(Path(__file__).resolve()), *words]
    return subprocess.run(command, env=environment, cwd=work, check=False).returncode


def run_steps(checkout: Path, work: Path, name: str, steps: list[dict], *, crash_at: str = "") -> dict:
    """Results of the steps, by name; `name` is that of the plan's file."""
    plan = work / f"{name}.json"
    results = plan.with_suffix(".results.json")
    results.unlink(missing_ok=True)
    plan.write_text(json.dumps(steps, indent=1))
    code = start(checkout, work, ["--worker", str(plan)], crash_at=crash_at)
    if crash_at and code != CRASH_STATUS:
        raise SystemExit(f"{name}: the process was to stop at {crash_at}, and ended with {code}")
    if crash_at:
        return {}
    done = json.loads(results.read_text()) if results.is_file() else {}
    if code != 0:
        missing = [step["name"] for step in steps if step["name"] not in done]
        done |= {step: {"code": f"the process ended with {code}", "seconds": 0} for step in missing}
    return done


def make_runs(old: Path, work: Path, methods: list[str]) -> None:
    """Lets the old checkout make the run folders in all states, below `work/made`."""
    world = work / "world"
    made = work / "made"
    if start(old, work, ["--world", str(world), "--methods", *methods]) != 0:
        raise SystemExit("the old checkout could not make the base and the tasks")
    steps = []
    for method in methods:
        place = made / method / "finished"
        words = command_for("make", method, world, place)
        steps.append({"name": f"make {method}", "step": "make", "place": str(place), "source": None, "words": words})
        if method in EDITS:
            edited = made / method / "edited"
            words = command_for("edit", method, world, edited)
            step = {"name": f"edit {method}", "step": "edit", "place": str(edited), "words": words}
            steps.append(step | {"source": str(place / "run")})
    results = run_steps(old, work, "making", steps)
    failed = [name for name, result in results.items() if result["code"] != 0]
    if failed:
        raise SystemExit(f"the old checkout could not make: {', '.join(failed)} (see stdout.txt below {made})")
    for method in methods:
        if method == "joint":  # it learns no task later, so there is nothing to stop
            continue
        for state, point in (("mid_stage", MID_STAGE), ("stopped", STOPPED.get(method, BEFORE_COMMIT))):
            place = made / method / state
            words = command_for("add", method, world, place)
            step = {"name": f"{state} {method}", "step": "add", "place": str(place), "words": words}
            step |= {"source": str(made / method / "finished" / "run")}
            run_steps(old, work, f"crash_{method}_{state}", [step], crash_at=point)


def plan_of(work: Path, methods: list[str]) -> list[dict]:
    """The steps that both checkouts carry out, on copies below `work/live`."""
    plan = []
    for method in methods:
        for state, steps in STEPS.items():
            source = work / "made" / method / state / "run"
            if not source.is_dir():
                continue
            for step in steps:
                if step == "edit" and method not in EDITS:
                    continue
                place = work / "live" / method / state / step
                words = [] if step == "ask" else command_for(step, method, work / "world", place)
                facts = {"name": f"{method} {state} {step}", "step": step, "place": str(place), "words": words}
                plan.append(facts | {"source": str(source), "world": str(work / "world")})
    return plan


def run_side(checkout: Path, work: Path, side: str, methods: list[str]) -> dict:
    """Carries out the plan with one checkout and moves the results to `work/<side>`."""
    shutil.rmtree(work / "live", ignore_errors=True)
    shutil.rmtree(work / side, ignore_errors=True)
    results = run_steps(checkout, work, f"side_{side}", plan_of(work, methods))
    (work / "live").rename(work / side)
    return results


# --- comparing --------------------------------------------------------------------------------------------------------


def steady(value: object) -> object:
    """JSON without the values of VOLATILE_KEYS and without dates."""
    if isinstance(value, str) and DATE.match(value):
        return "a date"
    if isinstance(value, list):
        return [steady(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: blank(item) if key in VOLATILE_KEYS else steady(item) for key, item in value.items()}


def blank(value: object) -> object:
    """A placeholder that keeps the keys of dictionaries, also of those in lists."""
    if isinstance(value, dict):
        return {key: blank(item) for key, item in value.items()}
    return "..."


def is_orbax(relative: Path) -> bool:
    """Whether a file is one that Orbax writes into a checkpoint."""
    return any(part in ORBAX_NAMES for part in relative.parts)


def comparable(path: Path) -> object:
    """What of a file is compared: bytes, or JSON without volatile values."""
    if path.name == "MANIFEST.json":
        manifest = json.loads(path.read_text())
        files = {name: entry for name, entry in manifest["files"].items() if compared_by_bytes(Path(name))}
        return {"format": manifest["format"], "files": files}
    if path.suffix == ".json":
        return json.dumps(steady(json.loads(path.read_text())))
    if path.suffix == ".jsonl":
        return [json.dumps(steady(json.loads(line))) for line in path.read_text().splitlines()]
    if path.suffix == ".safetensors":
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        tensors = hashlib.sha256(content[8 + length :]).hexdigest()
        return {"header": steady(header), "tensors": tensors}
    return path.read_bytes()


def compared_by_bytes(relative: Path) -> bool:
    """Whether a file's bytes as they are must be equal."""
    return not is_orbax(relative) and relative.suffix not in PRESENTATION | {".json", ".jsonl", ".safetensors"}


def files_of(folder: Path) -> dict[str, Path]:
    """Files and empty folders that are compared, by relative path."""
    listed = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        empty = path.is_dir() and not any(path.iterdir())
        if (path.is_file() or empty) and not is_orbax(relative) and path.name not in NOT_COMPARED:
            listed[str(relative)] = path
    return listed


def first_difference(old: object, new: object, path: str = "") -> str:
    """Where two JSON values differ first, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        if list(old) != list(new):
            lost = [key for key in old if key not in new]
            extra = [key for key in new if key not in old]
            return f"{path or 'top'}: keys lost {lost}, new {extra}" if lost or extra else f"{path}: order of keys"
        for key, value in old.items():
            if value != new[key]:
                return first_difference(value, new[key], f"{path}.{key}")
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{path}: {len(old)} entries, then {len(new)}"
        for number, value in enumerate(old):
            if value != new[number]:
                return first_difference(value, new[number], f"{path}[{number}]")
    return f"{path}: {str(old)[:60]!r}, then {str(new)[:60]!r}"


def explain(name: str, old: object, new: object) -> str:
    """One line about a file that differs."""
    if isinstance(old, str) and isinstance(new, str):
        return f"{name}{first_difference(json.loads(old), json.loads(new))}"
    if isinstance(old, list):
        for number, (before, after) in enumerate(zip(old, new, strict=False)):
            if before != after:
                return f"{name}:{number + 1}{first_difference(json.loads(before), json.loads(after))}"
        return f"{name}: {len(old)} lines, then {len(new)}"
    if isinstance(old, dict):
        return f"{name}{first_difference(old, new)}"
    return f"{name}: {len(old)} bytes, then {len(new)}, not equal"


def compare(old: Path, new: Path) -> tuple[list[str], list[str], int]:
    """Compares the folders of a step; returns (differences, presentation differences, files compared)."""
    before = files_of(old)
    after = files_of(new)
    differences = [f"{name} is missing" for name in before if name not in after]
    differences += [f"{name} is new" for name in after if name not in before]
    presentation = []
    for name in before:
        if name not in after or before[name].is_dir():
            continue
        if before[name].suffix in PRESENTATION:
            if before[name].read_bytes() != after[name].read_bytes():
                presentation.append(name)
            continue
        one = comparable(before[name])
        other = comparable(after[name])
        if one != other:
            differences.append(explain(name, one, other))
    return differences, presentation, len(before)


def verdict(old: dict, new: dict, differences: list[str]) -> str:
    """The result of a step from both exit codes and the differences of its files."""
    if old["code"] == 0 and new["code"] != 0:
        return "NEW FAILS"
    if old["code"] != 0 and new["code"] == 0:
        return "old cannot"
    if differences or (isinstance(old["code"], int) and old["code"] != new["code"]):
        return "DIFFERS"
    return "same" if old["code"] == 0 else "both refuse"


def stamp_of(checkout: Path, methods: list[str]) -> str:
    """A digest of a checkout's package and of what this tool does with it."""
    settings = (methods, METHODS, EDITS, STOPPED, MID_STAGE, BEFORE_COMMIT)
    digest = hashlib.sha256(repr(settings).encode())
    for path in [*sorted((checkout / "hidecmoe_jax").rglob("*.py")), checkout / "tests" / "tiny.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check(old: Path, new: Path, work: Path, methods: list[str]) -> int:
    """Prints the table; returns the number of failures."""
    stamp = work / "old_side.json"
    wanted = stamp_of(old, methods)
    known = json.loads(stamp.read_text()) if stamp.is_file() else {}
    # An interrupted side lacks results, and so does one that was made for fewer steps.
    complete = all(step["name"] in known.get("results", {}) for step in plan_of(work, methods))
    if known.get("stamp") != wanted or not complete:
        print("making run folders with the old checkout")
        for name in ("world", "made"):
            shutil.rmtree(work / name, ignore_errors=True)
        make_runs(old, work, methods)
        print("the old checkout uses them")
        known = {"stamp": wanted, "results": run_side(old, work, "old", methods)}
        stamp.write_text(json.dumps(known, indent=1))
    print("the new checkout uses them")
    results = run_side(new, work, "new", methods)
    failures = 0
    print(f"\n{'method':<18}{'state':<11}{'step':<14}{'files':>6}  result")
    for step in plan_of(work, methods):
        relative = Path(step["place"]).relative_to(work / "live")
        before = known["results"][step["name"]]
        after = results[step["name"]]
        differences, presentation, count = compare(work / "old" / relative, work / "new" / relative)
        result = verdict(before, after, differences)
        note = f"  (presentation: {', '.join(presentation)})" if presentation else ""
        print(f"{relative.parts[0]:<18}{relative.parts[1]:<11}{relative.parts[2]:<14}{count:>6}  {result}{note}")
        if before["code"] != 0 or after["code"] != 0:
            print(f"    old: exit {before['code']}; new: exit {after['code']}")
        for line in differences if result == "DIFFERS" else []:
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
    chosen = parser.parse_args()
    methods = list(METHODS) if "all" in chosen.methods else chosen.methods
    if chosen.world:
        write_configs(chosen.world, methods)
        return 0
    if chosen.worker:
        worker(chosen.worker)
        return 0
    if chosen.new is None:
        parser.error("give two checkouts: OLD NEW")
    old = chosen.old.resolve()
    new = chosen.new.resolve()
    if chosen.work:
        chosen.work.mkdir(parents=True, exist_ok=True)
        return int(check(old, new, chosen.work.resolve(), methods) > 0)
    with tempfile.TemporaryDirectory() as folder:
        return int(check(old, new, Path(folder).resolve(), methods) > 0)


if __name__ == "__main__":
    sys.exit(main())
