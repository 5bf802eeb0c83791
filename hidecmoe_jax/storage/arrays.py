"""Groups of flat numpy arrays in one sealed folder, through Orbax.

Orbax writes the arrays (`<folder>/<group>/...`); `meta.json` beside them lists every array's dtype, shape and
SHA-256 and the caller's own facts; MANIFEST.json seals all of it and comes last. Zero-size arrays and empty
groups, which Orbax refuses, live in the list alone. Reading asks Orbax for exactly what the list says and
checks what comes back, because Orbax casts, pads and passes over flipped bits in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core import trees
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
      NumericsError: an array holds NaN or infinity; nothing that is broken is ever saved.
    """
    host: Groups = {}
    for group, flat in groups.items():
        check_name(group, "a group's name")
        host[group] = {path: _array(leaf, f"{group}/{path}") for path, leaf in flat.items()}
    bad = trees.all_finite(host)
    if bad is not None:
        raise NumericsError(
            "refused to save numbers that are not finite",
            where=bad,
            why="the array holds NaN or infinity; what was saved before is kept",
            remedy="go back with --resume and lower the learning rate (--set train.rate=...)",
        )
    return host


def write_store(folder: Path, groups: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any]) -> None:
    """Writes groups and meta into the new folder `folder`, seals it, opens it again and compares every byte.

    The caller renames the folder to its final name afterwards; until then it is nobody's checkpoint.

    Raises:
      NumericsError: an array is not finite.
      ResourceError: less than twice the state is free on the disk, or the disk ran full.
      CheckpointError: an array cannot be stored, or does not come back as it went in.
    """
    host = on_host(groups)
    size = trees.nbytes(host)
    check_space(folder.parent, 2 * size)
    with disk_errors("could not save", folder, needed=2 * size):
        full = {group: {p: a for p, a in flat.items() if a.size} for group, flat in host.items()}
        full = {group: flat for group, flat in full.items() if flat}
        if full:
            from orbax.checkpoint import v1 as ocp

            with quiet_orbax():
                ocp.save_checkpointables(folder.absolute(), full)
        else:
            folder.mkdir()
        crash_point("mid_save", folder.name)
        write_json(folder / META, {"arrays": describe(host), "meta": dict(meta)})
        write_manifest(folder)
    read_store(folder)


def read_store(folder: Path) -> tuple[Groups, dict[str, Any]]:
    """Returns `(groups, meta)` of a sealed folder, after checking every file and every array.

    Raises:
      CheckpointError: the folder is damaged or incomplete; the message names the file.
      ResourceError: memory or disk ran out under Orbax.
    """
    arrays, meta = read_facts(folder)
    empty = {group: {p: np.empty(s["shape"], s["dtype"]) for p, s in flat.items()} for group, flat in arrays.items()}
    wanted = {group: {p: a for p, a in flat.items() if a.size} for group, flat in empty.items()}
    wanted = {group: flat for group, flat in wanted.items() if flat}
    loaded: Mapping[str, Any] = {}
    if wanted:
        from orbax.checkpoint import v1 as ocp

        with disk_errors("could not read a checkpoint", folder, needed=0), quiet_orbax():
            loaded = ocp.load_checkpointables(folder.absolute(), wanted)
    groups = {g: {p: np.asarray(loaded[g][p]) if a.size else a for p, a in flat.items()} for g, flat in empty.items()}
    if describe(groups) != arrays:
        old, new = trees.flatten(arrays), trees.flatten(describe(groups))
        wrong = sorted(path for path in old if old[path] != new.get(path))
        raise CheckpointError(
            "a checkpoint does not come back as it was written",
            where=str(folder),
            why=f"these differ: {', '.join(wrong[:8]) or 'the list of arrays'}",
        )
    return groups, meta


def read_facts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `({group: {path: {dtype, shape, sha256}}}, meta)` of a sealed folder, arrays left on disk."""
    verify(folder)
    facts = read_json(folder / META)
    return facts["arrays"], facts["meta"]


def describe(groups: Groups) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns dtype, shape and SHA-256 of every array."""
    return {
        group: {
            path: {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": trees.digests(array)[""]}
            for path, array in flat.items()
        }
        for group, flat in groups.items()
    }


def _array(leaf: Any, where: str) -> np.ndarray:
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        raise CheckpointError("a random key is not saved", where=where, remedy="derive it again with key_for")
    array = np.asarray(leaf)
    if array.dtype.kind in "OUSMm":
        raise CheckpointError("only numeric arrays are saved", where=where, why=f"its dtype is {array.dtype}")
    return array
