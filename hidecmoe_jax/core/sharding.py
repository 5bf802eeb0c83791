"""Shardings of arrays from logical axis names.

Every array of the model names its axes ("width", "heads", "vocab", ...). One table, `RULES`, maps each name to axes of
the device mesh; another layout is another table. Nothing is split unevenly and nothing is replicated by accident: a
name that the table lacks, a mesh axis used twice in one array, and a length that the mesh does not divide are errors.
Meshes are made in one place, with automatic axes (explicit ones, the default of newer JAX, refuse a plain embedding
lookup).
"""

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

# Layers are scanned over, and slots, ranks and tasks are few: they are not split. Weights are split along `width` to
# save memory (gathered when used) and along `heads`, `hidden` or `vocab` to share the work; a batch is split along
# every mesh axis that does not share the work of one sample.
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
    """Returns a mesh of the first `data * fsdp * tensor` devices, with axes of those names.

    Raises:
      ConfigError: an axis shorter than 1, or more devices asked for than there are.
    """
    sizes = (data, fsdp, tensor)
    available = len(jax.devices())
    requested = f"data={data} x fsdp={fsdp} x tensor={tensor}"
    if min(sizes) < 1:
        raise ConfigError("cannot make a device mesh", where=requested, why="every axis needs a length of at least 1")
    needed = math.prod(sizes)
    if needed > available:
        raise ConfigError(
            "cannot make a device mesh",
            where=requested,
            why=f"it needs {needed} devices, this machine has {available}",
            remedy=f"choose lengths whose product is at most {available}",
        )
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def partition(axes: tuple[str | None, ...], rules: Mapping[str, Any] = RULES) -> PartitionSpec:
    """Returns the mesh axes that split an array whose axes have these names; None is an axis that is never split.

    Raises:
      ConfigError: a name the rules lack, or a mesh axis that would split the array twice.
    """
    spec: list[str | tuple[str, ...] | None] = []
    name_of: dict[str, str | None] = {}  # array axis by the mesh axis that splits it
    for name in axes:
        if name is not None and name not in rules:
            raise ConfigError("unknown name of an array axis", where=repr(name), why=nearest(name, rules))
        rule = None if name is None else rules[name]
        for mesh_axis in _mesh_axes(rule):
            if mesh_axis in name_of:
                raise ConfigError(
                    "two axes of one array are split by the same mesh axis",
                    where=str(axes),
                    why=f"'{name_of[mesh_axis]}' and '{name}' both map to '{mesh_axis}'",
                    remedy="give one of them another mesh axis, or None, in the rules",
                )
            name_of[mesh_axis] = name
        spec.append(rule)
    return PartitionSpec(*spec)


def _mesh_axes(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of a rule as a tuple."""
    if rule is None:
        return ()
    return (rule,) if isinstance(rule, str) else rule


def _sharding(where: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh, rules) -> NamedSharding:
    if len(axes) != len(shape):
        raise ConfigError("an array has not as many axes as names", where=where, why=f"shape {shape}, names {axes}")
    spec = partition(axes, rules)
    for name, length, rule in zip(axes, shape, spec, strict=True):
        pieces = math.prod(mesh.shape[axis] for axis in _mesh_axes(rule))
        if length % pieces:
            raise ConfigError(
                "an array cannot be split into equal pieces",
                where=f"{where}: axis '{name}' of length {length}",
                why=f"the mesh splits it into {pieces} ({rule})",
                remedy=f"choose a mesh whose '{rule}' divides {length}",
            )
    return NamedSharding(mesh, spec)


def shardings(axes_tree: Tree, shapes_tree: Tree, mesh: Mesh, *, rules: Mapping[str, Any] = RULES) -> Tree:
    """Returns a `NamedSharding` for every leaf of `shapes_tree`.

    Args:
      axes_tree: tuples of axis names with the structure of `shapes_tree` (`model_axes`, `bank_axes`).
      shapes_tree: arrays, or the `ShapeDtypeStruct`s of `jax.eval_shape`.

    Raises:
      ConfigError: unknown names, collisions, a wrong number of names, or a length the mesh does not divide.
      ValueError: the trees differ.
    """

    def sharding_of(path, leaf, axes):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        return _sharding(where, leaf.shape, axes, mesh, rules)

    return jax.tree_util.tree_map_with_path(sharding_of, shapes_tree, axes_tree)
