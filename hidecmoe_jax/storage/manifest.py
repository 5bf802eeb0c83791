"""Our own seal on a folder: name, size and SHA-256 of every file, written last.

Orbax restores a flipped bit without a word (its array files carry no checksum), so a folder counts as whole
only when it has a MANIFEST.json and every file in it agrees. The manifest carries a digest of itself, so that
damage to the seal is not mistaken for damage to the goods.
"""

from __future__ import annotations

import hashlib
import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.storage.files import read_json, write_json

NAME = "MANIFEST.json"
FORMAT = 1


def write_manifest(folder: Path) -> str:
    """Seals a finished folder: syncs every file, then writes MANIFEST.json; returns the manifest's digest.

    Raises:
      CheckpointError: the folder holds a symbolic link, whose target the manifest could not vouch for.
    """
    files = {}
    for name, path in _files(folder).items():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[name] = _entry(path)
    write_json(folder / NAME, {"format": FORMAT, "digest": _digest(files), "files": files})
    return _digest(files)


def verify(folder: Path, *, remedy: str | None = None, exempt: tuple[str, ...] = ()) -> str:
    """Checks every byte of a sealed folder against its manifest; returns the manifest's digest.

    Args:
      folder: a folder sealed by `write_manifest`.
      remedy: what the user can do, e.g. the newest good step and the command that uses it.
      exempt: patterns (as `fnmatch` reads them) of files that may change, go or come after the folder was sealed.

    Raises:
      CheckpointError: names every file that is missing, truncated, changed or extra, the manifest included.
    """
    remedy = remedy or "restore the folder from a copy; nothing in it was loaded"
    if not (folder / NAME).is_file():
        why = "there is no such folder" if not folder.is_dir() else f"{NAME} is missing: incomplete or copied in part"
        raise CheckpointError("a checkpoint is incomplete", where=str(folder), why=why, remedy=remedy)
    manifest = _read(folder, remedy)
    found, wanted = (
        {name: entry for name, entry in files.items() if not any(fnmatchcase(name, pattern) for pattern in exempt)}
        for files in (_files(folder), manifest["files"])
    )
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is extra, nobody sealed it" for name in found if name not in wanted]
    for name in sorted(set(wanted) & set(found)):
        size = found[name].stat().st_size
        if size != wanted[name]["size"]:
            verb = "truncated" if size < wanted[name]["size"] else "longer"
            wrong.append(f"{name} is {verb}: {size} bytes, {wanted[name]['size']} were written")
        elif _entry(found[name]) != wanted[name]:
            wrong.append(f"{name} has changed: its SHA-256 differs")
    if wrong:
        raise CheckpointError("a checkpoint is damaged", where=str(folder), why="; ".join(wrong), remedy=remedy)
    return manifest["digest"]


def _read(folder: Path, remedy: str) -> dict[str, Any]:
    path = folder / NAME
    try:
        manifest = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(error.what, where=str(path), why=error.why, remedy=remedy) from error
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            "a checkpoint was written by a newer version",
            where=str(path),
            why=f"format {version}, this version reads up to {FORMAT}",
            remedy="update the package",
        )
    files = manifest.get("files")
    if version != FORMAT or not isinstance(files, dict) or manifest.get("digest") != _digest(files):
        raise CheckpointError(
            "a checkpoint's manifest is damaged",
            where=str(path),
            why=f"{NAME} has changed: it does not agree with its own digest",
            remedy=remedy,
        )
    return manifest


def _files(folder: Path) -> dict[str, Path]:
    """All regular files below a folder but the manifest, by relative POSIX path, sorted."""
    found = {}
    for above, folders, names in os.walk(folder):
        for name in [*names, *folders]:
            path = Path(above, name)
            if path.is_symlink():
                raise CheckpointError(
                    "a checkpoint holds a symbolic link",
                    where=str(path),
                    why="a link's target cannot be vouched for",
                    remedy="put the file itself there",
                )
            relative = path.relative_to(folder).as_posix()
            if name in names and relative != NAME:
                found[relative] = path
    return dict(sorted(found.items()))


def _entry(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "size": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
