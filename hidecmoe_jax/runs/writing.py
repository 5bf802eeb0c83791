"""Writing a run: under its lock, and after what a killed command has begun is carried out.

Every command that changes a run enters by `writing`. Changes of several files go through `change_run`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hidecmoe_jax.runs import edits, journal
from hidecmoe_jax.runs.folder import RunFolder, no_run
from hidecmoe_jax.runs.journal import Change, Journal
from hidecmoe_jax.runs.sealing import ensure_seal, write_record, write_settings
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.runs.withdraw import withdraw_lesson, withdraw_row
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.files import remove_partial
from hidecmoe_jax.storage.lock import writer_lock

T = TypeVar("T")


@contextlib.contextmanager
def writing(run: Path, *, new: bool = False) -> Iterator[None]:
    """Locks a run for one writer inside the block; first, what a killed command has begun is carried out.

    Args:
      new: whether the folder may hold no run yet.

    Raises:
      CheckpointError: the folder holds no run.
      BusyError: another process writes the run.
      CheckpointError, ResourceError: the system refuses the folder or a file in it.
    """
    if not new and not RunFolder(run).identity.is_file():
        raise no_run(run)
    with writer_lock(run):
        remove_partial(run)
        begun = journal.read(run)
        if begun is not None and begun.state == "begun":
            _carry_out(run, begun)
        ensure_seal(RunFolder(run))
        yield


def writes_run(function: Callable[..., T]) -> Callable[..., T]:
    """Decorates a function whose first argument is a run that it writes into: it runs inside `writing`."""

    @functools.wraps(function)
    def locked(run: str | Path, *args: Any, **options: Any) -> T:
        with writing(Path(run)):
            return function(run, *args, **options)

    return locked


def change_run(run: Path, call: Mapping[str, Any], change: Change, result: dict[str, Any] | None = None) -> None:
    """Changes the files of a locked run as one: a kill leaves the run as it was, or one that counts as changed.

    Args:
      call: name of the command and its arguments, by which the same call is known again.
      result: what the command returns.
    """
    _carry_out(run, journal.begin(run, call, change, result))


def gone_on(run: Path, call: Mapping[str, Any]) -> Journal | None:
    """`journal.interrupted`, with a line for the user where there is one."""
    begun = journal.interrupted(run, call)
    if begun is not None:
        say("this very call was interrupted before: it goes on from there")
    return begun


def _carry_out(run: Path, begun: Journal) -> None:
    """Writes what a journal says; a kill in here leaves a journal that is carried out again."""
    change = begun.change
    folder = RunFolder(run)
    for seed, row, name in change.lessons:
        withdraw_lesson(folder.seed(seed), row, name)
    for seed, row in change.rows:
        withdraw_row(folder.seed(seed), row)
    if change.edits is not None:
        edits.write_entries(run, change.edits)
    if change.edits_until is not None:
        edits.keep_until(run, change.edits_until)
    if change.run is not None:
        # It describes the tasks that the run had.
        with seal.leaving([folder.facts]):
            folder.facts.unlink(missing_ok=True)
        write_record(folder, change.run)
    if change.config is not None:
        write_settings(folder, change.config)
    journal.mark_changed(run, begun)
