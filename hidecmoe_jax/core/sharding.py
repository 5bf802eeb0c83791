"""From names of axes to pieces on devices.

Every array of the model says what its axes mean ("width", "heads", "vocab", ...). One table, `RULES`, says
which axis of the device mesh cuts which meaning, and everything here follows from the two: trying another
layout is another table. Nothing is cut unevenly and nothing is left whole in silence: a name the table
lacks, a mesh axis used twice in one array, and a length that the mesh does not divide are errors. Meshes
are made in one place, with automatic axes (explicit ones, the default of newer JAX, refuse a plain
embedding lookup)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hidecmoe_jax.core.errors import ConfigError, nearest

Tree = Any
MESH_AXES = ("data", "fsdp", "tensor")

# Layers are scanned over, and slots, ranks and tasks are few: they stay whole. Weights are cut along `width`
# to save memory (gathered when used) and along `heads`, `hidden` or `vocab` to share the work; a batch is cut
# along every axis that does not share the work of one sample.
RULES: Mapping[str, str | tuple[str, ...] | None] = MappingProxyType(
    {
        "batch": ("data", "fsdp"),
        "layer": None,
        "slot": None,
        "rank": None,
        "task": None,
        "width": "fsdp",
        "heads": "tensor",
        "hidden": "tensor",
        "vocab": "tensor",
    }
)


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of `data * fsdp * tensor` devices (the first ones) with axes of those names.

    Raises:
      ConfigError: an axis shorter than 1, or more devices asked for than there are.
    """
    sizes, here = (data, fsdp, tensor), len(jax.devices())
    asked = " x ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
    if min(sizes) < 1:
        raise ConfigError("cannot make a device mesh", where=asked, why="every axis needs a length of at least 1")
    if math.prod(sizes) > here:
        raise ConfigError(
            "cannot make a device mesh",
            where=asked,
            why=f"it needs {math.prod(sizes)} devices, this machine has {here}",
            remedy=f"choose lengths whose product is at most {here}",
        )
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def partition(axes: tuple[str | None, ...], rules: Mapping[str, Any] = RULES) -> PartitionSpec:
    """The mesh axes that cut an array whose axes have these names; None is an axis that is never cut.

    Raises:
      ConfigError: a name the rules lack, or a mesh axis that would cut the array twice.
    """
    spec: list[str | tuple[str, ...] | None] = []
    taken: dict[str, str] = {}
    for name in axes:
        if name is not None and name not in rules:
            raise ConfigError("unknown name of an array axis", where=repr(name), why=nearest(name, rules))
        cut = None if name is None else rules[name]
        for mesh_axis in (cut,) if isinstance(cut, str) else cut or ():
            if mesh_axis in taken:
                raise ConfigError(
                    "two axes of one array are cut by the same mesh axis",
                    where=str(axes),
                    why=f"'{taken[mesh_axis]}' and '{name}' both map to '{mesh_axis}'",
                    remedy="give one of them another mesh axis, or None, in the rules",
                )
            taken[mesh_axis] = name
        spec.append(cut)
    return PartitionSpec(*spec)


def _sharding(where: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh, rules) -> NamedSharding:
    if len(axes) != len(shape):
        raise ConfigError("an array has not as many axes as names", where=where, why=f"shape {shape}, names {axes}")
    spec = partition(axes, rules)
    for name, length, cut in zip(axes, shape, spec, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in ((cut,) if isinstance(cut, str) else cut or ()))
        if length % parts:
            raise ConfigError(
                "an array cannot be cut into equal pieces",
                where=f"{where}: axis '{name}' of length {length}",
                why=f"the mesh cuts it into {parts} ({cut})",
                remedy=f"choose a mesh whose '{cut}' divides {length}",
            )
    return NamedSharding(mesh, spec)


def shardings(axes_tree: Tree, shapes_tree: Tree, mesh: Mesh, *, rules: Mapping[str, Any] = RULES) -> Tree:
    """A `NamedSharding` for every leaf of `shapes_tree`.

    Args:
      axes_tree: tuples of axis names with the structure of `shapes_tree` (`model_axes`, `bank_axes`).
      shapes_tree: arrays, or the `ShapeDtypeStruct`s of `jax.eval_shape`.

    Raises:
      ConfigError: unknown names, collisions, a wrong number of names, or a length the mesh does not divide.
      ValueError: the trees differ.
    """

    def one(path, leaf, axes):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        return _sharding(where, leaf.shape, axes, mesh, rules)

    return jax.tree_util.tree_map_with_path(one, shapes_tree, axes_tree)


def place(tree: Tree, axes_tree: Tree, mesh: Mesh, *, rules: Mapping[str, Any] = RULES) -> Tree:
    """The same arrays, cut and laid on the devices of `mesh`; errors as for `shardings`."""
    return jax.device_put(tree, shardings(axes_tree, tree, mesh, rules=rules))


def batch_sharding(mesh: Mesh, *, rules: Mapping[str, Any] = RULES) -> NamedSharding:
    """Cuts the leading axis of a batch over all devices that hold copies of the activations."""
    return NamedSharding(mesh, partition(("batch",), rules))
