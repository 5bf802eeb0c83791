"""One writer a run: an operating-system lock on RUN/.lock, with a note beside it that says who holds it.

The system drops the lock when its holder dies, however it dies, so a stale lock cannot exist; a stale note
may, and is only read while the lock is held. The lock file itself is never deleted, because two processes
could then hold two files of one name.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from hidecmoe_jax.core.errors import BusyError
from hidecmoe_jax.storage.files import write_json

LOCK = ".lock"
NOTE = ".lock.json"


@contextlib.contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Holds the only right to write below `folder` (made where it is missing) for the length of the block.

    Raises:
      BusyError: another process holds it; the message names its pid, host and start time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remedy = "wait for it, end it, or give another --out; a network disk may keep a dead host's lock"
    with lock_file(folder / LOCK, "another process is writing this run", where=folder, remedy=remedy):
        yield


@contextlib.contextmanager
def lock_file(file: Path, what: str, *, where: Path, remedy: str) -> Iterator[None]:
    """Holds the lock on `file`, with the note `file`.json, for the length of the block.

    Args:
      what, where, remedy: of the error.

    Raises:
      BusyError: another process holds it; the message names its pid, host and start time.
    """
    lock, note = filelock.FileLock(file, blocking=False), file.with_name(f"{file.name}.json")
    file.touch()  # where no file can be made, filelock takes it for held
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BusyError(what, where=str(where), why=_holder(note), remedy=remedy) from error
    try:
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    """What the note says; its holder may be writing or removing it at this very moment."""
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on host {holder['host']}, since {holder['started']}"
    except (OSError, ValueError, KeyError):
        return "the holder has just started and left no note yet"
