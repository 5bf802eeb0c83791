"""One attempt at a conversion: the lock beside the target, the folder of unfinished work, and the rename at its end.

`NAME.partial` holds the mark `partial.json` (what is made of which files), the journal, and in `model` what becomes
`NAME`. The mark is written first and removed last, so unfinished work can be told from a folder of the user's, which is
never touched. The lock is held from the first look at the folder until after the rename.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.port.output import only_writer
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.files import read_json, remove_inside, sync_folder, write_json
from hidecmoe_jax.storage.manifest import write_manifest

PARTIAL, STATE, MODEL = ".partial", "partial.json", "model"


@contextlib.contextmanager
def locked(target: Path) -> Iterator[Path]:
    """Holds the only right to make `target`; gives the folder of unfinished work, made or not.

    Raises:
      BusyError: another process is making it.
      CheckpointError: something is there, or nothing can be made there.
    """
    above = next(path for path in target.absolute().parents if path.exists())
    if not above.is_dir():
        raise CheckpointError(
            "the target cannot be made", where=str(target), why=f"{above} is no folder", remedy="give another target"
        )
    with only_writer(target.absolute()):
        if target.exists() or target.is_symlink():
            raise CheckpointError(
                "the target exists", where=str(target), why="nothing is ever overwritten", remedy="give another name"
            )
        yield target.with_name(target.name + PARTIAL)


def is_begun(partial: Path, *, resume: bool) -> bool:
    """Whether unfinished work is there, which only `resume` goes on with; raises CheckpointError for all else."""
    if not partial.exists() and not partial.is_symlink():
        return False
    ours = partial.is_dir() and not partial.is_symlink()
    names = {entry.name for entry in partial.iterdir()} - {f"{STATE}.part"} if ours else {partial.name}
    if names and STATE not in names:
        raise CheckpointError(
            "a folder stands where unfinished work would go",
            where=str(partial),
            why=f"it holds {', '.join(sorted(names)[:4])} and no {STATE}: no conversion made it, so it is left alone",
            remedy="move it away, or give another target",
        )
    if names and not resume:
        raise CheckpointError(
            "an unfinished conversion is there",
            where=str(partial),
            why="an earlier attempt was stopped",
            remedy="go on with --resume, or delete that folder",
        )
    return bool(names)


def begin(partial: Path, state: dict[str, Any]) -> Path:
    """Marks `partial` with what is made of which files, which unfinished work must agree with; gives its `model`."""
    there = partial / STATE
    if there.exists() and (before := read_json(there)) != state:
        changed = [key for key in state if before.get(key) != state[key]]
        raise CheckpointError(
            "the unfinished conversion is of something else",
            where=str(partial),
            why=f"source files, dtype or layout have changed since ({', '.join(changed)})",
            remedy="delete that folder and begin again",
        )
    partial.mkdir(parents=True, exist_ok=True)
    write_json(there, state)
    (partial / MODEL).mkdir(exist_ok=True)
    return partial / MODEL


def commit(partial: Path, target: Path) -> None:
    """Seals the model and gives it its name; the mark goes last."""
    write_manifest(partial / MODEL)
    crash_point("convert_rename")
    (partial / MODEL).rename(target)
    sync_folder(target.parent)
    remove_inside(target.parent, partial)
