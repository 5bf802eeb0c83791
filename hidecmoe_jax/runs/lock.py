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
from hidecmoe_jax.runs.disk import write_json

LOCK = ".lock"
NOTE = ".lock.json"


@contextlib.contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Holds the only right to write below `folder` (made where it is missing) for the length of the block.

    Raises:
      BusyError: another process holds it; the message names its pid, host and start time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BusyError(
            "another process is writing this run",
            where=str(folder),
            why=_holder(folder / NOTE),
            remedy="wait for it, end it, or give another --out; a network disk may keep a dead host's lock",
        ) from error
    try:
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(folder / NOTE, {"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        yield
    finally:
        (folder / NOTE).unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    """What the note says; its holder may be writing or removing it at this very moment."""
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on host {holder['host']}, since {holder['started']}"
    except (OSError, ValueError, KeyError):
        return "the holder has just started and left no note yet"
