"""Writer lock of a run: an operating-system lock on RUN/.lock, with a note beside it about its holder.

The system releases the lock when its holder ends, however it ends, so a stale lock cannot exist. A stale note can, and
is only read while the lock is held. The lock file itself is never deleted: two processes could then hold locks on two
files of the same name.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from hidecmoe_jax.core.errors import BusyError, CheckpointError
from hidecmoe_jax.storage.files import disk_errors, read_json, write_json

LOCK = ".lock"
NOTE = ".lock.json"


@contextlib.contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Locks `folder` (made where it is missing) for one writer inside the block.

    Raises:
      BusyError: another process holds the lock; the message names its pid, host and start time.
      CheckpointError, ResourceError: the system refuses the folder or a file in it.
    """
    remedy = "wait for it, end it, or give another --out; a network disk may keep a dead host's lock"
    with contextlib.ExitStack() as lock:
        with disk_errors("could not make the folder or its lock; give another --out", folder, needed=0):
            folder.mkdir(parents=True, exist_ok=True)
            busy = "another process is writing this run"
            lock.enter_context(lock_file(folder / LOCK, busy, where=folder, remedy=remedy))
        yield


def check_unlocked(folder: Path) -> None:
    """Refuses a run that another process is writing; makes nothing where there is no run.

    Raises:
      BusyError: as `writer_lock`.
    """
    if (folder / LOCK).exists():
        with writer_lock(folder):
            pass


def holder_lives(folder: Path) -> bool:
    """Whether a living process writes `folder`, by the note alone: the lock is not touched, so no writer meets it.

    Of a holder on another host the note is all there is; of a dead one of this host it does not count.
    """
    try:
        holder = read_json(folder / NOTE)
        if holder["host"] != socket.gethostname():
            return True
        os.kill(holder["pid"], 0)
    except (CheckpointError, OSError, KeyError, TypeError) as error:
        return isinstance(error, PermissionError)
    return True


@contextlib.contextmanager
def lock_file(file: Path, what: str, *, where: Path, remedy: str) -> Iterator[None]:
    """Locks `file` inside the block, with the note `file`.json.

    Args:
      what, where, remedy: parts of the error.

    Raises:
      BusyError: another process holds the lock; the message names its pid, host and start time.
    """
    lock = filelock.FileLock(file, blocking=False)
    note = file.with_name(f"{file.name}.json")
    # Raises the system's own error where no file can be made; filelock would report a held lock instead.
    file.touch()
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
    """The holder as its note names it; the note may be missing, since its holder writes and removes it."""
    try:
        holder = read_json(note)
        return f"process {holder['pid']} on host {holder['host']}, since {holder['started']}"
    except (CheckpointError, KeyError):
        return "its holder has just started and has written no note yet"
