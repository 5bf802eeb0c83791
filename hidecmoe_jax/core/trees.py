"""Pytrees as flat dicts, `{"decoder/layers/q_proj": array}`.

Checkpoints, hashes, overlays and error messages all name leaves by path, so there is one spelling of a path: the keys
of the tree joined with "/". Nested dicts, struct dataclasses, lists and optax states flatten alike. `restore_into` puts
a flat dict back into a template only if every path, shape and dtype agrees. Digests cover dtype, shape and bytes, so
two leaves have the same digest exactly if they are the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core.errors import CheckpointError, nearest
from hidecmoe_jax.core.processes import to_host

Tree = Any
_SHOWN = 8


def flatten(tree: Tree) -> dict[str, Any]:
    """Returns `{path: leaf}` in the tree's order; a bare leaf has the path "", None and empty nodes are left out.

    Raises:
      CheckpointError: two leaves would share a path (a key with "/" beside a nested dict).
    """
    flat: dict[str, Any] = {}
    # JAX sorts the keys of dicts, so the order does not depend on how a tree was made.
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in flat:
            raise CheckpointError(
                "two leaves of a tree share one path",
                where=name,
                why="a key with '/' stands beside a nested key of the same spelling",
                remedy="rename one of them",
            )
        flat[name] = leaf
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts of `{"a/b": leaf}`; the inverse of `flatten` for nested dicts with plain keys.

    Raises:
      CheckpointError: a path is both a leaf and a folder of leaves.
    """
    tree: dict[str, Any] = {}
    folders: set[str] = set()
    for path in flat:
        keys = path.split("/")
        for depth in range(1, len(keys)):
            folder = "/".join(keys[:depth])
            folders.add(folder)
    for path, leaf in flat.items():
        if path in folders:
            raise CheckpointError(
                "a path names a leaf and a folder at once", where=path, why="other paths continue below it"
            )
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def restore_into(template: Tree, flat: Mapping[str, Any]) -> Tree:
    """Returns `template` with every leaf taken from `flat`, bit for bit; its own leaves may be abstract.

    Raises:
      CheckpointError: a path is missing or left over, or a shape or dtype differs; nothing is cast or cut.
    """
    wanted = flatten(template)
    missing = [path for path in wanted if path not in flat]
    left_over = [path for path in flat if path not in wanted]
    complaints = list(map("missing {}".format, missing))
    complaints += map("left over {}".format, left_over)
    hint = ""
    # A renamed leaf is both missing and left over; the nearest name on the other side shows the renaming.
    if left_over:
        first = left_over[0]
        hint = f"\n         {first}: {_known(first, wanted)}"
    elif missing:
        first = missing[0]
        hint = f"\n         {first}: {_known(first, flat)}"
    for path, leaf in wanted.items():
        if path not in flat:
            continue
        expected = _spell(leaf)
        stored = _spell(flat[path])
        if stored != expected:
            complaints.append(f"{path}: expected {expected}, got {stored}")
    if complaints:
        raise CheckpointError(
            f"{len(complaints)} leaves do not fit",
            why=_some(complaints) + hint,
            remedy="restore with the configuration (rank, layers, dtype) that wrote these arrays",
        )
    return _rebuilt(template, [flat[path] for path in wanted])


def digests(tree: Tree) -> dict[str, str]:
    """Returns `{path: SHA-256}` over dtype, shape and bytes of every leaf (of a PRNG key: over its data)."""
    return {path: _hash(leaf) for path, leaf in flatten(tree).items()}


def digest(tree: Tree) -> str:
    """Returns one SHA-256 over the sorted `digests`; the order and kind of the containers do not matter."""
    total = hashlib.sha256()
    # The length of the path keeps two different pairs from giving the same text.
    for path, value in sorted(digests(tree).items()):
        total.update(f"{len(path)}:{path}:{value}\n".encode())
    return total.hexdigest()


def count(tree: Tree) -> int:
    """Returns the number of elements of all leaves."""
    return sum(map(_size, jax.tree_util.tree_leaves(tree)))


def nbytes(tree: Tree) -> int:
    """Returns the bytes of all leaves, abstract ones included."""
    total = 0
    for leaf in jax.tree_util.tree_leaves(tree):
        total += _size(leaf) * _dtype(leaf).itemsize
    return total


def pick(tree: Tree, prefix: str) -> dict[str, Any]:
    """Returns `{full path: leaf}` of all leaves at or below `prefix` ("" for all); the inverse of `overlay`.

    Raises:
      CheckpointError: there is no leaf at or below `prefix`.
    """
    flat = flatten(tree)
    if not prefix:
        return flat
    picked = {}
    for path, leaf in flat.items():
        if path == prefix or path.startswith(prefix + "/"):
            picked[path] = leaf
    if not picked:
        raise CheckpointError("no such path in the tree", where=prefix, why=_known(prefix, flat))
    return picked


def overlay(tree: Tree, leaves: Mapping[str, Any]) -> Tree:
    """Returns `tree` with the named leaves replaced; a dtype may change, a shape may not, the rest is shared.

    Raises:
      CheckpointError: a path is unknown, or a shape differs.
    """
    flat = flatten(tree)
    for path, leaf in leaves.items():
        if path not in flat:
            raise CheckpointError("cannot replace a leaf that the tree lacks", where=path, why=_known(path, flat))
        if np.shape(leaf) != np.shape(flat[path]):
            raise CheckpointError(
                "cannot replace a leaf by one of another shape",
                where=path,
                why=f"expected {_spell(flat[path])}, got {_spell(leaf)}",
            )
    # The union keeps the order of `flat`, which is the tree's.
    replaced = {**flat, **leaves}
    return _rebuilt(tree, list(replaced.values()))


def all_finite(tree: Tree) -> str | None:
    """Returns the path of the first leaf with NaN or infinity, or None where all numbers are finite.

    Leaves that are shapes without numbers (`core/abstract.py`) are left out.
    """
    for path, leaf in flatten(tree).items():
        is_float = jax.dtypes.issubdtype(_dtype(leaf), np.inexact)
        if not is_float or isinstance(leaf, jax.core.Tracer):
            continue
        is_finite = np.isfinite(np.asarray(leaf))
        if not is_finite.all():
            return path
    return None


def _rebuilt(tree: Tree, leaves: list) -> Tree:
    """The tree with other leaves, given in its order."""
    structure = jax.tree_util.tree_structure(tree)
    return jax.tree_util.tree_unflatten(structure, leaves)


def _size(leaf: Any) -> int:
    """Number of elements; 64-bit, since stacked layers exceed 2^31."""
    shape = np.shape(leaf)
    return int(np.prod(shape, dtype=np.int64))


def _dtype(leaf: Any) -> Any:
    """The dtype of an array, an abstract array or a Python number, without copying anything to the host."""
    dtype = getattr(leaf, "dtype", None)
    return np.asarray(leaf).dtype if dtype is None else dtype


def _hash(leaf: Any) -> str:
    if jax.dtypes.issubdtype(_dtype(leaf), jax.dtypes.prng_key):
        kind = str(leaf.dtype)
        array = np.asarray(jax.random.key_data(leaf))
    else:
        array = np.asarray(to_host(leaf))
        kind = array.dtype.name
    header = f"{kind}{list(array.shape)}"
    total = hashlib.sha256(header.encode())
    flat = np.ascontiguousarray(array).reshape(-1)
    # Viewed as bytes, because hashlib cannot read dtypes such as bfloat16.
    total.update(flat.view(np.uint8).data)
    return total.hexdigest()


def _spell(leaf: Any) -> str:
    """Dtype and shape as text: "float32[2, 3]"."""
    return f"{_dtype(leaf)}{list(np.shape(leaf))}"


def _known(path: str, flat: Mapping[str, Any]) -> str:
    """A hint that stays readable for trees of thousands of leaves: the nearest path, then a few others."""
    hint = nearest(path, flat)
    if len(hint) < 600:
        return hint
    return hint[:600] + f" ... ({len(flat)} paths)"


def _some(complaints: Iterable[str]) -> str:
    lines = []
    for line in complaints:
        if len(line) >= 300:
            line = line[:300] + " ..."
        lines.append(line)
    shown = lines[:_SHOWN]
    more = len(lines) - len(shown)
    if more:
        shown.append(f"... and {more} more")
    return "\n         ".join(shown)
