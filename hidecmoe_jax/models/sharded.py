"""Weights of large models: one small Orbax checkpoint for every leaf, in pieces that any mesh can read its share of.

A leaf at a time keeps what a conversion or a restore holds in memory to one leaf, and every leaf's folder appears
whole or not at all. Pieces are stored as they are (weights do not compress).
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
_PIECE = 64 * 2**20


def write_leaf(folder: Path, path: str, array: np.ndarray) -> None:
    """Writes one leaf below `folder`; a view of a file is written without a copy of the whole."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_ocdbt = False
    context.array.saving.use_compression = False
    context.array.saving.storage_options.chunk_byte_size = _PIECE
    with context, quiet_orbax():
        ocp.save((folder / _name(path)).absolute(), {"leaf": array})


def read_leaves(folder: Path, shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The leaves below `folder`, each laid out as `places` says, every device reading its own share.

    Raises:
      CheckpointError: a leaf is missing, left over, damaged, or of another shape.
    """
    from orbax.checkpoint import v1 as ocp

    names = {_name(path): path for path in shapes}
    found = {entry.name for entry in folder.iterdir()}
    if found != set(names):
        wrong = [f"missing {names[name]}" for name in sorted(set(names) - found)]
        wrong += [f"left over {name}" for name in sorted(found - set(names))]
        raise CheckpointError(
            "the stored leaves are not those of the config", where=str(folder), why=", ".join(wrong[:8])
        )
    leaves = {}
    for name, path in names.items():
        home = (folder / name).absolute()
        try:
            with quiet_orbax():
                leaves[path] = _read(ocp, home, path, shapes[path], places[path])
        except CheckpointError:
            raise
        except Exception as error:  # a piece that was cut off makes Orbax raise a bare Exception
            raise CheckpointError(
                "cannot read a stored leaf", where=f"{folder}: {path}", why=str(error)[:300]
            ) from error
    return leaves


def _read(ocp: Any, home: Path, path: str, shape: tuple[int, ...], place: Any) -> jax.Array:
    stored = ocp.metadata(home).metadata["leaf"]
    if tuple(stored.shape) != tuple(shape):
        why = f"expected {list(shape)}, found {list(stored.shape)}"
        raise CheckpointError("a stored leaf has another shape", where=f"{home.parent}: {path}", why=why)
    wanted = jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=place)
    return ocp.load(home, {"leaf": wanted})["leaf"]


def _name(path: str) -> str:
    return path.replace("/", ".")
