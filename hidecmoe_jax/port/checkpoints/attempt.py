"""One conversion on disk: the lock beside the target, the folder of unfinished work, and the final rename.

`NAME.partial` holds `partial.json` (the plan and the source files it was made from), the journal, and in `model` the
folder that becomes `NAME`. `partial.json` is written first and removed last, so unfinished work can be distinguished
from a folder of the user's, which is never touched. The lock is held from the first check until after the rename.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.port.output import only_writer
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.files import is_partial, read_json, remove_inside, sync_folder, write_json
from hidecmoe_jax.storage.manifest import write_manifest
from hidecmoe_jax.storage.places import check_place

PARTIAL = ".partial"
STATE = "partial.json"
MODEL = "model"


@contextlib.contextmanager
def locked(target: Path) -> Iterator[Path]:
    """Lock `target` exclusively; yields the path of its `.partial` folder (which may not exist yet).

    Raises:
      BusyError: another process holds the lock.
      CheckpointError: `target` exists, or cannot be created.
    """
    ancestor = next(path for path in target.absolute().parents if path.exists())
    if not ancestor.is_dir():
        raise CheckpointError(
            "the target cannot be made",
            where=str(target),
            why=f"{ancestor} is not a folder",
            remedy="give another target",
        )
    # What exists is refused below, under the lock.
    if not target.exists():
        check_place(target, remedy="give another target")
    with only_writer(target.absolute()):
        if target.exists() or target.is_symlink():
            raise CheckpointError(
                "the target exists", where=str(target), why="nothing is ever overwritten", remedy="give another name"
            )
        yield target.with_name(target.name + PARTIAL)


def is_begun(partial: Path, *, resume: bool) -> bool:
    """True if `partial` holds unfinished work and `resume` is given.

    Raises:
      CheckpointError: unfinished work without `resume`, or a folder that no conversion made.
    """
    if not partial.exists() and not partial.is_symlink():
        return False
    names = {partial.name}
    if partial.is_dir() and not partial.is_symlink():
        # A crash while `partial.json` was written leaves only its temporary file: nothing was begun then.
        names = {entry.name for entry in partial.iterdir() if not is_partial(entry.name)}
    if names and STATE not in names:
        raise CheckpointError(
            "the folder for unfinished work exists already",
            where=str(partial),
            why=f"it holds {', '.join(sorted(names)[:4])} and no {STATE}: no conversion made it, so it is left alone",
            remedy="move it away, or give another target",
        )
    if names and not resume:
        raise CheckpointError(
            "an unfinished conversion exists",
            where=str(partial),
            why="an earlier attempt was stopped",
            remedy="continue it with --resume, or delete that folder",
        )
    return bool(names)


def begin(partial: Path, state: dict[str, Any]) -> Path:
    """Creates `partial` with its state file and returns its `model` folder.

    Args:
      state: plan digest, layout and source files; unfinished work must have been made with the same.

    Raises:
      CheckpointError: the folder was made with another state.
    """
    file = partial / STATE
    recorded = read_json(file) if file.exists() else state
    if recorded != state:
        changed = [key for key in state if recorded.get(key) != state[key]]
        raise CheckpointError(
            "the unfinished conversion is of something else",
            where=str(partial),
            why=f"source files, dtype or layout have changed since ({', '.join(changed)})",
            remedy="delete that folder and begin again",
        )
    partial.mkdir(parents=True, exist_ok=True)
    write_json(file, state)
    (partial / MODEL).mkdir(exist_ok=True)
    return partial / MODEL


def commit(partial: Path, target: Path) -> None:
    """Writes the manifest, renames the model folder to `target`, and removes the rest of `partial`."""
    write_manifest(partial / MODEL)
    crash_point("convert_rename")
    (partial / MODEL).rename(target)
    sync_folder(target.parent)
    remove_inside(target.parent, partial)
