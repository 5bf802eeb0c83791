"""What both checkouts do with a run folder, and the process that does it (`compat_check.py` starts it).

A process has the package of one checkout on its path. It reads a plan (JSON, a list of `Step`), carries out one command
after another, each on a copy of a run folder, and writes exit codes and seconds beside the plan.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

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
    "stacked": ["retire", "birds"],
    "chosen_by_probe": ["retire", "birds"],
}
# State of a run folder -> the actions that are carried out on copies of it.
STEPS = {
    "finished": ["report", "eval", "ask", "add", "resume", "rollback", "overlap", "edit", "export_peft", "export_hub"],
    "mid_stage": ["resume"],
    "stopped": ["resume"],
    "edited": ["report", "eval", "ask", "add", "restore", "export_hub"],
}


@dataclass(frozen=True)
class Step:
    """One command on a copy of a run folder.

    Attributes:
      name: unique in its plan; its result is stored under it.
      action: a key of `command_for`, `edit`, or `ask`.
      place: folder that the command works in: the run folder is `run` below it, an export goes to `out`.
      source: run folder that is copied to `run`; empty for a step that makes a new one.
      words: the command line; empty for `ask`, which calls the library.
    """

    name: str
    action: str
    place: str
    source: str
    words: tuple[str, ...]


def write_configs(world: Path, methods: list[str]) -> None:
    """Writes a base, three tasks and one config a method into `world`; needs tests/tiny.py of the old checkout."""
    import tiny

    base = tiny.write_base(world / "base")
    folders = tiny.write_stream(world)
    tasks = [{"folder": str(folder)} for folder in folders[:2]]
    for name in methods:
        method = METHODS[name]
        if "lora" not in method and method["kind"] != "stacked":
            method = method | {"lora": {"rank": 2, "dropout": 0.1}}
        config = {
            "method": method | {"name": name},
            "base": {"path": str(base)},
            "stream": {"pocket": None, "tasks": tasks},
            "tune": {"epochs": 2, "batch": 2, "bucket": 32, "max_length": 64, "rate": 0.01, "save_every": 2},
            "evaluate": {"writing": {"batch": 4, "max_new_tokens": 3, "max_length": 64}},
            "template": tiny.TEMPLATE,
            "capacity": 4,
        }
        (world / f"{name}.yaml").write_text(json.dumps(config, indent=1))  # YAML is a superset of JSON


def step_of(name: str, action: str, method: str, world: Path, place: Path, source: Path | None = None) -> Step:
    """The step that carries out `action` for `method` in `place`; `world` holds configs and tasks."""
    words = () if action == "ask" else command_for(action, method, world, place)
    return Step(name, action, str(place), "" if source is None else str(source), words)


def command_for(action: str, method: str, world: Path, place: Path) -> tuple[str, ...]:
    """Words of the command line of an action; `place` holds the run folder `run` and takes exports as `out`."""
    run = str(place / "run")
    out = str(place / "out")
    config = str(world / f"{method}.yaml")
    run_config = str(place / "run" / "config.yaml")
    commands = {
        "make": ("run", config, "--out", run),
        "report": ("report", run),
        "eval": ("eval", run),
        "add": ("add", run, str(world / "trees")),
        "overlap": ("overlap", run),
        "rollback": ("rollback", run, "1"),
        "restore": ("restore", run),
        "resume": ("run", run_config, "--out", run, "--resume"),
        "export_peft": ("export", run, out, "--to", "peft"),
        "export_hub": ("export", run, out, "--to", "hub"),
    }
    if action == "edit":
        verb, *words = EDITS[method]
        return (verb, run, *words, "--allowed", "100", "--commit")
    return commands[action]


def write_plan(path: Path, steps: list[Step]) -> None:
    """Writes steps as JSON for `work_through`."""
    plan = [asdict(step) for step in steps]
    path.write_text(json.dumps(plan, indent=1))


def results_file(plan: Path) -> Path:
    """The file that takes the results of a plan."""
    return plan.with_suffix(".results.json")


# --- in the process of a checkout -------------------------------------------------------------------------------------


def guarded(work: Callable[[], int]) -> int | str:
    """Exit code of `work`, or the last line of an error that it does not report itself."""
    try:
        return work()
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def run_command(words: list[str]) -> int:
    """Exit code of a command line."""
    from hidecmoe_jax.cli.main import main

    return main(words)


def ask(run: Path, world: Path, target: Path) -> int:
    """Asks a run about two pictures of every task and writes texts and task weights as JSON."""
    import hidecmoe_jax

    assistant = hidecmoe_jax.load(run)
    facts = []
    for task in ("birds", "fish"):
        for number in (8, 9):
            picture = world / task / "images" / f"{number}.png"
            reply = assistant.answer([picture], "What is shown in picture 8?")
            facts.append({"text": reply.text, "weights": reply.weights})
    target.write_text(json.dumps(facts, indent=1))
    return 0


def forget_answers(run: Path) -> None:
    """Removes the answers of a run: with them an evaluation would compute nothing."""
    for seed in run.glob("seed_*"):
        for name in ("answers", "variants"):
            shutil.rmtree(seed / name, ignore_errors=True)
        (seed / "cells.json").unlink(missing_ok=True)


def carry_out(step: Step, world: Path) -> int | str:
    """Carries out one step on a copy of its run folder; its output goes to `stdout.txt`."""
    place = Path(step.place)
    run = place / "run"
    place.mkdir(parents=True, exist_ok=True)
    if step.source:
        shutil.copytree(step.source, run, symlinks=True)
    if step.action == "eval":
        forget_answers(run)
    with open(place / "stdout.txt", "w", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            if step.action == "ask":
                return guarded(lambda: ask(run, world, place / "replies.json"))
            return guarded(lambda: run_command(list(step.words)))


def work_through(plan: Path, world: Path) -> None:
    """Carries out the steps of a plan and writes exit code and seconds of each beside it."""
    steps = [Step(**fields) for fields in json.loads(plan.read_text())]
    results = {}
    for step in steps:
        started = time.monotonic()
        code = carry_out(step, world)
        seconds = round(time.monotonic() - started, 1)
        results[step.name] = {"code": code, "seconds": seconds}
        print(f"    {step.name:<36} {seconds:6.1f} s  exit {code}", flush=True)
        # After every step, because a step may end the process (a crash point).
        results_file(plan).write_text(json.dumps(results, indent=1))
