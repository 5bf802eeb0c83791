"""Pytrees as flat dicts, `{"decoder/layers/q_proj": array}`.

Checkpoints, hashes, overlays and error messages all speak of leaves by path, so there is one spelling of a
path: the keys of the tree joined with "/". Nested dicts, struct dataclasses, lists and optax states flatten
alike, and `restore_into` puts a flat dict back into a template only when every path, shape and dtype agrees.
Digests cover dtype, shape and bytes, so two leaves have one digest exactly when they are the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core.errors import CheckpointError, nearest

Tree = Any
_SHOWN = 8


def flatten(tree: Tree) -> dict[str, Any]:
    """Returns `{path: leaf}` in the tree's order; a bare leaf has the path "", None and empty nodes vanish.

    Raises:
      CheckpointError: two leaves would share a path (a key with "/" beside a nested dict).
    """
    flat: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
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
    folders = {path.rsplit("/", depth)[0] for path in flat for depth in range(1, path.count("/") + 1)}
    for path, leaf in flat.items():
        if path in folders:
            raise CheckpointError(
                "a path names a leaf and a folder at once", where=path, why="other paths go on below it"
            )
        *above, last = path.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def restore_into(template: Tree, flat: Mapping[str, Any]) -> Tree:
    """Returns `template` with every leaf taken from `flat`, bit for bit; its own leaves may be abstract.

    Raises:
      CheckpointError: a path is missing or left over, or a shape or dtype differs; nothing is cast or cut.
    """
    wanted = flatten(template)
    complaints = [f"missing {path}" for path in wanted if path not in flat]
    complaints += [f"left over {path}" for path in flat if path not in wanted]
    hint = ""
    if complaints:
        lost = [path for path in flat if path not in wanted] or [path for path in wanted if path not in flat]
        hint = f"\n         {lost[0]}: {_known(lost[0], wanted if lost[0] in flat else flat)}"
    complaints += [
        f"{path}: expected {_spell(leaf)}, got {_spell(flat[path])}"
        for path, leaf in wanted.items()
        if path in flat and (np.shape(leaf), _dtype(leaf)) != (np.shape(flat[path]), _dtype(flat[path]))
    ]
    if complaints:
        raise CheckpointError(
            f"{len(complaints)} leaves do not fit",
            why=_some(complaints) + hint,
            remedy="restore with the configuration (rank, layers, dtype) that wrote these arrays",
        )
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), [flat[path] for path in wanted])


def digests(tree: Tree) -> dict[str, str]:
    """Returns `{path: SHA-256}` over dtype, shape and bytes of every leaf (PRNG keys: data)."""
    return {path: _hash(leaf) for path, leaf in flatten(tree).items()}


def digest(tree: Tree) -> str:
    """Returns one SHA-256 over the sorted `digests`, whatever the order and kind of the containers."""
    total = hashlib.sha256()
    for path, value in sorted(digests(tree).items()):
        total.update(f"{len(path)}:{path}:{value}\n".encode())
    return total.hexdigest()


def count(tree: Tree) -> int:
    """Returns how many numbers the leaves hold together."""
    return sum(int(np.prod(np.shape(leaf), dtype=np.int64)) for leaf in jax.tree_util.tree_leaves(tree))


def nbytes(tree: Tree) -> int:
    """Returns the bytes of all leaves, abstract ones included."""
    leaves = jax.tree_util.tree_leaves(tree)
    return sum(int(np.prod(np.shape(leaf), dtype=np.int64)) * _dtype(leaf).itemsize for leaf in leaves)


def pick(tree: Tree, prefix: str) -> dict[str, Any]:
    """Returns `{full path: leaf}` of all leaves at or below `prefix` ("" for all); `overlay` takes it back.

    Raises:
      CheckpointError: nothing lies there.
    """
    flat = flatten(tree)
    found = {p: leaf for p, leaf in flat.items() if not prefix or p == prefix or p.startswith(prefix + "/")}
    if not found and prefix:
        raise CheckpointError("no such path in the tree", where=prefix, why=_known(prefix, flat))
    return found


def overlay(tree: Tree, leaves: Mapping[str, Any]) -> Tree:
    """Returns `tree` with the named leaves replaced; a dtype may change, a shape may not, the rest is shared.

    Raises:
      CheckpointError: a path is unknown, or a shape differs.
    """
    flat = flatten(tree)
    for path, leaf in leaves.items():
        if path not in flat:
            raise CheckpointError("cannot lay an unknown path over the tree", where=path, why=_known(path, flat))
        if np.shape(leaf) != np.shape(flat[path]):
            raise CheckpointError(
                "cannot lay a leaf of another shape over the tree",
                where=path,
                why=f"expected {_spell(flat[path])}, got {_spell(leaf)}",
            )
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(tree), list({**flat, **leaves}.values()))


def all_finite(tree: Tree) -> str | None:
    """Returns the path of the first leaf that holds NaN or infinity, or None where all numbers are finite."""
    for path, leaf in flatten(tree).items():
        if jax.dtypes.issubdtype(_dtype(leaf), np.inexact) and not np.isfinite(np.asarray(leaf)).all():
            return path
    return None


def _dtype(leaf: Any) -> Any:
    """The dtype of an array, an abstract array or a Python number, without copying anything to the host."""
    dtype = getattr(leaf, "dtype", None)
    return np.asarray(leaf).dtype if dtype is None else dtype


def _hash(leaf: Any) -> str:
    if jax.dtypes.issubdtype(_dtype(leaf), jax.dtypes.prng_key):
        kind, array = str(leaf.dtype), np.asarray(jax.random.key_data(leaf))
    else:
        array = np.asarray(leaf)
        kind = array.dtype.name
    total = hashlib.sha256(f"{kind}{list(array.shape)}".encode())
    total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return total.hexdigest()


def _spell(leaf: Any) -> str:
    return f"{_dtype(leaf)}{list(np.shape(leaf))}"


def _known(path: str, flat: Mapping[str, Any]) -> str:
    """A hint that stays readable for trees of thousands of leaves: the nearest name, then a few."""
    hint = nearest(path, flat)
    return hint if len(hint) < 600 else hint[:600] + f" ... ({len(flat)} paths)"


def _some(complaints: Iterable[str]) -> str:
    lines = [line if len(line) < 300 else line[:300] + " ..." for line in complaints]
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n         ".join(lines[:_SHOWN] + more)
