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
    foreign: ClassVar[None] = None  # calls no input unknown, so that detection has no settings
    unknown_settings: ClassVar[dict[str, float | None]] = {}
    smoothing: float = 1.0

    def blank(self, capacity: int, model: Model) -> dict[str, Array]:
        """Memory with room for `capacity` tasks."""
        return {"count_N": jnp.zeros((capacity,))}

    def require(self, count: int) -> None:
        """Any number of records can be counted."""

    def fit(self, memory: dict[str, Array], task: int, features: FrozenFeatures, *, key: Array) -> dict[str, Array]:
        """The memory with the task's number of records."""
        records = len(features.pooled.image_BE)
        return memory | {"count_N": memory["count_N"].at[task].set(records)}

    def scores(self, memory: dict[str, Array], features: FrozenFeatures, learned_N: Array) -> Array:
        """The number of records of every task, float32 [B, N]; -inf for tasks that are not learned (bool [N])."""
        score_N = jnp.where(learned_N, memory["count_N"], -jnp.inf)
        return jnp.broadcast_to(score_N, (len(features.pooled.image_BE), len(score_N)))

    def decide(self, memory: dict[str, Array], features: FrozenFeatures, learned_N: Array) -> Decision:
        """The same weights [B, N] for every sample; they sum to 1 over learned tasks."""
        share_N = jnp.where(learned_N, memory["count_N"] + self.smoothing, 0.0)
        share_N = share_N / jnp.maximum(jnp.sum(share_N), 1.0)  # no learned task: all weights are 0
        weight_BN = jnp.broadcast_to(share_N, (len(features.pooled.image_BE), len(share_N)))
        return Decision(weight_BN, weight_BN)

    def to_archive(self, memory: dict[str, Array], task: int) -> dict[str, Array]:
        """What the ledger stores of one task."""
        return {"count_N": memory["count_N"][task]}

    def from_archive(self, memory: dict[str, Array], task: int, archive: dict[str, Array]) -> dict[str, Array]:
        """The inverse of `to_archive`."""
        return memory | {"count_N": memory["count_N"].at[task].set(archive["count_N"])}

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
