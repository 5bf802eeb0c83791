"""Durable small files, a check of free disk space, and deletion inside one folder.

A file is written under another name, synced and renamed, so a reader sees the old content or the new one and never a
part of it. Deletion takes the folder that it may delete in as an argument, and refuses everything outside that folder
or reached through a symbolic link.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import CheckpointError, HidecmoeError, ResourceError
from hidecmoe_jax.core.full_disks import chain_of, disk_full
from hidecmoe_jax.core.json_text import RECORDS, SETTINGS, JsonFault, json_value
from hidecmoe_jax.core.regular_files import read_regular
from hidecmoe_jax.core.yaml_text import word_for

LINES_SIZE = 4 * 2**30
"""Bytes of a file of JSON lines: answers of millions of questions."""
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.part")


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes JSON durably and atomically, as `json_bytes`."""
    write_bytes(path, json_bytes(value, indent=indent))


def json_bytes(value: Any, *, indent: int | None = 1) -> bytes:
    """Returns a value as JSON; numpy scalars become numbers, NaN is refused (use None)."""
    text = json.dumps(value, indent=indent, allow_nan=False, default=_plain) + "\n"
    return text.encode()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file durably and atomically."""
    # In the same folder, since a rename is atomic only within one file system; a name of its own for every write, since
    # two writers of one name would write into each other's file.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    # Without this the content is durable but the new name may not be.
    sync_folder(path.parent)


def wrong_size(size: int, written: int) -> str:
    """How a file of another size than it was written with differs, in words behind its name."""
    verb = "truncated" if size < written else "longer"
    return f"is {verb}: {size} bytes, {written} were written"


def is_partial(name: str) -> bool:
    """Whether a file of this name is what a killed `write_bytes` left."""
    return _PARTIAL.fullmatch(name) is not None


def remove_partial(folder: Path) -> None:
    """Removes what killed writers left below a folder that is locked for one writer."""
    for path in folder.rglob(".*.part"):
        if is_partial(path.name):
            path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
      CheckpointError: the file is missing or no regular one, is no JSON, is more than `SETTINGS` allow, or holds
        something else than an object.
    """
    return json_object(read_whole(path, at_most=SETTINGS.size), path)


def read_whole(path: Path, *, at_most: int | None) -> bytes:
    """Returns the content of a file.

    Raises:
      CheckpointError: the file is missing, may not be read, is no regular one, or is larger than `at_most` bytes.
    """
    try:
        return read_regular(path, at_most=at_most)
    except FileNotFoundError as error:
        raise CheckpointError("a file of the run is missing", where=str(path)) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise CheckpointError("a file of the run cannot be read", where=str(path), why=why) from error


def json_object(content: bytes, path: Path) -> dict[str, Any]:
    """Returns the JSON object that a file holds.

    Raises:
      CheckpointError: as `read_json`.
    """
    try:
        value = json_value(content.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, JsonFault) as error:
        raise CheckpointError("a file of the run is damaged", where=str(path), why=str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            "a file of the run is damaged",
            where=str(path),
            why=f"holds a {word_for(value)}, expected an object",
        )
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects in a file of JSON lines, none where there is no file; a last line that a kill tore is left
    out.

    Raises:
      CheckpointError: the file is no regular one, is not UTF-8, or a line holds something else than an object or more
        than `RECORDS` allow.
    """
    return json_lines(read_whole(path, at_most=LINES_SIZE) if path.exists() else b"", path)


def json_lines(content: bytes, path: Path) -> list[dict[str, Any]]:
    """Returns the objects that a file of JSON lines holds, as `read_lines`."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError("a file of the run is damaged", where=str(path), why=str(error)) from error
    lines = []
    # Not `splitlines`, which breaks a line at characters that JSON may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            value = json_value(line, RECORDS)
        except json.JSONDecodeError:
            break  # only the last line can be torn, since lines are appended in order
        except JsonFault as error:
            raise CheckpointError("a file of the run is damaged", where=f"{path}:{number}", why=str(error)) from error
        if not isinstance(value, dict):
            raise CheckpointError(
                "a file of the run is damaged",
                where=f"{path}:{number}",
                why=f"holds a {word_for(value)}, expected an object",
            )
        lines.append(value)
    return lines


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
    if _free(folder) < needed:
        raise _full("not enough disk space to save", folder, needed=needed, why="twice the state must fit")


@contextlib.contextmanager
def disk_errors(what: str, where: Path, *, needed: int) -> Iterator[None]:
    """Translates errors of the operating system and of Orbax inside the block into errors for users.

    Orbax raises a misleading error with the true one as its cause, so the whole chain of causes is searched.

    Args:
      what: what failed.
      where: the file or folder concerned.
      needed: bytes that the operation needs, for the message.

    Raises:
      ResourceError: the disk was full, according to an error of the chain.
      CheckpointError: any other error.
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
    # Not `resolve`, which would follow the links that are looked for below.
    top = Path(os.path.abspath(root))
    target = Path(os.path.abspath(path))
    if top not in target.parents:
        raise CheckpointError("refused to delete outside the run", where=str(path), why=f"not below {root}")
    steps = [target]
    steps += [parent for parent in target.parents if parent == top or top in parent.parents]
    links = [step for step in steps if step.is_symlink()]
    if links:
        raise CheckpointError(
            "refused to delete through a symbolic link",
            where=str(path),
            why=f"{links[0]} is a link",
            remedy="remove it by hand if it is yours",
        )
    # `rmtree` unlinks symbolic links inside the folder and does not follow them.
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _translate(error: BaseException, what: str, where: Path, *, needed: int) -> HidecmoeError:
    chain = chain_of(error)
    for link in chain:
        reason = disk_full(link)
        if reason is not None:
            return _full(what, where, needed=needed, why=f"the system reports: {reason}")
    return CheckpointError(what, where=str(where), why=_first_line(chain[-1]))


def _full(what: str, where: Path, *, needed: int, why: str) -> ResourceError:
    return ResourceError(
        what,
        where=str(where),
        why=f"{needed:,} bytes are needed, {_free(where):,} are free ({why}); everything saved before is intact",
        remedy="free some space and go on with --resume, or give --out on another disk",
    )


def _free(path: Path) -> int:
    """Free bytes of the disk under a path that need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0][:300] if lines else ""
    return f"{type(error).__name__}: {first}"


def _plain(value: Any) -> Any:
    """What `json` cannot write itself, as plain values."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")
