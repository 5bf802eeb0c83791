"""The few things done to a disk: durable small files, room checked before writing, moves, and deletion that
stays inside.

A file is written beside its name, synced and renamed, so a reader meets the old or the new one and never half
of one. Deletion takes the folder it may delete in as an argument and refuses everything outside it and
everything reached through a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import CheckpointError, HidecmoeError, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS = ("no space left", "file too large", "quota exceeded", "resource_exhausted")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON durably and atomically; numpy scalars become numbers, NaN is refused (use None)."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False, default=_plain) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Gives a file its content durably and in one step."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
      CheckpointError: the file is missing, is no JSON, or holds something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError("a file of the run is missing", where=str(path)) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError("a file of the run is damaged", where=str(path), why=str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            "a file of the run is damaged",
            where=str(path),
            why=f"holds a {type(value).__name__}, expected an object",
        )
    return value


def sync_folder(folder: Path) -> None:
    """Makes the names inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_space(folder: Path, needed: int) -> None:
    """Checks that the disk under `folder` has `needed` bytes free.

    Raises:
      ResourceError: it has fewer; both numbers are named.
    """
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise _full("not enough disk space to save", folder, needed=needed, why="twice the state must fit")


@contextlib.contextmanager
def disk_errors(what: str, where: Path, *, needed: int) -> Iterator[None]:
    """Turns what the storage layer raises inside the block into an error for users.

    Orbax reports a misleading error on top and the true one as its cause, so the whole chain is read.

    Raises:
      ResourceError: somewhere in the chain the disk was full.
      CheckpointError: anything else.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _translate(error, what, where, needed=needed) from error


def remove_inside(root: Path, path: Path) -> None:
    """Deletes the file or folder `path`, which must lie below `root` with no symbolic link on the way.

    Links inside a deleted folder are unlinked, never followed.

    Raises:
      CheckpointError: `path` is outside `root`, is `root` itself, or is reached through a link.
    """
    inside = Path(os.path.abspath(root)), Path(os.path.abspath(path))
    if inside[0] not in inside[1].parents:
        raise CheckpointError("refused to delete outside the run", where=str(path), why=f"not below {root}")
    steps = [inside[1], *(p for p in inside[1].parents if inside[0] in (p, *p.parents))]
    links = [step for step in steps if step.is_symlink()]
    if links:
        raise CheckpointError(
            "refused to delete through a symbolic link",
            where=str(path),
            why=f"{links[0]} is a link",
            remedy="remove it by hand if it is yours",
        )
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _translate(error: BaseException, what: str, where: Path, *, needed: int) -> HidecmoeError:
    chain, link = [], error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        said = [word for word in _FULL_WORDS if word in str(link).lower()]
        if said or (isinstance(link, OSError) and link.errno in _FULL):
            return _full(what, where, needed=needed, why=f"the system said: {(said or ['disk full'])[0]}")
    return CheckpointError(what, where=str(where), why=_first_line(chain[-1]))


def _full(what: str, where: Path, *, needed: int, why: str) -> ResourceError:
    there = where
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    return ResourceError(
        what,
        where=str(where),
        why=f"{needed:,} bytes are needed, {free:,} are free ({why}); everything saved before is intact",
        remedy="free some space and go on with --resume, or give --out on another disk",
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")
