"""Pictures of one command: each is opened once and decoded once, and gives all that the command needs of it.

A check, a fingerprint, the comparison of near-duplicates and the vision tower all read the same files. So whoever reads
a picture first takes the digest of its bytes, decodes it, and, as far as the command needs them, its look and its
pixels as the tower takes them. What stays in memory is small (a digest, a look of 1 kB), but for the pixels, which are
held up to a budget; those beyond it are decoded again where they are needed, from a file whose bytes must still be
those that were read first.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.processes import cores
from hidecmoe_jax.data.images import LIMITS, Limits, header_of, open_file, squared, upright_of
from hidecmoe_jax.data.likeness import Look, look_of, looks
from hidecmoe_jax.models.config import Fit

HELD_GIB = 1.0
MOST_WORKERS = 16  # a worker may hold a decoded picture of 160 MB


@dataclass(frozen=True)
class PictureFacts:
    """What is remembered of a picture file.

    Attributes:
      digest: SHA-256 of its bytes; None where it cannot be opened.
      problem: why it cannot be used, as what and why of an error; None for a sound one.
      look: what near-duplicates are found by; None where nobody asked for it.
    """

    digest: str | None
    problem: tuple[str, str] | None = None
    look: Look | None = None


class Pictures:
    """Reads the pictures of a command; threads may share it.

    Args:
      limits: what pictures may be.
      decode: whether reading decodes a picture, which shows damage, or looks at its header alone.
      workers: pictures that are read at once; None for one on every core, at most 16.
      square: side in px and rule of the pixels that the vision tower takes; None where no tower will run.
      gib: memory for these pixels.
      most_looks: different pictures whose look is taken, the first ones.
    """

    def __init__(
        self,
        limits: Limits = LIMITS,
        *,
        decode: bool = True,
        workers: int | None = None,
        square: tuple[int, Fit] | None = None,
        gib: float = HELD_GIB,
        most_looks: int = 0,
    ):
        self.limits = limits
        self.decode = decode
        self.workers = workers or min(cores(), MOST_WORKERS)
        self.square = square
        self.most_looks = most_looks
        self._room = int(gib * 2**30)
        self._facts: dict[str, PictureFacts] = {}
        self._sound: dict[str, PictureFacts] = {}
        self._pixels: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    @classmethod
    def joined(cls, others: Sequence[Pictures]) -> Pictures:
        """All that several have read, as one; they must have been made with the same settings. Pixels are shared."""
        first = others[0]
        whole = cls(first.limits, decode=first.decode, workers=first.workers, square=first.square)
        for each in others:
            whole._facts |= each._facts
            whole._sound |= each._sound
            whole._pixels |= each._pixels
        return whole

    def read(self, paths: Iterable[str]) -> dict[str, PictureFacts]:
        """The facts of picture files by path; files that were read before are not opened."""
        paths = list(dict.fromkeys(paths))
        unread = [path for path in paths if path not in self._facts]
        # Decoding and hashing run outside the interpreter's lock, so threads help.
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            self._facts.update(zip(unread, pool.map(self._read, unread), strict=True))
        return {path: self._facts[path] for path in paths}

    def digest(self, path: str) -> str | None:
        """SHA-256 of a picture's bytes as they were read; None for a file that was not."""
        facts = self._facts.get(path)
        return None if facts is None else facts.digest

    def looks(self, paths: Sequence[str]) -> list[Look]:
        """The looks of pictures, in their order; those that were not taken while reading are decoded now.

        Raises:
          DataError: as `images.load`.
        """
        taken = {path: self._facts[path].look for path in paths if path in self._facts}
        missing = [path for path in dict.fromkeys(paths) if taken.get(path) is None]
        taken |= zip(missing, looks(missing, self.limits, workers=self.workers), strict=True)
        return [taken[path] for path in paths]

    def pixels(self, path: str, side: int, fit: Fit) -> np.ndarray:
        """Pixels of a picture, uint8 [side, side, 3]: those that are held, or decoded now.

        Raises:
          DataError: as `images.load`; or the file has changed since it was read.
        """
        digest = self.digest(path)
        is_held = digest is not None and self.square == (side, fit)
        held = self._pixels.get(digest) if is_held else None
        if held is not None:
            return held
        # One opening for both: a file that is put in its place in between would not be noticed.
        with open_file(path) as file:
            if digest is not None:
                _require_digest(path, file, digest)
            pixels = squared(upright_of(path, file, limits=self.limits), side, fit=fit)
        if is_held:
            self._hold(digest, pixels)
        return pixels

    def _read(self, path: str) -> PictureFacts:
        digest = None
        try:
            with open_file(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                facts = self._sound.get(digest)
                # Another file may hold the same picture.
                if facts is None:
                    file.seek(0)
                    facts = PictureFacts(digest, look=self._examined(path, file, digest))
                    self._sound[digest] = facts
        except DataError as error:
            return PictureFacts(digest, (error.what, error.why))
        return facts

    def _examined(self, path: str, file: BinaryIO, digest: str) -> Look | None:
        """The look of an opened picture, if it is wanted; its pixels are held.

        Raises:
          DataError: it cannot be used.
        """
        if not self.decode:
            header_of(path, file, self.limits)
            return None
        image = upright_of(path, file, limits=self.limits)
        if self.square is not None and self._has_room():
            side, fit = self.square
            self._hold(digest, squared(image, side, fit=fit))
        return look_of(image) if len(self._sound) < self.most_looks else None

    def _has_room(self) -> bool:
        side, _ = self.square
        return self._room >= 3 * side * side

    def _hold(self, digest: str, pixels: np.ndarray) -> None:
        with self._lock:
            if digest not in self._pixels and pixels.nbytes <= self._room:
                self._pixels[digest] = pixels
                self._room -= pixels.nbytes


def _require_digest(path: str, file: BinaryIO, digest: str) -> None:
    """Refuses an opened file with other bytes than were read first; leaves it at its start."""
    now = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    if now != digest:
        raise DataError(
            "a picture has changed while this command ran",
            where=path,
            why=f"its SHA-256 was {digest[:12]}... when the records were checked, and is {now[:12]}... now",
            remedy="leave the pictures alone until the command is done, and give it again",
        )
