"""Where the arrays of a model lie on a mesh, while training and while answering.

A `Layout` is a static field of the model: programs are compiled for it, and `constrain` pins arrays inside them. Under
None nothing is pinned and the program is that of one device. Weights of the frozen base lie by a placement:

  replicated  every device has the whole base; batches are split over all devices
  sharded     every leaf is split along its width over all devices and gathered where it is used, layer by layer
  tensor      heads, hidden units and vocabulary are split over the mesh axis `tensor`, so that devices share the work
              of one sample; batches are split over the other axes

Whatever trains, and every expert, router and moment, is small and replicated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hidecmoe_jax.core.sharding import MESH_AXES, RULES, partition, shardings

Tree = Any
Placement = Literal["replicated", "sharded", "tensor"]
Recompute = Literal["none", "named", "full"]
Rule = str | tuple[str, ...] | None
Rules = tuple[tuple[str, Rule], ...]


def _rules(**changes: Rule) -> Rules:
    """`RULES` with changes, as pairs (a mapping has no hash)."""
    return tuple({**RULES, **changes}.items())


_WHOLE = {"heads": None, "hidden": None, "vocab": None}
_REPLICATED = _rules(**_WHOLE, batch=MESH_AXES, width=None)
_SHARDED = _rules(**_WHOLE, batch=MESH_AXES, width=MESH_AXES)
TRAIN_RULES = MappingProxyType({"replicated": _REPLICATED, "sharded": _SHARDED, "tensor": _rules()})
# A decoded token reads every weight once: gathered weights would cross the network at every token.
ANSWER_RULES = MappingProxyType({"replicated": _REPLICATED, "sharded": _SHARDED, "tensor": _rules(width=None)})


@dataclass(frozen=True)
class Layout:
    """A mesh, and how the axes of arrays are split over it.

    Attributes:
      train_rules, answer_rules: mesh axes by name of an array axis, as pairs (`TRAIN_RULES`, `ANSWER_RULES`).
      recompute: what the backward pass computes again in every layer: nothing (`none`), all but the named activations
        (`named`), or everything (`full`). Under gathered weights `none` would keep the weights of all layers.
      answering: which of the two rules hold.
    """

    mesh: Mesh
    train_rules: Rules
    answer_rules: Rules
    recompute: Recompute = "named"
    answering: bool = False

    @property
    def rules(self) -> Rules:
        """The rules that hold now."""
        return self.answer_rules if self.answering else self.train_rules

    @property
    def gathers(self) -> bool:
        """Whether weights are gathered where they are used."""
        return dict(self.rules)["width"] is not None

    @property
    def batch_shards(self) -> int:
        """Pieces that a batch is split into."""
        return _pieces(self.mesh, dict(self.rules)["batch"])

    def for_answers(self) -> Layout:
        """The layout while answering."""
        return replace(self, answering=True)


def layout_of(
    mesh: Mesh, train: Placement = "replicated", answer: Placement = "replicated", *, recompute: Recompute = "named"
) -> Layout:
    """The layout of two placements on a mesh."""
    return Layout(mesh, TRAIN_RULES[train], ANSWER_RULES[answer], recompute)


def constrain(layout: Layout | None, tree: Tree, axes: Tree, *, gathered: bool = False) -> Tree:
    """The same arrays, pinned to their places inside a compiled program; unchanged without a layout.

    Args:
      axes: a tuple of axis names for every leaf of `tree`; None in a tuple is an axis that is never split.
      gathered: weights are whole along their width, which a device needs to use them.
    """
    if layout is None:
        return tree
    rules = dict(layout.rules)
    if gathered:
        rules["width"] = None

    def pin(names: tuple, leaf: jax.Array) -> jax.Array:
        sharding = _sharding(layout.mesh, rules, names, leaf.shape)
        return jax.lax.with_sharding_constraint(leaf, sharding)

    return jax.tree.map(pin, axes, tree, is_leaf=lambda node: isinstance(node, tuple))


def spec_of(layout: Layout, axes: tuple, shape: tuple[int, ...]) -> PartitionSpec:
    """How an array with these names of axes is split; a batch that the mesh does not divide stays whole."""
    return _sharding(layout.mesh, dict(layout.rules), axes, shape).spec


def place(layout: Layout | None, tree: Tree, axes: Tree) -> Tree:
    """Weights on the layout's devices by its rules; unchanged without a layout.

    Raises:
      ConfigError: a length that the mesh does not divide.
    """
    if layout is None:
        return tree
    places = shardings(axes, tree, layout.mesh, rules=dict(layout.rules))
    return jax.tree.map(put, tree, places)


def replicate(layout: Layout | None, tree: Tree) -> Tree:
    """Arrays that every device has whole: experts, routers, moments; unchanged without a layout."""
    if layout is None:
        return tree
    whole = NamedSharding(layout.mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: put(leaf, whole), tree)


def keep_replicated(layout: Layout | None, tree: Tree) -> Tree:
    """The same inside a compiled program, where outputs would otherwise lie as the compiler sees fit."""
    if layout is None:
        return tree
    whole = NamedSharding(layout.mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, whole), tree)


def split_batch(layout: Layout | None, tree: Tree, *, axis: int = 0) -> Tree:
    """Arrays of a batch, each device with its samples; unchanged without a layout.

    Args:
      axis: the axis of the samples. Where the devices do not divide it every device gets the whole.
    """
    if layout is None:
        return tree
    rules = dict(layout.rules)

    def split(leaf: Any) -> jax.Array | jax.ShapeDtypeStruct:
        names = (None,) * axis + ("batch",) + (None,) * (leaf.ndim - axis - 1)
        return put(leaf, _sharding(layout.mesh, rules, names, leaf.shape))

    return jax.tree.map(split, tree)


def own_rows(layout: Layout | None, count: int) -> np.ndarray:
    """Which of `count` samples of a batch lie on devices of this process, bool [count]."""
    if layout is None:
        return np.ones(count, bool)
    own = np.zeros(count, bool)
    sharding = _sharding(layout.mesh, dict(layout.rules), ("batch",), (count,))
    for index in sharding.addressable_devices_indices_map((count,)).values():
        own[index] = True
    return own


def put(leaf: Any, sharding: NamedSharding) -> jax.Array | jax.ShapeDtypeStruct:
    """An array that every process has, on the devices of all of them; a shape without numbers is only said to be."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        # It lies on these devices already, by this sharding or by another.
        return leaf if leaf.sharding == sharding else jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    array = np.asarray(leaf)
    # `device_put` would compare the values of all processes first.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole_batches(layout: Layout | None, size: int) -> int:
    """A size of batches that the devices share evenly, `size` or a little more; unchanged without a layout."""
    if layout is None:
        return size
    shards = layout.batch_shards
    return -(-size // shards) * shards


def _sharding(mesh: Mesh, rules: dict[str, Rule], names: tuple, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array; an axis "batch" that the mesh does not divide (a single sample) stays whole."""
    by_axis = []
    for name, length in zip(names, shape, strict=True):
        is_whole = name == "batch" and length % _pieces(mesh, rules["batch"]) != 0
        by_axis.append(None if is_whole else name)
    return NamedSharding(mesh, partition(tuple(by_axis), rules))


def _pieces(mesh: Mesh, rule: Rule) -> int:
    """Pieces that a rule splits an axis into."""
    axes = (rule,) if isinstance(rule, str) else rule or ()
    return math.prod(mesh.shape[axis] for axis in axes)
