"""A gate: every task weighs as much as it had records, whatever the input is.

`Priors` is the method of a config with `kind: prior_gate:Priors`, which needs no edit of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.methods.base import Decision, FrozenFeatures
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.llava import Model


@dataclass(frozen=True)
class PriorGate:
    """Weights proportional to the number of training records.

    Attributes:
      smoothing: records that every learned task is given in addition.
    """

    kind: ClassVar[str] = "prior"
    reads: ClassVar[None] = None  # no state of the base: CLIP's features or less are enough
    mixes_tasks: ClassVar[bool] = True
    stores: ClassVar[str] = "prototypes"  # name of its file in `export --to hub`
    unknown_settings: ClassVar[dict[str, float | None]] = {}
    smoothing: float = 1.0

    def blank(self, capacity: int, model: Model) -> dict[str, Array]:
        """Memory with room for `capacity` tasks."""
        return {"count_N": jnp.zeros((capacity,))}

    def fit(self, memory: dict[str, Array], task: int, seen: FrozenFeatures, *, key: Array) -> dict[str, Array]:
        """The memory with the task's number of records."""
        records = len(seen.pooled.image_BE)
        return memory | {"count_N": memory["count_N"].at[task].set(records)}

    def decide(self, memory: dict[str, Array], seen: FrozenFeatures, learned_N: Array) -> Decision:
        """The same weights [B, N] for every sample; they sum to 1 over learned tasks."""
        share_N = jnp.where(learned_N, memory["count_N"] + self.smoothing, 0.0)
        share_N = share_N / jnp.maximum(jnp.sum(share_N), 1.0)  # no learned task: all weights are 0
        weight_BN = jnp.broadcast_to(share_N, (len(seen.pooled.image_BE), len(share_N)))
        return Decision(weight_BN, weight_BN)

    def to_archive(self, memory: dict[str, Array], task: int) -> dict[str, Array]:
        """What the ledger stores of one task."""
        return {"count_N": memory["count_N"][task]}

    def from_archive(self, memory: dict[str, Array], task: int, kept: dict[str, Array]) -> dict[str, Array]:
        """The inverse of `to_archive`."""
        return memory | {"count_N": memory["count_N"].at[task].set(kept["count_N"])}

    def size(self, model: Model) -> int:
        """Parameters stored per task."""
        return 1

    def flops(self, stored: int, *, model: Model, tasks: int) -> int:
        """Operations of one decision, for which `stored` numbers are stored: a normalisation over the tasks."""
        return 2 * stored


@dataclass(frozen=True)
class Priors(Routed):
    """One expert per task in the last layer, weighted by the number of records."""

    gate: PriorGate = PriorGate()
    fusion: str = "product_mean"
