"""journal.json of a run: the command that is changing the run, so that the same call after a kill ends as one call.

`add`, `rollback`, and commits and `restore` of edits change several files. Such a command writes here first what they
will be (`begun`); from that rename on the run is the changed one: whoever opens it takes config and identity from here,
and the next command that writes the run carries the change out before anything else. Then (`changed`) what is left is
learning and measuring, which any call goes on with. At the end (`done`) the process removes the file when it exits.

Nothing is guessed: only the same command with the same arguments goes on, or is told that it is done, and only while
the file is there, which after an exit in order it is not. A second call then counts as a new one and is judged by what
it finds: `add` of a task that the run has is refused, and `restore` takes the next edit back.
"""

from __future__ import annotations

import atexit
import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.yaml_text import parse_yaml, read_yaml
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.sealing import read_settings
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.signed import read_signed, write_signed

# Numbers of processes are used again, after a restart of a container soon.
PROCESS = uuid.uuid4().hex


@dataclass(frozen=True)
class Change:
    """What the files of a run become; None leaves a file as it is.

    Attributes:
      lessons: lessons that are taken out, the last first: seed, row, name.
      rows: rows that are measured again: seed, row.
      edits: the entries of edits.json.
      edits_until: edits that were committed when more tasks were learned are dropped.
      run: the content of run.json.
      config: the text of config.yaml.
    """

    lessons: tuple[tuple[int, int, str], ...] = ()
    rows: tuple[tuple[int, int], ...] = ()
    edits: tuple[dict[str, Any], ...] | None = None
    edits_until: int | None = None
    run: dict[str, Any] | None = None
    config: str | None = None


@dataclass(frozen=True)
class Journal:
    """A command that changes a run.

    Attributes:
      call: name of the command and its arguments.
      state: as the file's docstring says.
      process: a name of the process that wrote the file, as no other has.
      result: what the command returns.
    """

    call: dict[str, Any]
    state: Literal["begun", "changed", "done"]
    process: str
    change: Change
    result: dict[str, Any] | None = None


def read(run: Path) -> Journal | None:
    """The journal of a run; None without one.

    Raises:
      CheckpointError, ConfigError: the file is damaged.
    """
    path = RunFolder(run).journal
    return strict.build(Journal, read_signed(path), str(path)) if path.is_file() else None


def pending(run: Path) -> Change | None:
    """The change that a run has begun and not carried out; None as a rule."""
    journal = read(run)
    return journal.change if journal is not None and journal.state == "begun" else None


def config_values(run: Path, *, sealed: bool = False) -> dict[str, Any] | None:
    """The plain values of config.yaml, or those that a begun change gives it.

    Args:
      sealed: refuse a file that the run did not write so, and return None where there is none.
    """
    path = RunFolder(run).config
    change = pending(run)
    if change is not None and change.config is not None:
        return parse_yaml(change.config, str(path))
    return read_settings(RunFolder(run)) if sealed else read_yaml(path)


def begin(run: Path, call: Mapping[str, Any], change: Change, result: dict[str, Any] | None = None) -> Journal:
    """Writes the journal of a call; the run counts as changed from here on."""
    journal = Journal(dict(call), "begun", PROCESS, change, result)
    _write(run, journal)
    crash_point("after_journal", call["command"])
    return journal


def mark_changed(run: Path, journal: Journal) -> None:
    """Records that the change is carried out."""
    _write(run, replace(journal, state="changed", change=Change()))


def interrupted(run: Path, call: Mapping[str, Any]) -> Journal | None:
    """The journal of this very call, if an earlier one did not come to its end; ask after the change is carried out."""
    journal = read(run)
    if journal is None or journal.call != dict(call):
        return None
    # A process that is still here has come back from its call.
    if journal.state == "done" and journal.process == PROCESS:
        return None
    return journal


def finish(run: Path) -> None:
    """Records that the call is done; the file goes when the process exits."""
    journal = read(run)
    if journal is None:
        return
    _write(run, replace(journal, state="done", process=PROCESS))
    atexit.register(_acknowledge, run.absolute())


def drop(run: Path) -> None:
    """Removes the journal: another command has finished the run."""
    RunFolder(run).journal.unlink(missing_ok=True)


def _acknowledge(run: Path) -> None:
    """Removes the journal of a call of this process that is done."""
    # The folder may be gone by now, or another process may write it.
    with contextlib.suppress(Exception):
        journal = read(run)
        if journal is not None and journal.state == "done" and journal.process == PROCESS:
            drop(run)


def _write(run: Path, journal: Journal) -> None:
    write_signed(RunFolder(run).journal, strict.plain(journal))
