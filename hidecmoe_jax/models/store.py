"""A base model as a folder: `config.json`, its weights, and the tokenizer's files beside them.

Small models keep their leaves by path in `model.safetensors`, large ones in the folder `weights` (`sharded.py`).
Weights are read leaf by leaf and must agree with the config in every path and shape. A narrower stored float (bfloat16)
is widened exactly to the config's `param_dtype`; a wider one is never narrowed on the way in.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from hidecmoe_jax.core import strict, trees
from hidecmoe_jax.core.abstract import bytes_of
from hidecmoe_jax.core.compile_cache import use_compile_cache
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.core.layout import Layout, put
from hidecmoe_jax.core.sharding import shardings
from hidecmoe_jax.models import sharded
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.execution import KERNEL_OF, PLAIN, Attention, execution_for
from hidecmoe_jax.models.llava import Model, model_axes, model_template
from hidecmoe_jax.storage.files import read_json
from hidecmoe_jax.storage.remembered import verify_once
from hidecmoe_jax.storage.tensor_files import header_size

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def pocket_folder() -> Path:
    """The small model that ships with the package."""
    return Path(__file__).resolve().parents[1] / "pocket"


def is_base(name: str) -> bool:
    """Whether a name is `pocket`, or the path of a folder with the settings of a base model."""
    return name == "pocket" or (Path(name) / CONFIG).is_file()


def base_folder(name: str) -> Path:
    """Folder of a base model: `pocket`, or a path.

    Raises:
      CheckpointError: if it does not exist (a name is never looked up on a network).
    """
    folder = pocket_folder() if name == "pocket" else Path(name)
    if not is_base(name):
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
    leaves = {}
    for path, leaf in trees.flatten(model.params).items():
        array = np.asarray(leaf)
        if dtype is not None:
            array = array.astype(jnp.dtype(dtype))
        leaves[path] = array
    save_tensors(leaves, folder / WEIGHTS)
    config = strict.plain(model.config)
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def save_tensors(leaves: Mapping[str, np.ndarray], path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file with the default permissions of a new file (the library makes it private).

    Args:
      notes: metadata in the file's header.

    Raises:
      OSError: the file cannot be written whole.
    """
    path.touch()  # a file created here has the permissions that the user's umask gives
    mode = path.stat().st_mode
    contiguous = {}
    for name, leaf in leaves.items():
        contiguous[name] = np.asarray(leaf, order="C")
    metadata = dict(notes) if notes else None
    try:
        save_file(contiguous, path, metadata=metadata)
    except SafetensorError as error:
        # The library wraps what the system refused, such as a full disk.
        raise OSError(errno.EIO, str(error), str(path)) from error
    path.chmod(mode)


def read_model_config(folder: Path, **changes) -> LlavaConfig:
    """Returns the config of a base model; `changes` replace fields of it.

    Raises:
      CheckpointError: unreadable config, or no weights beside it.
    """
    path = folder / CONFIG
    try:
        stored = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(
            "cannot read the model's config", where=error.where, why=error.why or error.what
        ) from error
    if not (folder / sharded.FOLDER).is_dir() and not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            "a base model without weights",
            where=str(folder),
            why=f"it has neither {WEIGHTS} nor a folder {sharded.FOLDER}",
            remedy="copy the whole folder that `hidecmoe convert` made",
        )
    config = strict.build(LlavaConfig, stored, str(path))
    return replace(config, **changes)


def load_model(
    folder: Path, *, mesh: Mesh | None = None, layout: Layout | None = None, attention: Attention = "auto", **changes
) -> Model:
    """Reads a model; `changes` replace fields of its config (say `dtype="bfloat16"`).

    Programs that are compiled from then on are kept on disk (`core/compile_cache.py`).

    Args:
      mesh: every leaf is sharded over it by `core.sharding.RULES`; None puts all on the first device.
      layout: every leaf goes to its place, one after the other, and the model gets the layout.
      attention: the kernel of the decoder's attention; by default what the processor has.

    Raises:
      CheckpointError: a file is not as its manifest has it, where there is one; unreadable file, leaves missing or
        left over, wrong shape, a float wider than `param_dtype`, or a value that is not finite; names the tensor.
      ConfigError: a length that the mesh does not divide, or a kernel of attention that the processor has not.
    """
    use_compile_cache()
    verify_once(folder, remedy="convert the model again, or copy its folder anew; nothing of it was loaded")
    config = read_model_config(folder, **changes)
    template = model_template(config).params
    places = None
    if layout is not None:
        places = shardings(model_axes(config), template, layout.mesh, rules=dict(layout.rules))
    elif mesh is not None:
        places = shardings(model_axes(config), template, mesh)
    dtype = jnp.dtype(config.param_dtype)
    where = folder / sharded.FOLDER
    if where.is_dir():
        leaves = _read_sharded(where, template, places)
    else:
        where = folder / WEIGHTS
        header_size(where)
        try:
            leaves = load_file(where) if places is None else _read_onto(where, template, places, dtype)
        except (OSError, SafetensorError) as error:
            raise CheckpointError("cannot read the model's weights", where=str(where), why=str(error)) from error
    widened = {name: _widen(name, leaf, dtype) for name, leaf in leaves.items()}
    bad = _not_finite(widened)
    if bad is not None:
        raise CheckpointError("a weight is not finite", where=f"{where}: {bad}")
    tree = trees.restore_into(template, widened)
    # jnp.asarray would compile a program for every shape.
    params = jax.device_put(tree)
    # Programs for several devices are left to the compiler, which splits the library's attention over heads by itself.
    execution = execution_for(
        jax.default_backend(),
        layers_bytes=bytes_of(params["decoder"]["layers"]),
        attention=attention,
        dtype=config.dtype,
    )
    if layout is not None:
        fused = execution.attention in KERNEL_OF.values()
        execution = replace(PLAIN, attention=execution.attention) if fused else PLAIN
    return Model(params, config, layout, execution)


def _read_sharded(folder: Path, template: dict, places: dict | None) -> dict[str, jax.Array]:
    shapes = {path: leaf.shape for path, leaf in trees.flatten(template).items()}
    if places is None:
        first_device = jax.devices()[0]
        return sharded.read_leaves(folder, shapes, dict.fromkeys(shapes, SingleDeviceSharding(first_device)))
    return sharded.read_leaves(folder, shapes, trees.flatten(places))


def _read_onto(path: Path, template: dict, places: dict, dtype: np.dtype) -> dict[str, np.ndarray | jax.Array]:
    """The leaves of a file in their places; neither the host nor a device has more than one leaf beyond its share."""
    expected = trees.flatten(template)
    place_of = trees.flatten(places)
    leaves: dict[str, np.ndarray | jax.Array] = {}
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 (the file is no mapping)
            leaf = file.get_tensor(name)
            # A leaf that the config lacks or has in another shape stays as it is and is named by the caller.
            if name in expected and expected[name].shape == leaf.shape:
                leaf = put(_widen(name, leaf, dtype), place_of[name])
            leaves[name] = leaf
    return leaves


def _not_finite(leaves: dict) -> str | None:
    """The first leaf that is not finite; arrays on devices are checked there, where a leaf may be sharded."""
    on_device = {}
    on_host = {}
    for name, leaf in leaves.items():
        group = on_device if isinstance(leaf, jax.Array) else on_host
        group[name] = leaf
    if on_device:
        for name, finite in _finite(on_device).items():
            if not finite:
                return name
    return trees.all_finite(on_host)


@jax.jit
def _finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}


def _widen(name: str, leaf: np.ndarray | jax.Array, dtype: np.dtype) -> np.ndarray | jax.Array:
    stored_bits = jnp.finfo(leaf.dtype).bits
    bits = jnp.finfo(dtype).bits
    if stored_bits > bits:
        raise CheckpointError(
            "stored weights are wider than the model's param_dtype",
            where=name,
            why=f"stored {leaf.dtype}, param_dtype {dtype}",
            remedy=f"set param_dtype to {leaf.dtype}, or convert the checkpoint with --dtype {dtype}",
        )
    return leaf.astype(dtype)
