"""The seal of a run: seal.json, with SHA-256 and size of every file that the run rewrites or appends to.

Archived lessons have manifests (`storage/manifest.py`) because they never change. Everything else of a run does, so
its seal is rewritten with each write: it first lists the new content beside the old one, then the file is renamed into
place, then the old content is struck out. A kill at any moment leaves a file whose content is listed, and a file with
any other content is damaged. Of a file that grows line by line the seal covers a beginning; what a kill left behind
it was never relied on, and is not read.

The run of a file is the nearest folder above it with a run.json; that file names the seal by a number of the run, so
a seal that is gone or belongs to another run is noticed. Runs of earlier versions have neither, and are read as they
are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.core.json_text import SETTINGS
from hidecmoe_jax.storage import files
from hidecmoe_jax.storage.places import RUN_MARK
from hidecmoe_jax.storage.signed import read_signed, remedy_for, write_signed

NAME = "seal.json"
FORMAT = 1
MARK = "seal"  # key of run.json with the number of its seal
DEPTH = 7  # folders between a run and its deepest file, and one more

Content = Callable[[bytes], bytes]
Marks = tuple["Mark | None", ...]


class Mark(NamedTuple):
    """Content that a file may have; of a file that grows, the content that it may begin with."""

    size: int
    sha256: str
    grows: bool = False


NOTHING: Marks = (None,)
"""Of a file that is not there."""


class Seal(NamedTuple):
    """A seal: the run's number, and by path what each file may hold, newest last; None where it may be absent."""

    run: str
    marks: dict[str, Marks]


def read_bytes(path: Path, *, content: Content | None = None, at_most: int | None = files.LINES_SIZE) -> bytes | None:
    """Returns a file of a run as it was sealed, None where there is none; of a growing file what is sealed of it.

    Args:
      content: what of the bytes is sealed, for a file of which a part may be edited.
      at_most: bytes that it may have.

    Raises:
      CheckpointError: the file is damaged, gone, too large, or was not written by the run; or the seal is.
    """
    root = root_of(path)
    if root is None or not is_sealed(root):
        return _bytes(path, at_most=at_most)
    before: bytes | str | None = "not read yet"
    while True:
        data = _bytes(path, at_most=at_most)
        # The seal after the file: a writer lists new content before it writes it.
        marks = load(root).marks.get(_name(root, path), NOTHING)
        for mark in reversed(marks):
            if _matches(data, mark, content):
                return data[: mark.size] if data is not None and mark is not None and mark.grows else data
        # Another process may have rewritten the file between the two.
        if data == before:
            raise _damaged(path, root, data, marks)
        before = data


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file of a run, as `read_bytes`.

    Raises:
      CheckpointError: as `read_bytes`, or the file holds no JSON object.
    """
    data = read_bytes(path, at_most=SETTINGS.size)
    return None if data is None else files.json_object(data, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects in a file of JSON lines; a last line that a kill tore is left out.

    Raises:
      CheckpointError: as `read_bytes`.
    """
    return files.json_lines(read_bytes(path) or b"", path)


def write_bytes(path: Path, data: bytes, *, grows: bool = False, content: Content | None = None) -> None:
    """Replaces a file of a run and its entry in the seal, durably; a kill leaves the old content or the new one.

    Args:
      grows: whether `append` will add to it.
      content: as of `read_bytes`.
    """
    root = root_of(path)
    if root is None or not is_sealed(root):
        files.write_bytes(path, data)
        return
    name = _name(root, path)
    new = _mark(content(data) if content else data, grows=grows)
    with _alone(root):
        seal = _settled(root, {name: content})
        before = seal.marks.get(name, NOTHING)
        if before == (new,) and _bytes(path) == data:
            return
        _store(root, seal, {name: (*before, new)})
        files.write_bytes(path, data)
        _store(root, seal, {name: (new,)})


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`, for a JSON value."""
    write_bytes(path, files.json_bytes(value))


class Growing:
    """A growing file of a run, to which one process appends; only what is appended is hashed, not the whole file.

    Args:
      path: of the file, which need not be there.
    """

    def __init__(self, path: Path):
        self.path = path
        # Of the sealed content, as this object has left it; None before the first append.
        self._mark: Mark | None = None
        self._total = hashlib.sha256()

    def append(self, data: bytes) -> None:
        """Appends durably; what lies behind the sealed part of the file is dropped first.

        Raises:
          CheckpointError: the file or the seal is damaged.
        """
        root = root_of(self.path)
        if root is None or not is_sealed(root):
            _append(self.path, data)
            return
        name = _name(root, self.path)
        with _alone(root):
            seal = _settled(root)
            if name not in seal.marks:
                _store(root, seal, {name: (*NOTHING, _mark(b"", grows=True))})
            before = self._mark
            if before is None or seal.marks.get(name) != (before,):
                # The first append, or somebody else has written the file.
                before = self._begin(read_bytes(self.path) or b"")
            if self.path.is_file() and self.path.stat().st_size != before.size:
                before = self._cut()
            _append(self.path, data)
            self._total.update(data)
            self._mark = Mark(before.size + len(data), self._total.hexdigest(), True)
            _store(root, seal, {name: (self._mark,)})

    def _begin(self, content: bytes) -> Mark:
        self._total = hashlib.sha256(content)
        self._mark = _mark(content, grows=True)
        return self._mark

    def _cut(self) -> Mark:
        """Drops what a kill has left behind the sealed part."""
        # Read once more, should the file be shorter than its seal.
        before = self._begin(read_bytes(self.path) or b"")
        os.truncate(self.path, before.size)
        return before


@contextlib.contextmanager
def leaving(paths: Iterable[Path]) -> Iterator[None]:
    """Strikes files, and all files below folders, out of the seal of their run; the block moves or deletes them."""
    paths = list(paths)
    root = root_of(paths[0]) if paths else None
    if root is None or not is_sealed(root):
        yield
        return
    gone = [_name(root, path) for path in paths]
    with _alone(root):
        seal = _settled(root)
        struck = {name: (None, *marks) for name, marks in seal.marks.items() if _is_below(name, gone)}
        _store(root, seal, struck)
    yield
    with _alone(root):
        _store(root, _settled(root), {})


def begin(root: Path, number: str) -> None:
    """Begins the seal of a new run, which has nothing to seal yet."""
    _store(root, Seal(number, {}), {})


def accept(root: Path, number: str, paths: Iterable[Path], contents: Mapping[Path, Content]) -> None:
    """Seals files of a run as they are now, and nothing else.

    Args:
      number: of the run, which its run.json gets too.
      contents: as of `read_bytes`, by file.
    """
    marks: dict[str, Marks] = {}
    for path in paths:
        content = contents.get(path)
        data = path.read_bytes()
        marks[_name(root, path)] = (_mark(content(data) if content else data),)
    with _alone(root):
        _store(root, Seal(number, marks), {})


def new_number() -> str:
    """A number that no other run has."""
    return secrets.token_hex(8)


def root_of(path: Path) -> Path | None:
    """The folder of the run that a file is in; None for a file of no run."""
    for above in list(path.parents)[:DEPTH]:
        if (above / RUN_MARK).is_file():
            return above
    return None


def is_sealed(root: Path) -> bool:
    """Whether a run has a seal, as every run that was begun with one must."""
    return (root / NAME).is_file() or number_of(root) is not None


def number_of(root: Path) -> str | None:
    """The number of a run's seal according to its run.json; None for a run of an earlier version."""
    path = root / RUN_MARK
    number = files.read_json(path).get(MARK) if path.is_file() else None
    return number if isinstance(number, str) else None


def load(root: Path) -> Seal:
    """The seal of a run that has one.

    Raises:
      CheckpointError: it is gone, damaged, or that of another run.
    """
    path = root / NAME
    if not path.is_file():
        raise _unusable(root, f"{NAME} is gone, which the run was begun with")
    value = read_signed(path, required=True)
    # Another signed file of the run may lie in its place.
    if value.keys() != {"format", MARK, "files"}:
        raise _unusable(root, f"{NAME} holds something else than a seal")
    if value["format"] > FORMAT:
        raise CheckpointError(
            "a seal was written by a newer version", where=str(path),
            why=f"format {value['format']}, this version reads up to {FORMAT}", remedy="update the package",
        )  # fmt: skip
    number = number_of(root)
    if number is not None and number != value[MARK]:
        raise _unusable(root, f"{NAME} is that of another run")
    marks = {}
    for name, listed in value["files"].items():
        marks[name] = tuple(None if entry is None else Mark(*entry) for entry in listed)
    return Seal(value[MARK], marks)


def faults(root: Path, contents: Mapping[Path, Content]) -> dict[str, str]:
    """What is wrong with the sealed files of a run, by path: changed, gone.

    Args:
      contents: as of `read_bytes`, by file.

    Raises:
      CheckpointError: as `load`.
    """
    wrong = {}
    for name, marks in load(root).marks.items():
        path = root / name
        data = _bytes(path)
        if not any(_matches(data, mark, contents.get(path)) for mark in marks):
            wrong[name] = _difference(data, marks)
    return wrong


def _settled(root: Path, contents: Mapping[str, Content | None] | None = None) -> Seal:
    """The seal without contents that a finished or killed write has left behind."""
    seal = load(root)
    marks: dict[str, Marks] = {}
    for name, listed in seal.marks.items():
        if len(listed) == 1:
            marks[name] = listed
            continue
        data = _bytes(root / name)
        content = (contents or {}).get(name)
        now = [mark for mark in listed if _matches(data, mark, content)]
        # What matches nothing is damaged, and stays so.
        remaining = now[-1:] or listed
        if tuple(remaining) != NOTHING:
            marks[name] = tuple(remaining)
    return seal._replace(marks=marks)


def _store(root: Path, seal: Seal, changes: Mapping[str, Marks]) -> None:
    """Writes a seal with other entries."""
    marks = dict(sorted({**seal.marks, **changes}.items()))
    body = {"format": FORMAT, MARK: seal.run, "files": {name: list(listed) for name, listed in marks.items()}}
    write_signed(root / NAME, body)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps other processes from changing the seal; where the file system has no locks, the run's own lock has to."""
    handle = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # what a checkpoint already covers must survive a power failure


def _bytes(path: Path, *, at_most: int | None = files.LINES_SIZE) -> bytes | None:
    # A link that leads nowhere is no file either.
    return files.read_whole(path, at_most=at_most) if path.exists() else None


def _mark(data: bytes, *, grows: bool = False) -> Mark:
    return Mark(len(data), hashlib.sha256(data).hexdigest(), grows)


def _matches(data: bytes | None, mark: Mark | None, content: Content | None) -> bool:
    if data is None or mark is None:
        return data is None and mark is None
    if content is not None:
        data = content(data)
    if mark.grows:
        data = data[: mark.size]
    return len(data) == mark.size and hashlib.sha256(data).hexdigest() == mark.sha256


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _is_below(name: str, folders: Iterable[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def _difference(data: bytes | None, marks: Marks) -> str:
    """How a file differs from what it may hold."""
    if marks == NOTHING:
        return "the run did not write it"
    if data is None:
        return "it is gone"
    sizes = sorted({mark.size for mark in marks if mark is not None})
    if len(sizes) == 1 and len(data) != sizes[0]:
        return f"it {files.wrong_size(len(data), sizes[0])}"
    return "it has changed: its SHA-256 differs"


def _damaged(path: Path, root: Path, data: bytes | None, marks: Marks) -> CheckpointError:
    return CheckpointError(
        "a file of the run is damaged", where=str(path), why=_difference(data, marks), remedy=remedy_for(root)
    )


def _unusable(root: Path, why: str) -> CheckpointError:
    return CheckpointError("the seal of a run cannot be used", where=str(root), why=why, remedy=remedy_for(root))
