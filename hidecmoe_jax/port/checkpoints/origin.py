"""Where a base model came from: every file of every source, weights and settings alike, by size and SHA-256.

Files are hashed once, before the first weight is read, and must be the very same files at the end: a base is never made
of two states of one source, and its record never names another file than the one that was read.
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
    """Everything that is read of a source: its weights, then its settings."""
    return (*source.files, *settings_files(source.path))


def stamps(sources: Sequence[Source]) -> Stamps:
    """Size, times and inode of every file; the time of a file's change cannot be set back by its owner."""
    found = {file: file.stat() for source in sources for file in files_of(source)}
    return {file: (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for file, stat in found.items()}


def refuse_changed(before: Stamps) -> None:
    """Raises CheckpointError where a file is not the one that was stamped."""
    for file, stamp in before.items():
        stat = file.stat() if file.exists() else None
        if stat is None or stamp != (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino):
            raise CheckpointError(
                "a source changed while it was converted",
                where=str(file),
                why="it is gone" if stat is None else "size, time or inode differ from those at the beginning",
                remedy="begin again when nothing else writes there; what was written so far was a mixture",
            )


def record(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """One entry a source, in their order: role, folder, the hub's commit, and name -> size and SHA-256 of its files."""
    entries = [{"role": one.role, "folder": one.path.name, "revision": one.revision, "files": {}} for one in sources]
    pairs = [(entry, file) for entry, one in zip(entries, sources, strict=True) for file in files_of(one)]
    for entry, file in tqdm(pairs, desc="source digests", leave=False, disable=None):
        entry["files"][file.name] = {"size": file.stat().st_size, "sha256": file_digest(file)}
    return entries
