"""A sealed folder that is too large to be hashed at every start is hashed once, and again when a file of it changes.

What was checked is remembered in the user's cache, by size, time and inode of every file and the manifest's own bytes.
A file that changes without any of these is found by `hidecmoe verify`, which hashes everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.core.paths import cache_folder
from hidecmoe_jax.core.printable import printable
from hidecmoe_jax.storage import manifest
from hidecmoe_jax.storage.files import read_json, write_json

LARGE = 2**30  # bytes from which the user is told why it takes time


def verify_once(folder: Path, *, remedy: str) -> None:
    """Checks every byte of a folder that has a manifest, unless it was checked as it is; others are left alone.

    Raises:
      CheckpointError: as `manifest.verify`.
    """
    if not (folder / manifest.NAME).is_file():
        return
    stamps = _stamps(folder)
    note = cache_folder() / "verified" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
    if _remembered(note) == stamps:
        return
    size = sum(stamp[0] for stamp in stamps.values())
    if size >= LARGE:
        print(printable(f"note: every byte of {folder} is checked once ({size / LARGE:.1f} GiB)"), file=sys.stderr)
    manifest.verify(folder, remedy=remedy)
    # A cache that cannot be written costs time and nothing else.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, stamps)


def _stamps(folder: Path) -> dict[str, Any]:
    """Size, time and inode of every file below a folder."""
    stamps = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            about = path.stat()
            stamps[path.relative_to(folder).as_posix()] = [about.st_size, about.st_mtime_ns, about.st_ino]
    return stamps


def _remembered(note: Path) -> dict[str, Any] | None:
    try:
        return read_json(note)
    except (CheckpointError, OSError):
        return None
