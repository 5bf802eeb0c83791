"""Edits of a run after learning: edits.json, a short list beside an archive that never changes.

The learner after n tasks, for serving and for the next task, is the archive of the first n tasks with those edits
applied that were committed when at most n tasks were learned. Without the list the run is as it was trained. One file
holds the edits of all seeds, so a commit is one rename; a seed in which there is nothing to edit is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.methods.edit import Edit, edited, narrowed
from hidecmoe_jax.methods.gates.unknown import calibrated
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.files import sync_folder


@dataclass(frozen=True)
class Calibration:
    """Thresholds of unknown inputs that were set after learning.

    Attributes:
      false_alarms: part of a task's own inputs that they were set to lose.
      source: where the records came from: `validation`, or folders.
      records: number of records that set a task's threshold, by the task's number.
      limits: thresholds by name, by the number of the task, by seed; numbers as text, as JSON has them.
    """

    false_alarms: float
    source: str
    records: dict[str, int]
    limits: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Committed:
    """An edit or a calibration, with the number of tasks that were learned when it was committed, when that was, and
    what it did."""

    edit: Edit | None
    tasks: int
    what: str
    at: str
    effect: dict[str, Any]
    calibration: Calibration | None = field(default=None, metadata=strict.YOUNGER)


def read(run: Path) -> tuple[Committed, ...]:
    """The edits of a run, oldest first.

    Raises:
      CheckpointError, ConfigError: the file is damaged.
    """
    path = RunFolder(run).edits
    listed = seal.read_json(path)
    if listed is None:
        return ()
    entries = listed.get("edits")
    if not isinstance(entries, list):
        raise CheckpointError("a file of the run is damaged", where=str(path), why="it holds no list `edits`")
    return tuple(strict.build(Committed, entry, str(path)) for entry in entries)


def write(run: Path, edits: Sequence[Committed]) -> None:
    """Replaces the edits of a run, durably and at once; without any the file goes."""
    write_entries(run, [strict.plain(edit) for edit in edits])


def write_entries(run: Path, entries: Sequence[dict[str, Any]]) -> None:
    """`write` of edits as plain values."""
    path = RunFolder(run).edits
    if entries:
        seal.write_json(path, {"edits": list(entries)})
    elif path.is_file():
        with seal.leaving([path]):
            path.unlink()
            sync_folder(run)


def keep_until(run: Path, tasks: int) -> None:
    """Drops the edits that were committed when more than `tasks` tasks were learned."""
    edits = read(run)
    remaining = [edit for edit in edits if edit.tasks <= tasks]
    if len(remaining) < len(edits):
        write(run, remaining)


def learner_after(
    archive: Sequence[Groups | None],
    run: Path | None,
    config: RunConfig,
    model: Model,
    *,
    tasks: int,
    seed: int | None = None,
) -> Learner:
    """The learner after the archived lessons, with the edits that the run had up to there.

    Args:
      run: the run's folder; None for what was learned, without any edit.
      tasks: of the whole run, which sets the number of task slots.
      seed: whose lessons these are; the first of the run by default.
    """
    slots = config.slots_for(max(tasks, len(archive)))
    learner = config.method.from_archive(model, slots, archive)
    if run is None:
        return learner
    return with_edits(learner, run, config.method, archive, config.seeds[0] if seed is None else seed)


def with_edits(learner: Learner, run: Path, method: Method, archive: Sequence[Groups | None], seed: int) -> Learner:
    """The learner of a seed after the archived lessons, with the edits on top that the run had up to there."""
    for committed in read(run):
        edit = committed.edit
        if committed.tasks > len(archive):
            continue
        if committed.calibration is not None:
            learner = _calibrated(learner, method, committed.calibration, seed)
            continue
        # Nothing of a task that could not be loaded can be edited.
        if any(archive[task] is None for task in {edit.task, edit.into} - {None}):
            continue
        applicable = narrowed(method, learner, edit, committed.tasks)
        if applicable is not None:
            learner = edited(method, learner, applicable, committed.tasks)
    return learner


def _calibrated(learner: Learner, method: Method, calibration: Calibration, seed: int) -> Learner:
    """The learner with the thresholds that a calibration set for a seed."""
    limits = {int(task): of_task for task, of_task in calibration.limits.get(str(seed), {}).items()}
    gate = calibrated(method.gate_memory(learner), limits)
    return learner.replace(memory=learner.memory.replace(gate=gate))


def false_alarms(run: Path, tasks: int) -> float | None:
    """The part of a task's own inputs that the last calibration up to so many tasks was set to lose; None without."""
    shares = [entry.calibration.false_alarms for entry in read(run) if entry.calibration and entry.tasks <= tasks]
    return shares[-1] if shares else None
