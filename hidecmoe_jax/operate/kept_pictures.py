"""Pictures of logged questions, kept for some days under the digest of their bytes."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

PICTURES = "pictures"
_DAY = 86_400.0


@dataclass(frozen=True)
class KeptPictures:
    """The folder `pictures/` of a log: SHA.png, SHA.jpeg and so on.

    Attributes:
      log: folder of the log.
      days: after so many without a question about it, a picture is removed.
    """

    log: Path
    days: float

    @property
    def folder(self) -> Path:
        """Where the pictures lie."""
        return self.log / PICTURES

    def keep(self, path: str | Path, digest: str) -> None:
        """Copies a picture file, or notes that one with the same bytes was asked about again.

        Raises:
          OSError: it cannot be written.
        """
        there = find_picture(self.log, digest)
        if there is not None:
            os.utime(there)
            return
        self.folder.mkdir(exist_ok=True)
        with Image.open(path) as image:
            ending = (image.format or "picture").lower()
        partial = self.folder / f".{digest}.part"
        shutil.copyfile(path, partial)
        os.replace(partial, self.folder / f"{digest}.{ending}")

    def expire(self, now: float | None = None) -> int:
        """Removes what is older than `days`; returns how many.

        Args:
          now: seconds since 1970; by default the clock's.
        """
        oldest = (time.time() if now is None else now) - self.days * _DAY
        removed = 0
        for path in self.folder.glob("*.*"):
            if path.stat().st_mtime < oldest:
                path.unlink()
                removed += 1
        return removed


def find_picture(log: Path, digest: str) -> Path | None:
    """File of a kept picture; None where it was not kept, or is not there any more."""
    return next((log / PICTURES).glob(f"{digest}.*"), None)
