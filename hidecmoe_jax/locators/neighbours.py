"""A task locator by nearest neighbours: a sample belongs to the task whose stored samples are most similar.

It makes no assumption about a task's distribution, so as a baseline it shows how much a parametric model of the
features could gain at most. Its memory is features of training samples, up to `most` for every task: storage that grows
with the stream, is counted where parameters are counted, and rules it out where data may not be stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.locators.standard import (
    EXACT,
    Standardised,
    blank_standard,
    checked_features,
    masked_scores,
    standardised,
    with_row,
    with_standard,
)


def _cosine(x_BD: Array, y_NMD: Array) -> Array:
    """Cosines [B, N, M] of rows to which a constant coordinate sqrt(D), the length of a typical row, is appended.

    Standardised features of the first task lie around 0, where a direction is only noise: plain cosines would assign
    its samples at random. Relative to a point outside the data, near samples have near directions everywhere.
    """
    width = x_BD.shape[1]
    product_BNM = jnp.einsum("bd,nmd->bnm", x_BD, y_NMD, precision=EXACT) + width
    x_B = _lengths(x_BD)
    y_NM = _lengths(y_NMD)
    lengths_BNM = x_B[:, None, None] * y_NM[None]
    return product_BNM / lengths_BNM


def _lengths(rows_XD: Array) -> Array:
    """Lengths of rows with the constant coordinate, over the last axis."""
    width = rows_XD.shape[-1]
    squared = jnp.square(rows_XD)
    total = jnp.sum(squared, axis=-1)
    return jnp.sqrt(total + width)


@dataclass(frozen=True)
class Neighbours(Standardised):
    """Mean cosine similarity to the k nearest stored samples of a task.

    Attributes:
      k: neighbours that count; of a task with fewer stored samples, all count.
      most: samples stored of one task, drawn by `key` without replacement if it has more.
      clip: standardised features are cut off at +-clip.
    """

    k: int = 5
    most: int = 2000
    clip: float = 5.0
    kind: ClassVar[str] = "neighbours"

    def __post_init__(self):
        if not 1 <= self.k <= self.most:
            raise ValueError(f"k {self.k} must be at least 1 and at most the {self.most} stored samples")
        if self.clip <= 0:
            raise ValueError(f"clip {self.clip} must be above 0")

    def blank(self, capacity: int, width: int) -> dict[str, Array]:
        """Memory with room for `capacity` tasks: `feature_NMD` (standardised) and `valid_NM` (bool)."""
        memory = blank_standard(width)
        memory["feature_NMD"] = jnp.zeros((capacity, self.most, width))
        memory["valid_NM"] = jnp.zeros((capacity, self.most), bool)
        return memory

    def fit(self, memory: dict[str, Array], task: int, features_ND, *, key: Array) -> dict[str, Array]:
        """Writes row `task` from features [N, D]. Raises as `standard.checked_features` and `standard.with_row`."""
        capacity = len(memory["valid_NM"])
        features = checked_features(features_ND, memory, task, capacity=capacity)
        # Over all samples, those that are not stored too.
        memory = with_standard(memory, features)
        samples = len(features)
        if samples > self.most:
            order = jax.random.permutation(key, samples)
            drawn = np.asarray(order)[: self.most]
            # Sorted, so that samples are stored in the order of the data.
            drawn = np.sort(drawn)
            features = features[drawn]
            samples = self.most
        rows_ND = standardised(memory, features, self.clip)
        unused = self.most - samples
        rows_MD = jnp.pad(rows_ND, ((0, unused), (0, 0)))
        valid_M = jnp.arange(self.most) < samples
        return with_row(memory, task, {"feature_NMD": rows_MD, "valid_NM": valid_M})

    def scores(self, memory: dict[str, Array], features_BD: Array, learned_N: Array) -> Array:
        """Mean of the k largest cosines, float32 [B, capacity], in [-1, 1]; -inf where not `learned_N` (bool)."""
        rows_BD = standardised(memory, features_BD, self.clip)
        cosine_BNM = _cosine(rows_BD, memory["feature_NMD"])
        valid_NM = memory["valid_NM"]
        # Unused rows are zero vectors, whose cosine is not the lowest.
        cosine_BNM = jnp.where(valid_NM[None], cosine_BNM, -jnp.inf)
        best_BNK, _ = jax.lax.top_k(cosine_BNM, self.k)
        stored_N = jnp.sum(valid_NM, axis=1)
        count_N = jnp.minimum(stored_N, self.k)
        # A task with fewer than k samples has -inf in its last columns.
        column_1K = jnp.arange(self.k)[None]
        is_counted_NK = column_1K < count_N[:, None]
        counted_BNK = jnp.where(is_counted_NK[None], best_BNK, 0.0)
        total_BN = jnp.sum(counted_BNK, axis=-1)
        divisor_N = jnp.maximum(count_N, 1).astype(jnp.float32)
        mean_BN = total_BN / divisor_N
        return masked_scores(mean_BN, learned_N)

    def size(self, width: int) -> int:
        """Numbers stored per task, unused rows included (and one bit for each row besides)."""
        return self.most * width
