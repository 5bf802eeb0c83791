"""Checksums of a folder: MANIFEST.json with name, size and SHA-256 of every file, written last.

Orbax restores a flipped bit without an error (its array files have no checksums), so a folder counts as complete only
if it has a manifest and every file agrees with it. The manifest contains a digest of itself, so that damage to the
manifest is not reported as damage to the files.
"""

from __future__ import annotations

import hashlib
import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.storage.files import read_json, write_json, wrong_size

NAME = "MANIFEST.json"
FORMAT = 1
FREE = ("README.md", ".*")
"""Files of an export that may change after its manifest was written: the card, and those of hubs and git."""


def write_manifest(folder: Path) -> str:
    """Seals a finished folder: syncs every file, then writes MANIFEST.json; returns the manifest's digest.

    Raises:
      CheckpointError: the folder holds a symbolic link, whose target could change without a trace.
    """
    files = {}
    # Everything is durable before the manifest exists: a crash in between leaves an unsealed folder.
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
    wrong = [f"{name} {fault}" for name, fault in _faults(folder, manifest, exempt).items() if fault]
    if wrong:
        raise CheckpointError("a checkpoint is damaged", where=str(folder), why="; ".join(wrong), remedy=remedy)
    return manifest["digest"]


def faults(folder: Path, *, exempt: tuple[str, ...] = ()) -> dict[str, str]:
    """What is wrong with every file of a sealed folder, nothing (`""`) for a whole one; arguments as of `verify`.

    Raises:
      CheckpointError: the manifest is damaged or of a newer version.
    """
    return _faults(folder, _read(folder, None), exempt)


def _faults(folder: Path, manifest: dict[str, Any], exempt: tuple[str, ...]) -> dict[str, str]:
    present = _without(_files(folder), exempt)
    sealed = _without(manifest["files"], exempt)
    wrong = {name: "is missing" for name in sealed if name not in present}
    wrong |= {name: "is extra, the manifest does not list it" for name in present if name not in sealed}
    for name in sorted(set(sealed) & set(present)):
        wrong[name] = _difference(present[name], sealed[name])
    return wrong


def _without(files: dict[str, Any], exempt: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in files.items() if not any(fnmatchcase(name, each) for each in exempt)}


def _difference(path: Path, sealed: dict[str, Any]) -> str:
    """How a file differs from its entry in the manifest, in words behind its name; nothing if it does not."""
    size = path.stat().st_size
    # Sizes first: they name the damage better than a checksum, and cost nothing.
    if size != sealed["size"]:
        return wrong_size(size, sealed["size"])
    return "has changed: its SHA-256 differs" if _entry(path) != sealed else ""


def _read(folder: Path, remedy: str | None) -> dict[str, Any]:
    path = folder / NAME
    try:
        manifest = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(error.what, where=str(path), why=error.why, remedy=remedy) from error
    # Before the digest: a newer version may compute it over other fields.
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
    """All regular files below a folder except the manifest, by relative POSIX path, sorted."""
    files = {}
    for above, folders, names in os.walk(folder):
        for name in [*names, *folders]:
            path = Path(above, name)
            if path.is_symlink():
                raise CheckpointError(
                    "a checkpoint holds a symbolic link",
                    where=str(path),
                    why="the target of a link can change without a trace",
                    remedy="put the file itself there",
                )
            if name in names and not path.is_file():
                raise CheckpointError(
                    "a checkpoint holds what is no file", where=str(path), why="a pipe, a device or a socket",
                    remedy="remove it",
                )  # fmt: skip
            relative = path.relative_to(folder).as_posix()
            if name in names and relative != NAME:
                files[relative] = path
    return dict(sorted(files.items()))


def _entry(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "size": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
