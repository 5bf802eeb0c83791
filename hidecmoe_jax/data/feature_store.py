"""Pictures on disk as the vision tower takes them or gives them, so that no picture is decoded twice.

Every entry is a file of its own, named by a digest of everything that its bytes depend on: the content of the picture,
how it is decoded and made square, and for patches also the tower's weights and the program that ran. An entry is
written under a name of its own and renamed, so two processes may share a folder. It begins with the SHA-256 of its
bytes; one that does not agree is removed and made again.

    entry = magic (8 bytes), length of the content (8), SHA-256 of the content (32), zeros up to 64, content
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hidecmoe_jax.core.paths import cache_folder

_MAGIC = b"hidecmf1"
_HEADER = struct.Struct("<8sQ32s16x")
_SUFFIX = ".feature"
_PARTIAL = ".part"
_STALE_SECONDS = 24 * 3600  # a partial file of this age belongs to no process that still writes it
_SPARE = 2**30  # bytes of the disk that are left to everything else, such as the checkpoints of a run


@dataclass(frozen=True)
class FeatureCache:
    """What of the pictures is stored on disk.

    Attributes:
      keep: `pixels` (uint8, before the tower), `patches` (what the tower gives, in the compute dtype), `none`, or
        `auto`: the smaller of both, for data whose patches exceed `base.feature_gib`.
      folder: where; None for `features` in the user's cache folder.
      gib: most that the folder may hold. Entries that were not used for the longest time make room; those that this
        process has used stay.
    """

    keep: Literal["auto", "pixels", "patches", "none"] = "auto"
    folder: str | None = None
    gib: float = 16.0

    def __post_init__(self):
        if not self.gib > 0:
            raise ValueError(f"gib {self.gib} must be above 0; keep: none stores nothing")

    def open(self, note: Callable[[str], None]) -> FeatureStore | None:
        """The store of these settings; None where nothing is stored, also where the folder cannot be written.

        Args:
          note: called with a line for the user, at most once for every kind of trouble.
        """
        if self.keep == "none":
            return None
        folder = Path(self.folder) if self.folder else cache_folder() / "features"
        return FeatureStore(folder.absolute(), int(self.gib * 2**30), note, keep=self.keep)


def entry_name(facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts that are plain JSON values."""
    plain = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


class FeatureStore:
    """A folder of entries with a limit of its size; threads and processes may share it.

    A cache never ends a run: what cannot be read is absent, what cannot be written is not stored.
    """

    def __init__(self, folder: Path, limit: int, note: Callable[[str], None], *, keep: str = "auto"):
        self.folder = folder
        self.limit = limit
        self.note = note
        self.keep = keep
        self.damaged = 0
        self.writes = True
        self._used: set[str] = set()
        self._digests: dict[tuple, str] = {}
        self._of_objects: dict[int, tuple[Any, Any]] = {}
        self._held: int | None = None
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def picture_digest(self, path: str) -> str | None:
        """SHA-256 of a picture's bytes, once for every state of the file; None where it cannot be read."""
        try:
            state = os.stat(path)
            # Of a pipe or a device nothing is read: decoding refuses it.
            if not os.path.isfile(path):
                return None
            key = (path, state.st_size, state.st_mtime_ns, state.st_ino)
            if key not in self._digests:
                with open(path, "rb") as file:
                    self._digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
        return self._digests[key]

    def once(self, source: Any, compute: Callable[[], Any]) -> Any:
        """A value that depends on an object alone, computed at the first use of that object."""
        if id(source) not in self._of_objects:
            # The object is stored as well: its id is then not used for another one.
            self._of_objects[id(source)] = (source, compute())
        return self._of_objects[id(source)][1]

    def read(self, name: str, size: int) -> np.ndarray | None:
        """Content of an entry, uint8 [size], mapped from its file; None where there is none, or a damaged one."""
        path = self._path(name)
        try:
            entry = np.memmap(path, np.uint8, "r")
        except OSError:
            return None
        except ValueError:
            self._drop(path, "the file is empty")
            return None
        content = entry[_HEADER.size :]
        if not _is_whole(entry, content, size):
            self._drop(path, "its checksum is not that of its bytes")
            return None
        self._touch(name, path)
        return content

    def write(self, name: str, *parts: np.ndarray) -> None:
        """Stores arrays one after the other as an entry; does nothing where there is no room."""
        views = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]
        content = b"".join(views)
        size = _HEADER.size + len(content)
        path = self._path(name)
        if not self._make_room(size):
            return
        # Of this process and call alone, so that two writers of an entry do not meet.
        partial = path.with_name(f"{name}.{os.getpid()}.{uuid.uuid4().hex}{_PARTIAL}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(_HEADER.pack(_MAGIC, len(content), hashlib.sha256(content).digest()))
                file.write(content)
            os.replace(partial, path)
        except OSError as error:
            # Where nothing could be written there is nothing to remove either.
            with contextlib.suppress(OSError):
                partial.unlink()
            self._stop_writing(error.strerror or str(error))
            return
        with self._lock:
            self._used.add(name)
            self._held += size

    def _path(self, name: str) -> Path:
        # Folders of a 256th of the entries each: some file systems are slow with many names in one.
        return self.folder / name[:2] / f"{name}{_SUFFIX}"

    def _touch(self, name: str, path: Path) -> None:
        """Marks an entry as used now; by its time entries make room for others."""
        if name in self._used:
            return
        # A folder that others wrote may be read without that.
        with contextlib.suppress(OSError):
            os.utime(path)
        with self._lock:
            self._used.add(name)

    def _drop(self, path: Path, why: str) -> None:
        """Removes a damaged entry."""
        with self._lock:
            self.damaged += 1
        self._say("damaged", f"feature cache: {path} is damaged ({why}); such entries are made again")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._stop_writing(error.strerror or str(error))

    def _make_room(self, size: int) -> bool:
        """Whether an entry of `size` bytes may be written, after the oldest entries were removed for it."""
        with self._lock:
            if not self.writes:
                return False
            if self._held is None:
                self._held = sum(held for _, held, _ in self._entries())
            if self._held + size > self.limit:
                self._evict(self._held + size - self.limit)
            fits = self._held + size <= self.limit
        if not fits:
            self._stop_writing(f"it holds {self._held:,} of {self.limit:,} bytes, all of them in use")
            return False
        existing = next(place for place in (self.folder, *self.folder.parents) if place.exists())
        free = shutil.disk_usage(existing).free
        if free < size + _SPARE:
            self._stop_writing(f"{free:,} bytes of the disk are free, and {_SPARE:,} are left to other files")
            return False
        return True

    def _evict(self, excess: int) -> None:
        """Removes entries that this process has not used, oldest first, and a tenth of the limit more than needed."""
        aim = self._held - excess - self.limit // 10
        for _, held, path in sorted(self._entries()):
            if self._held <= aim:
                return
            if path.name.removesuffix(_SUFFIX) in self._used:
                continue
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue
            self._held -= held

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Time, bytes and path of every entry; partial files of dead processes are removed."""
        entries = []
        for path in self.folder.glob("??/*"):
            try:
                state = path.stat()
                if path.suffix == _SUFFIX:
                    entries.append((state.st_mtime, state.st_size, path))
                elif path.suffix == _PARTIAL and time.time() - state.st_mtime > _STALE_SECONDS:
                    path.unlink()
            # Another process has removed it in the meantime.
            except OSError:
                continue
        return entries

    def _stop_writing(self, why: str) -> None:
        """Stores nothing any more; says so once."""
        self.writes = False
        self._say(
            "full",
            f"feature cache: nothing more is stored in {self.folder} ({why}); pictures that are not in it are decoded "
            "again; --set base.feature_cache.gib=GIB or base.feature_cache.folder=DIR gives it more room",
        )

    def _say(self, kind: str, text: str) -> None:
        """Notes a kind of trouble once."""
        with self._lock:
            if kind in self._said:
                return
            self._said.add(kind)
        self.note(text)


def _is_whole(entry: np.ndarray, content: np.ndarray, size: int) -> bool:
    """Whether an entry has the size and the checksum that its header states."""
    if len(content) != size:
        return False
    magic, length, digest = _HEADER.unpack(entry[: _HEADER.size].tobytes())
    if magic != _MAGIC or length != size:
        return False
    return hashlib.sha256(content).digest() == digest
