"""Edits of a run after learning: edits.json, a short list beside an archive that never changes.

The learner after n tasks, for serving and for the next task, is the archive of the first n tasks with those edits
applied that were committed when at most n tasks were learned. Without the list the run is as it was trained. One file
holds the edits of all seeds, so a commit is one rename; a seed in which there is nothing to edit is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.methods.edit import Edit, edited, narrowed
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.files import read_json, sync_folder, write_json


@dataclass(frozen=True)
class Committed:
    """An edit with the number of tasks that were learned when it was committed, when that was, and what it did."""

    edit: Edit
    tasks: int
    what: str
    at: str
    effect: dict[str, Any]


def read(run: Path) -> tuple[Committed, ...]:
    """The edits of a run, oldest first.

    Raises:
      CheckpointError, ConfigError: the file is damaged.
    """
    path = RunFolder(run).edits
    if not path.is_file():
        return ()
    entries = read_json(path).get("edits")
    if not isinstance(entries, list):
        raise CheckpointError("a file of the run is damaged", where=str(path), why="it holds no list `edits`")
    return tuple(strict.build(Committed, entry, str(path)) for entry in entries)


def write(run: Path, edits: Sequence[Committed]) -> None:
    """Replaces the edits of a run, durably and at once; without any the file goes."""
    path = RunFolder(run).edits
    if edits:
        write_json(path, {"edits": [strict.plain(edit) for edit in edits]})
    elif path.is_file():
        path.unlink()
        sync_folder(run)


def keep_until(run: Path, tasks: int) -> None:
    """Drops the edits that were committed when more than `tasks` tasks were learned."""
    edits = read(run)
    remaining = [edit for edit in edits if edit.tasks <= tasks]
    if len(remaining) < len(edits):
        write(run, remaining)


def learner_after(
    archive: Sequence[Groups | None], run: Path | None, config: RunConfig, model: Model, *, tasks: int
) -> Learner:
    """The learner after the archived lessons, with the edits that the run had up to there.

    Args:
      run: the run's folder; None for what was learned, without any edit.
      tasks: of the whole run, which sets the number of task slots.
    """
    slots = config.slots_for(max(tasks, len(archive)))
    learner = config.method.from_archive(model, slots, archive)
    return learner if run is None else with_edits(learner, run, config.method, archive)


def with_edits(learner: Learner, run: Path, method: Method, archive: Sequence[Groups | None]) -> Learner:
    """The learner after the archived lessons, with the edits on top that the run had up to there."""
    for committed in read(run):
        edit = committed.edit
        if committed.tasks > len(archive):
            continue
        # Nothing of a task that could not be loaded can be edited.
        if any(archive[task] is None for task in {edit.task, edit.into} - {None}):
            continue
        applicable = narrowed(method, learner, edit, committed.tasks)
        if applicable is not None:
            learner = edited(method, learner, applicable, committed.tasks)
    return learner
