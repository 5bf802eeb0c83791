"""A base model as a folder: `config.json`, its weights, and the tokenizer's files beside them.

Small models keep their leaves by path in `model.safetensors`, large ones in the folder `weights` (`sharded.py`).
Weights are read leaf by leaf and must agree with the config in every path and shape. A narrower stored float (bfloat16)
is widened exactly to the config's `param_dtype`; a wider one is never narrowed on the way in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hidecmoe_jax.core import strict, trees
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.core.sharding import shardings
from hidecmoe_jax.models import sharded
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Model, init_model, model_axes

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def pocket_folder() -> Path:
    """The small model that ships with the package."""
    return Path(__file__).resolve().parents[1] / "pocket"


def base_folder(name: str) -> Path:
    """Folder of a base model: `pocket`, or a path.

    Raises:
      CheckpointError: if it does not exist (a name is never looked up on a network).
    """
    folder = pocket_folder() if name == "pocket" else Path(name)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            "no base model there",
            where=str(folder),
            why=f"{CONFIG} is missing" if folder.is_dir() else "no such directory",
            remedy="give a folder made by `hidecmoe convert`, or 'pocket'",
        )
    return folder


def save_model(model: Model, folder: Path, *, dtype: str | None = None) -> None:
    """Writes config and weights, in `dtype` where given."""
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {path: np.asarray(leaf) for path, leaf in trees.flatten(model.params).items()}
    if dtype is not None:
        leaves = {path: leaf.astype(jnp.dtype(dtype)) for path, leaf in leaves.items()}
    save_tensors(leaves, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(strict.plain(model.config), indent=2) + "\n", encoding="utf-8")


def save_tensors(leaves: Mapping[str, np.ndarray], path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file that is as readable as any other file; the library makes it private to its owner.

    Args:
      notes: goes into the file's header.
    """
    path.touch()
    mode = path.stat().st_mode
    whole = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    save_file(whole, path, metadata=dict(notes) if notes else None)
    path.chmod(mode)


def load_model(folder: Path, *, mesh: Mesh | None = None, **changes) -> Model:
    """Reads a model; `changes` replace fields of its config (say `dtype="bfloat16"`).

    Args:
      mesh: lays every leaf on it by `core.sharding.RULES`; None puts all on the first device.

    Raises:
      CheckpointError: unreadable file, leaves missing or left over, wrong shape, a float wider than `param_dtype`,
        or a value that is not finite; names the tensor.
    """
    path = folder / CONFIG
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot read the model's config", where=str(path), why=str(error)) from error
    config = replace(strict.build(LlavaConfig, stored, str(path)), **changes)
    template = jax.eval_shape(lambda: init_model(config, jax.random.key(0))).params
    where = folder / sharded.FOLDER
    if where.is_dir():
        leaves = _read_sharded(where, config, template, mesh)
    else:
        where = folder / WEIGHTS
        try:
            leaves = load_file(where)
        except (OSError, SafetensorError) as error:
            raise CheckpointError("cannot read the model's weights", where=str(where), why=str(error)) from error
    widened = {name: _widen(name, leaf, jnp.dtype(config.param_dtype)) for name, leaf in leaves.items()}
    bad = _not_finite(widened)
    if bad is not None:
        raise CheckpointError("a weight is not finite", where=f"{where}: {bad}")
    params = jax.tree.map(jnp.asarray, trees.restore_into(template, widened))
    return Model(params if mesh is None else jax.device_put(params, _places(config, template, mesh)), config)


def _read_sharded(folder: Path, config: LlavaConfig, template: dict, mesh: Mesh | None) -> dict[str, jax.Array]:
    shapes = {path: leaf.shape for path, leaf in trees.flatten(template).items()}
    if mesh is None:
        places = dict.fromkeys(shapes, SingleDeviceSharding(jax.devices()[0]))
    else:
        places = trees.flatten(_places(config, template, mesh))
    return sharded.read_leaves(folder, shapes, places)


def _places(config: LlavaConfig, template: dict, mesh: Mesh) -> dict:
    return shardings(model_axes(config), template, mesh)


def _not_finite(leaves: dict) -> str | None:
    """The first leaf that is not finite; arrays on devices are judged there, whoever holds which part."""
    on_device = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, jax.Array)}
    bad = next((name for name, fine in _finite(on_device).items() if not fine), None) if on_device else None
    return bad or trees.all_finite({name: leaf for name, leaf in leaves.items() if name not in on_device})


@jax.jit
def _finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}


def _widen(name: str, leaf: np.ndarray | jax.Array, dtype: np.dtype) -> np.ndarray | jax.Array:
    if jnp.finfo(leaf.dtype).bits > jnp.finfo(dtype).bits:
        raise CheckpointError(
            "stored weights are wider than the model's param_dtype",
            where=name,
            why=f"stored {leaf.dtype}, param_dtype {dtype}",
            remedy=f"set param_dtype to {leaf.dtype}, or convert the checkpoint with --dtype {dtype}",
        )
    return leaf.astype(dtype)
