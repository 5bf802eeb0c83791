"""A task locator by nearest neighbours: a sample belongs where the stored samples look most like it.

It assumes nothing about the shape of a task, which makes it the baseline that shows what a model of the features could
gain at most. The price is that it keeps features of training samples themselves, up to `most` for every task: that is
storage which grows with the stream, it has to be counted where parameters are counted, and where data may not be kept
it may not be used.
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
    checked,
    presented,
    standard_room,
    standardised,
    with_standard,
    written,
)


def _cosine(x_BD: Array, y_NMD: Array) -> Array:
    """Cosines [B, N, M] of rows to which a constant coordinate sqrt(D), the length of a typical row, is appended.

    Standardised features of the first task lie around 0, where a direction is nothing but noise: plain cosines send its
    samples anywhere. Seen from a point outside the data, near samples have near directions everywhere.
    """
    width = x_BD.shape[1]
    product = jnp.einsum("bd,nmd->bnm", x_BD, y_NMD, precision=EXACT) + width
    x_B, y_NM = (jnp.sqrt(jnp.sum(jnp.square(rows), axis=-1) + width) for rows in (x_BD, y_NMD))
    return product / (x_B[:, None, None] * y_NM[None])


@dataclass(frozen=True)
class Neighbours:
    """Mean cosine similarity to the k nearest stored samples of a task.

    Attributes:
      k: neighbours that count; a task that stores fewer is judged by all it has.
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
        return standard_room(width) | {
            "feature_NMD": jnp.zeros((capacity, self.most, width)),
            "valid_NM": jnp.zeros((capacity, self.most), bool),
        }

    def fit(self, memory: dict[str, Array], task: int, features_ND, *, key: Array) -> dict[str, Array]:
        """Writes row `task` from features [N, D]. Raises as `standard.checked` and `standard.written`."""
        features = checked(features_ND, memory, task, capacity=len(memory["valid_NM"]))
        memory = with_standard(memory, features)
        if len(features) > self.most:
            features = features[np.sort(np.asarray(jax.random.permutation(key, len(features)))[: self.most])]
        rows = standardised(memory, features, self.clip)
        room = self.most - len(features)
        row = {"feature_NMD": jnp.pad(rows, ((0, room), (0, 0))), "valid_NM": jnp.arange(self.most) < len(features)}
        return written(memory, task, row)

    def scores(self, memory: dict[str, Array], features_BD: Array, learned_N: Array) -> Array:
        """Mean of the k largest cosines, float32 [B, capacity], in [-1, 1]; -inf where not `learned_N` (bool)."""
        cosine_BNM = _cosine(standardised(memory, features_BD, self.clip), memory["feature_NMD"])
        best_BNK, _ = jax.lax.top_k(jnp.where(memory["valid_NM"][None], cosine_BNM, -jnp.inf), self.k)
        count_N = jnp.minimum(jnp.sum(memory["valid_NM"], axis=1), self.k)
        counted_NK = jnp.arange(self.k)[None] < count_N[:, None]
        total_BN = jnp.sum(jnp.where(counted_NK[None], best_BNK, 0.0), axis=-1)
        return presented(total_BN / jnp.maximum(count_N, 1).astype(jnp.float32), learned_N)

    def size(self, width: int) -> int:
        """Numbers stored per task, room that stays empty included (and one bit for each sample besides)."""
        return self.most * width
