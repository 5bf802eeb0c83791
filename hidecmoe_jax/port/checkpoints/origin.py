"""Provenance of a base model: size and SHA-256 of every source file, weights and settings alike.

Files are hashed once, before the first weight is read, and must be unchanged at the end. So a base is never made from
two states of one source, and its record never names another file than the one that was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.data.images import file_digest
from hidecmoe_jax.port.checkpoints.source import Source, settings_files

Stamps = Mapping[Path, tuple[int, ...]]


def files_of(source: Source) -> tuple[Path, ...]:
    """Every file that is read of a source: its weights, then its settings."""
    return (*source.files, *settings_files(source.path))


def stamps(sources: Sequence[Source]) -> Stamps:
    """Size, times and inode of every file of the sources."""
    table = {}
    for source in sources:
        for file in files_of(source):
            table[file] = _stamp(file)
    return table


def _stamp(file: Path) -> tuple[int, ...]:
    stat = file.stat()
    # ctime is compared as well, because an owner can set mtime back but not ctime.
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def refuse_changed(before: Stamps) -> None:
    """Raises CheckpointError if a file is missing or no longer has its stamp."""
    for file, stamp in before.items():
        if file.exists() and stamp == _stamp(file):
            continue
        raise CheckpointError(
            "a source changed while it was converted",
            where=str(file),
            why="size, time or inode differ from those at the beginning" if file.exists() else "it is gone",
            remedy="begin again when nothing else writes there; what was written so far was a mixture",
        )


def record(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """One entry a source, in order: role, folder, the hub's commit, and size and SHA-256 of each file by name."""
    entries: list[dict[str, Any]] = []
    pending: list[tuple[dict[str, Any], Path]] = []
    for source in sources:
        files: dict[str, Any] = {}
        entry = {"role": source.role, "folder": source.path.name, "revision": source.revision, "files": files}
        entries.append(entry)
        pending += [(files, file) for file in files_of(source)]
    # Hashing takes minutes at 7B, so one progress bar counts the files of all sources.
    for files, file in tqdm(pending, desc="source digests", leave=False, disable=None):
        files[file.name] = {"size": file.stat().st_size, "sha256": file_digest(file)}
    return entries
