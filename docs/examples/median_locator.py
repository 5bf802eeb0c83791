"""A locator: a task scores minus the L1 distance to the median of its standardised features.

`Medians` is the method of a config with `kind: median_locator:Medians`, which needs no edit of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.locators.standard import (
    Standardised,
    blank_standard,
    checked_features,
    masked_scores,
    standardised,
    with_row,
    with_standard,
)
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.routed import Routed


@dataclass(frozen=True)
class NearestMedian(Standardised):
    """Nearest class median.

    Attributes:
      clip: standardised features are cut off at +-clip.
    """

    clip: float = 5.0
    kind: ClassVar[str] = "nearest_median"

    def blank(self, capacity: int, width: int) -> dict[str, Array]:
        """Memory with room for `capacity` tasks: `median_ND` and the standardisation."""
        return blank_standard(width) | {"median_ND": jnp.zeros((capacity, width))}

    def fit(self, memory: dict[str, Array], task: int, features_ND: Array, *, key: Array) -> dict[str, Array]:
        """The memory with row `task` written from features [N, D]; nothing is random."""
        del key
        features_ND = checked_features(features_ND, memory, task, capacity=len(memory["median_ND"]))
        # The first task's mean and deviation standardise the features of all tasks.
        memory = with_standard(memory, features_ND)
        rows_ND = standardised(memory, features_ND, self.clip)
        return with_row(memory, task, {"median_ND": jnp.median(rows_ND, axis=0)})

    def scores(self, memory: dict[str, Array], features_BD: Array, learned_N: Array) -> Array:
        """Higher is nearer, float32 [B, N]; -inf for tasks that are not learned (bool [N])."""
        rows_BD = standardised(memory, features_BD, self.clip)
        offset_BND = rows_BD[:, None] - memory["median_ND"][None]
        return masked_scores(-jnp.sum(jnp.abs(offset_BND), axis=-1), learned_N)

    def size(self, width: int) -> int:
        """Parameters stored per task."""
        return width


@dataclass(frozen=True)
class MedianGate(LocatorGate):
    """The package's gate of a locator, with this one."""

    by: NearestMedian = NearestMedian()


@dataclass(frozen=True)
class Medians(Routed):
    """One expert per task in every layer, found by medians."""

    gate: MedianGate = MedianGate()
    expand: str = "all"
    train_projector: bool = False
