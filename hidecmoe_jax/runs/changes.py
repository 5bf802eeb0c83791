"""Changes of a run's identity that a user allows: every one is carried out, or refused because it could not be.

What a lesson was learned with is in its archive, so a setting of the method that changes afterwards would be stated by
the config, the report and `ask` and be in force nowhere. Settings that are read at every start change nothing that
exists. Where answers would be written in another way, the answers that exist are moved aside and written again.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.runs.folder import RunFolder, SeedFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.withdraw import withdraw_column, withdraw_measurements

Change = tuple[str, Any, Any]  # path of a field, its old and its new value

_AT_EVERY_START = (
    "config.base.path", "config.base.remat", "config.base.feature_batch", "config.base.feature_gib",
    "config.capacity", "config.verify_base", "config.seeds", "config.tune.save_every",
    "config.evaluate.named", "config.evaluate.zero_shot", "config.evaluate.between",
    "config.evaluate.reuse", "config.evaluate.variants",
)  # fmt: skip
_OF_ANSWERS = ("config.evaluate",)
_OF_TRAINING = ("config.tune",)
# A lesson of all tasks together has this name in the ledger (`seed_run.JOINT`).
_JOINT = "joint"


def is_below(field: str, above: Sequence[str]) -> bool:
    """Whether a field is one of `above`, or below one of them."""
    return any(field == path or field.startswith(f"{path}.") for path in above)


def impossible(folder: Path, changes: Sequence[Change], tasks: int) -> dict[str, str]:
    """Why a change could not be carried out any more, by field; empty where all of them can be.

    Args:
      tasks: number of tasks of the run.
    """
    # A run whose tasks are partly missing is not read for nothing: it can be opened without them.
    if not changes:
        return {}
    reasons = {}
    learned = _learned(folder)
    for path, old, new in changes:
        reason = _reason(path, old, new, learned, tasks)
        if reason is not None:
            reasons[path] = reason
    return reasons


def refuse_impossible(folder: Path, changes: Sequence[Change], tasks: int) -> None:
    """Refuses changes that would be recorded and then be in force nowhere; `tasks` as in `impossible`.

    Raises:
      CheckpointError: names every such field and why it is too late.
    """
    reasons = impossible(folder, changes, tasks)
    if reasons:
        raise CheckpointError(
            "a change comes too late to be carried out",
            where=str(folder),
            why="\n         ".join(f"{path}: {reason}" for path, reason in reasons.items()),
            remedy="undo the change, or learn again with it: give another --out",
        )


def carry_out(folder: Path, changes: Sequence[Change]) -> None:
    """Moves answers aside that the changed settings or data would write otherwise; they are then written again."""
    paths = [path for path, _, _ in changes]
    answers = any(is_below(path, _OF_ANSWERS) and not is_below(path, _AT_EVERY_START) for path in paths)
    tasks = dict.fromkeys(_task_of(path) for path in paths if path.startswith("data."))
    for seed in RunFolder(folder).seeds():
        if answers:
            withdraw_measurements(seed)
            continue
        for task in tasks:
            withdraw_column(seed, task)


def allowing(fields: Sequence[str]) -> str:
    """The flag that allows these fields to change, as a shell takes it; the parts of a task's data are one field."""
    names = {}
    for field in fields:
        # Parts of the data are named by files, whose names may hold blanks, brackets and commas.
        name = f"data.{_task_of(field)}" if field.startswith("data.") else field
        names[name] = None
    return shlex.quote(f"--allow-config-change={','.join(names)}")


def _task_of(field: str) -> str:
    """The task in `data.TASK...` or `own.TASK...`; names of tasks hold no dot."""
    return field.split(".")[1]


def _learned(folder: Path) -> list[tuple[str, ...]]:
    """Names of the lessons that every seed has learned."""
    return [_lessons(seed) for seed in RunFolder(folder).seeds()]


def _lessons(seed: SeedFolder) -> tuple[str, ...]:
    return tuple(record.name for record in Ledger(seed.path).tasks())


def _reason(path: str, old: Any, new: Any, learned: Sequence[tuple[str, ...]], tasks: int) -> str | None:
    """Why a change is too late, or None.

    Args:
      learned: as from `_learned`.
    """
    names = {name for lessons in learned for name in lessons}
    if is_below(path, (*_AT_EVERY_START, *_OF_ANSWERS)) or not names:
        return None
    if is_below(path, _OF_TRAINING):
        is_over = _JOINT in names or min(map(len, learned)) >= tasks
        return "every task is learned, nothing is trained any more" if is_over else None
    if path.startswith(("data.", "own.")):
        task = _task_of(path)
        return f"{task} is learned already" if task in names or _JOINT in names else None
    if is_below(path, ("tasks",)):
        most = max(map(len, learned))
        return f"the first {most} tasks are learned already" if _moves_learned(path, old, new, most) else None
    return f"the experts of {', '.join(sorted(names))} were learned with {old!r}"


def _moves_learned(path: str, old: Any, new: Any, learned: int) -> bool:
    """Whether a change of the order of tasks concerns the first `learned` of them."""
    if isinstance(old, list) and isinstance(new, list):
        return old[:learned] != new[:learned]
    number = path.rpartition(".")[2]
    return number.isdecimal() and int(number) < learned
