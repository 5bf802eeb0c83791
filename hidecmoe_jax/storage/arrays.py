"""Groups of named numpy arrays in one sealed folder, stored by Orbax.

Orbax writes the arrays (`<folder>/<group>/...`). `meta.json` beside them lists dtype, shape and SHA-256 of every array
and holds the caller's metadata; MANIFEST.json seals everything and is written last. Arrays of size zero and empty
groups, which Orbax refuses, are in the list alone. Reading requests exactly what the list names and compares the
result, because Orbax casts, pads and returns flipped bits without an error.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core import processes, trees
from hidecmoe_jax.core.errors import CheckpointError, NumericsError
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.files import check_space, disk_errors, read_json, write_json
from hidecmoe_jax.storage.manifest import verify, write_manifest
from hidecmoe_jax.storage.orbax_log import quiet_orbax

Groups = dict[str, dict[str, np.ndarray]]
META = "meta.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def check_name(name: str, kind: str) -> str:
    """Returns `name` where it is safe as a file name on any system.

    Args:
      kind: what is named, for the error.

    Raises:
      CheckpointError: it is not of the form `[a-z0-9][a-z0-9_-]{0,63}`.
    """
    if not _NAME.fullmatch(name):
        raise CheckpointError(
            f"{kind} cannot be used as a folder name",
            where=repr(name[:80]),
            why="allowed are 1 to 64 of a-z, 0-9, _ and -, starting with a letter or digit",
            remedy="rename it",
        )
    return name


def on_host(groups: Mapping[str, Mapping[str, Any]]) -> Groups:
    """Returns `{group: {path: numpy array}}`, copied from the devices.

    Raises:
      CheckpointError: a group's name is unsafe, or a leaf is not a numeric array.
      NumericsError: an array holds NaN or infinity.
    """
    host: Groups = {}
    for group, flat in groups.items():
        check_name(group, "a group's name")
        host[group] = {path: _array(leaf, f"{group}/{path}") for path, leaf in flat.items()}
    # A checkpoint with NaN would pass every later check, so it is refused before it exists.
    path = trees.all_finite(host)
    if path is not None:
        raise NumericsError(
            "refused to save numbers that are not finite",
            where=path,
            why="the array holds NaN or infinity; earlier checkpoints are unchanged",
            remedy="go back with --resume and lower the learning rate (--set tune.rate=...)",
        )
    return host


def write_store(folder: Path, groups: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any]) -> None:
    """Writes groups and metadata into the new folder `folder`, seals it, reads it back and compares every byte.

    The caller renames the folder to its final name afterwards; a folder with another name counts as unfinished.

    Raises:
      NumericsError: an array is not finite.
      ResourceError: less than twice the state is free on the disk, or the disk ran full.
      CheckpointError: an array cannot be stored, or reads back different from what was written.
    """
    host = on_host(groups)
    size = trees.nbytes(host)
    check_space(folder.parent, 2 * size)
    with disk_errors("could not save", folder, needed=2 * size):
        stored = _without_empty(host)
        if stored:
            _save(folder.absolute(), stored)
        else:
            folder.mkdir()
        crash_point("mid_save", folder.name)
        write_json(folder / META, {"arrays": describe(host), "meta": dict(meta)})
        write_manifest(folder)
    # Orbax may write something else than it was given, so what counts is what can be read.
    read_store(folder)


def _save(folder: Path, groups: Groups) -> None:
    """Writes the arrays of groups into the new folder `folder`.

    Orbax counts processes: all of them take part in every save, with one path, into which the first one writes.
    """
    from orbax.checkpoint import v1 as ocp

    target = Path(processes.from_first(str(folder)))
    with quiet_orbax():
        ocp.save_checkpointables(target, groups)
    if not processes.is_first():
        shutil.copytree(target, folder)
    processes.wait_for_all("arrays are copied")


def read_store(folder: Path) -> tuple[Groups, dict[str, Any]]:
    """Returns `(groups, meta)` of a sealed folder, after checking every file and every array.

    Raises:
      CheckpointError: the folder is damaged or incomplete; the message names the file.
      ResourceError: memory or disk ran out under Orbax.
    """
    listed, meta = read_facts(folder)
    # Orbax reads into arrays of the listed shapes; those of size zero are complete as they are.
    groups: Groups = {}
    for group, flat in listed.items():
        groups[group] = {path: np.empty(entry["shape"], entry["dtype"]) for path, entry in flat.items()}
    wanted = _without_empty(groups)
    if wanted:
        from orbax.checkpoint import v1 as ocp

        with disk_errors("could not read a checkpoint", folder, needed=0), quiet_orbax():
            loaded = ocp.load_checkpointables(folder.absolute(), wanted)
        for group, flat in wanted.items():
            for path in flat:
                groups[group][path] = np.asarray(loaded[group][path])
    described = describe(groups)
    if described != listed:
        _raise_different(folder, listed, described)
    return groups, meta


def _raise_different(folder: Path, listed: dict, described: dict) -> None:
    before = trees.flatten(listed)
    now = trees.flatten(described)
    wrong = sorted(path for path in before if before[path] != now.get(path))
    raise CheckpointError(
        "a checkpoint reads back different from what was written",
        where=str(folder),
        why=f"these differ: {', '.join(wrong[:8]) or 'the list of arrays'}",
    )


def _without_empty(groups: Groups) -> Groups:
    """The groups without arrays of size zero, and without groups that are empty then."""
    full: Groups = {}
    for group, flat in groups.items():
        arrays = {path: array for path, array in flat.items() if array.size}
        if arrays:
            full[group] = arrays
    return full


def read_facts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `({group: {path: {dtype, shape, sha256}}}, meta)` of a sealed folder without reading its arrays."""
    verify(folder)
    facts = read_json(folder / META)
    return facts["arrays"], facts["meta"]


def describe(groups: Groups) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns dtype, shape and SHA-256 of every array."""
    listed: dict[str, dict[str, dict[str, Any]]] = {}
    for group, flat in groups.items():
        listed[group] = {path: _entry(array) for path, array in flat.items()}
    return listed


def _entry(array: np.ndarray) -> dict[str, Any]:
    digest = trees.digests(array)[""]
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def _array(leaf: Any, where: str) -> np.ndarray:
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        raise CheckpointError("a random key is not saved", where=where, remedy="derive it again with key_for")
    array = np.asarray(leaf)
    # Objects, bytes, text and dates have no bytes that could be compared.
    if array.dtype.kind in "OUSMm":
        raise CheckpointError("only numeric arrays are saved", where=where, why=f"its dtype is {array.dtype}")
    return array
