"""Decision log of a served run: JSON lines in numbered files, each line with the SHA-256 of the line before.

Lines are appended and never changed. The chain goes on from file to file and from start to start, so a line that was
changed, left out or put in later breaks it at a place that `check` names. Whoever rewrites all lines after the place
can hide that, unless the last digest was noted elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.core.json_text import json_value
from hidecmoe_jax.operate.entries import Entry, fields_of
from hidecmoe_jax.storage import places
from hidecmoe_jax.storage.files import sync_folder, write_bytes
from hidecmoe_jax.storage.lock import LOCK, lock_file

ZEROS = "0" * 64
"""`previous` of the first line."""

FILE_BYTES = 64 * 2**20  # size from which a new file is begun
_PLACE = {"n": int, "previous": str, "time": str, "kind": str}
_PATTERN = places.LOG_FILE.replace("{:06d}", "*")


@dataclass(frozen=True)
class Head:
    """The end of a chain: number and digest of its last line."""

    n: int = 0
    digest: str = ZEROS


@dataclass(frozen=True)
class Break:
    """The first place where a log is not what was written: a file, a line of it from 1 on, and why."""

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.why}"


@dataclass(frozen=True)
class LogState:
    """What a log was found to be.

    Attributes:
      files: names, in their order.
      head: end of the unbroken chain.
      broken: the first break.
      unfinished: bytes after the last whole line: a line that is being written, or that a crash cut off.
    """

    files: tuple[str, ...]
    head: Head
    broken: Break | None
    unfinished: int


class _BrokenChain(Exception):
    def __init__(self, place: Break):
        super().__init__(str(place))
        self.place = place


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def files_of(folder: Path) -> list[Path]:
    """The files of a log, in the order of their numbers."""
    return sorted(folder.glob(_PATTERN))


def check(folder: Path) -> LogState:
    """Reads a whole log and follows its chain; writes nothing."""
    files = files_of(folder)
    names = tuple(path.name for path in files)
    head = Head()
    broken = None
    try:
        for _, reached in _chained(files):
            head = reached
    except _BrokenChain as error:
        broken = error.place
    return LogState(names, head, broken, _tail(files[-1]) if files else 0)


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a log as objects, each after its place in the chain was checked.

    A last line without an end is left out: it is being written, or a crash cut it off.

    Raises:
      CheckpointError: the chain is broken; the first place is named.
    """
    try:
        for line, _ in _chained(files_of(folder)):
            yield line
    except _BrokenChain as error:
        raise CheckpointError(
            "the decision log is damaged", where=str(folder / error.place.file),
            why=f"line {error.place.line} {error.place.why}", remedy=f"`hidecmoe verify {folder}` shows what is whole",
        ) from None  # fmt: skip


def _chained(files: Sequence[Path], *, begun: bool = True) -> Iterator[tuple[dict[str, Any], Head]]:
    """The lines of files that follow each other, with the head after each.

    Args:
      begun: whether the first file begins the chain; else its first line is taken as it is.
    """
    head = Head() if begun else None
    before: Break | None = None
    for number, path in enumerate(files, start=1):
        if begun and path.name != places.LOG_FILE.format(number):
            why = f"stands where {places.LOG_FILE.format(number)} should: a file is missing"
            raise _BrokenChain(Break(path.name, 1, why))
        for place, content in _whole_lines(path):
            here = Break(path.name, place, "")
            line = _parsed(content, here)
            if head is None:
                head = Head(line["n"] - 1, line["previous"])
            if line["n"] != head.n + 1:
                raise _broken(here, f"has number {line['n']}, expected {head.n + 1}: lines are missing or put in")
            if line["previous"] != head.digest:
                # The digest stands in the next line, but it is this one that is not what it was.
                raise _broken(before or here, "was changed: the next line has the digest of another one")
            head = Head(line["n"], _digest(content))
            before = here
            yield line, head
        if path != files[-1] and _tail(path):
            raise _broken(before or Break(path.name, 1, ""), "is followed by a part of a line, and by another file")


def _broken(place: Break, why: str) -> _BrokenChain:
    return _BrokenChain(Break(place.file, place.line, why))


def _parsed(content: bytes, place: Break) -> dict[str, Any]:
    try:
        line = json_value(content.decode("utf-8"))
    except ValueError:
        raise _broken(place, "is no JSON") from None
    if not isinstance(line, dict) or any(type(line.get(name)) is not kind for name, kind in _PLACE.items()):
        raise _broken(place, f"lacks one of {', '.join(_PLACE)}")
    return line


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and bytes of the lines that end."""
    with open(path, "rb") as file:
        for place, content in enumerate(file, start=1):
            if content.endswith(b"\n"):
                yield place, content[:-1]


def _tail(path: Path) -> int:
    """Bytes after the last end of a line."""
    content = path.read_bytes()
    return len(content) - (content.rfind(b"\n") + 1)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def open_log(
    folder: Path, *, file_bytes: int = FILE_BYTES, clock: Callable[[], datetime] = now
) -> Iterator[DecisionLog]:
    """Opens a log for writing, or begins one; one process at a time writes.

    Args:
      file_bytes: size from which a new file is begun; a new day (UTC) begins one too.

    Raises:
      ConfigError: the folder holds something else, or cannot be written.
      BusyError: another process writes this log.
      CheckpointError: its last file is broken; nothing is appended to a log that is not what was written.
    """
    places.check_kind(folder, (places.LOG,), remedy="give another --log")
    places.check_place(folder, remedy="give another --log")
    folder.mkdir(parents=True, exist_ok=True)
    busy = "another process writes this log"
    with lock_file(folder / LOCK, busy, where=folder, remedy="end it, or give another --log"):
        log = DecisionLog(folder, file_bytes, clock)
        try:
            yield log
        finally:
            log.close()


class DecisionLog:
    """Appends to a log; threads may share it. Made by `open_log`.

    Attributes:
      torn: name of the file that holds a last line which a crash had cut off; None where there was none.
    """

    def __init__(self, folder: Path, file_bytes: int, clock: Callable[[], datetime]):
        self.folder = folder
        self._file_bytes = file_bytes
        self._clock = clock
        self._lock = threading.Lock()
        files = files_of(folder)
        self.torn = _without_torn_end(files[-1]) if files else None
        self.head = _head_of(files)
        self._number = len(files) or 1
        self._path = folder / places.LOG_FILE.format(self._number)
        self._file = open(self._path, "ab", buffering=0)
        self._size = self._path.stat().st_size
        self._day = _day_of(self._path)
        sync_folder(folder)

    def append(self, *entries: Entry) -> list[dict[str, Any]]:
        """Appends entries in their order and returns their lines, once they are on the disk.

        Raises:
          OSError: they could not be written; the log is as it was.
        """
        with self._lock:
            time = self._clock()
            self._rotate(time)
            head = self.head
            lines = []
            content = b""
            for entry in entries:
                stamp = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
                line = {"n": head.n + 1, "previous": head.digest, "time": stamp, "kind": entry.kind}
                lines.append(line | fields_of(entry))
                written = _line_bytes(lines[-1])
                head = Head(head.n + 1, _digest(written))
                content += written + b"\n"
            self._write(content)
            self.head = head
            self._day = self._day or _day(time)
            return lines

    def _write(self, content: bytes) -> None:
        # What an earlier write, which failed, left of its lines.
        if os.fstat(self._file.fileno()).st_size > self._size:
            os.ftruncate(self._file.fileno(), self._size)
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())
        self._size += len(content)

    def _rotate(self, time: datetime) -> None:
        """Begins another file where this one is full or of another day."""
        if not self._size or (self._size < self._file_bytes and self._day == _day(time)):
            return
        path = self.folder / places.LOG_FILE.format(self._number + 1)
        file = open(path, "ab", buffering=0)
        sync_folder(self.folder)
        self._file.close()
        self._file = file
        self._path = path
        self._number += 1
        self._size = 0
        self._day = _day(time)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _line_bytes(line: dict[str, Any]) -> bytes:
    """A line as JSON in UTF-8."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair has no bytes in UTF-8; its escape is JSON's own.
    return text.encode("utf-8", "backslashreplace")


def _day(time: datetime) -> str:
    return time.date().isoformat()


def _day_of(path: Path) -> str | None:
    """Day of a file's first line; None of an empty file."""
    for _, content in _whole_lines(path):
        return json_value(content.decode("utf-8"))["time"][:10]
    return None


def _without_torn_end(path: Path) -> str | None:
    """Moves the end of a file that is no whole line into a file beside it; returns its name."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    start = content.rfind(b"\n", 0, max(0, end - 1)) + 1
    last = content[start:end].rstrip(b"\n")
    # A crash of the machine may leave a line of other bytes, with or without its end.
    if last and not _is_json(last):
        end = start
    if end == len(content):
        return None
    number = 1
    while (path.parent / f"torn_{number:03d}.txt").exists():
        number += 1
    aside = path.with_name(f"torn_{number:03d}.txt")
    write_bytes(aside, content[end:])
    with open(path, "r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())
    return aside.name


def _is_json(content: bytes) -> bool:
    try:
        json_value(content.decode("utf-8"))
    except ValueError:
        return False
    return True


def _head_of(files: Sequence[Path]) -> Head:
    """The end of the chain, from the last file that has lines.

    Raises:
      CheckpointError: this file is broken.
    """
    for path in reversed(files):
        head = None
        try:
            for _, reached in _chained([path], begun=False):
                head = reached
        except _BrokenChain as error:
            raise CheckpointError(
                "the decision log is damaged, nothing is appended to it", where=str(path),
                why=f"line {error.place.line} {error.place.why}",
                remedy=f"give another --log; `hidecmoe verify {path.parent}` shows what is whole",
            ) from None  # fmt: skip
        # A file that was begun just before a crash is empty.
        if head is not None:
            return head
    return Head()
