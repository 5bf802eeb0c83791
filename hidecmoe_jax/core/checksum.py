"""Sums over the bits of arrays, computed where the arrays lie: whether weights are still what they were.

Two sums a leaf, modulo 2^32: one of the words, and one of the words by their places, so that exchanged words show too.
Sums do not depend on how an array is divided over devices, which exchange the sums alone. They find what went wrong;
they are no protection against somebody who wants to deceive, as the SHA-256 of `trees.digest` is.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksums(tree: Any) -> np.ndarray:
    """Two sums of every leaf, uint32 [leaves, 2], in the order of `jax.tree.leaves`."""
    return np.asarray(_checksums(tree))


@jax.jit
def _checksums(tree: Any) -> Array:
    return jnp.stack([_sums(leaf) for leaf in jax.tree.leaves(tree)])


def _sums(leaf: Array) -> Array:
    word = _WORDS[leaf.dtype.itemsize]
    bits = leaf.astype(word) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, word)
    bits = bits.astype(jnp.uint32)
    weighted = bits * _odd_places(leaf.shape)
    return jnp.stack([jnp.sum(bits, dtype=jnp.uint32), jnp.sum(weighted, dtype=jnp.uint32)])


def _odd_places(shape: tuple[int, ...]) -> Array:
    """2 n + 1 for the n-th element; odd, so that no change of a single word is lost."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return place * jnp.uint32(2) + jnp.uint32(1)
