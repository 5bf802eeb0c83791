"""Weights of large models: one Orbax checkpoint per leaf, in chunks of which every device reads its own shard.

One leaf at a time keeps a conversion's or a restore's memory to one leaf, and every leaf's folder appears complete or
not at all. Chunks are not compressed (weights do not compress).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.storage.orbax_log import quiet_orbax

FOLDER = "weights"
_CHUNK_BYTES = 64 * 2**20


def write_leaf(folder: Path, path: str, array: np.ndarray) -> None:
    """Writes one leaf below `folder`; a view of a file is written without a copy of the whole."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_ocdbt = False  # plain files: a chunk is then found without a shared database
    context.array.saving.use_compression = False
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    leaf_folder = folder / _name(path)
    with context, quiet_orbax():
        ocp.save(leaf_folder.absolute(), {"leaf": array})


def read_leaves(folder: Path, shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The leaves below `folder`, each with its sharding in `places`; every device reads its own shard.

    Raises:
      CheckpointError: a leaf is missing, left over, damaged, or of another shape.
    """
    from orbax.checkpoint import v1 as ocp

    names = {_name(path): path for path in shapes}
    stored = {entry.name for entry in folder.iterdir()}
    expected = set(names)
    # Before any leaf is read: with a wrong config reading would fail only after large ones.
    if stored != expected:
        wrong = [f"missing {names[name]}" for name in sorted(expected - stored)]
        wrong += [f"left over {name}" for name in sorted(stored - expected)]
        why = ", ".join(wrong[:8])
        raise CheckpointError("the stored leaves are not those of the config", where=str(folder), why=why)
    leaves = {}
    for name, path in names.items():
        leaf_folder = folder / name
        shape = shapes[path]
        place = places[path]
        try:
            with quiet_orbax():
                leaves[path] = _read(ocp, leaf_folder.absolute(), path, shape, place)
        except CheckpointError:
            raise
        except Exception as error:  # a truncated chunk makes Orbax raise a bare Exception
            where = f"{folder}: {path}"
            raise CheckpointError("cannot read a stored leaf", where=where, why=str(error)[:300]) from error
    return leaves


def _read(ocp: Any, leaf_folder: Path, path: str, shape: tuple[int, ...], place: Any) -> jax.Array:
    stored = ocp.metadata(leaf_folder).metadata["leaf"]
    stored_shape = list(stored.shape)
    expected_shape = list(shape)
    if stored_shape != expected_shape:
        where = f"{leaf_folder.parent}: {path}"
        why = f"expected {expected_shape}, found {stored_shape}"
        raise CheckpointError("a stored leaf has another shape", where=where, why=why)
    wanted = jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=place)
    loaded = ocp.load(leaf_folder, {"leaf": wanted})
    return loaded["leaf"]


def _name(path: str) -> str:
    return path.replace("/", ".")
