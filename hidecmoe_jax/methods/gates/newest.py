"""No choice: every input is answered by what was learned last, as in a mixture with one router for all tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.methods.base import Decision, FrozenFeatures
from hidecmoe_jax.methods.gates.anchors import Memory, NamedGate


@dataclass(frozen=True)
class NewestGate(NamedGate):
    """The router of the task that was learned last answers everything.

    In a mixture every task's router begins as the one before, so this is a single token router that every task trains
    on, and that drifts away from what earlier tasks needed: a reference for what a router per task avoids.
    """

    kind: ClassVar[str] = "newest"

    def scores(self, memory: Memory, features: FrozenFeatures, learned_N: Array) -> Array:
        """1 for the task that was learned last and 0 for others, float32 [B, N]; -inf for tasks not in `learned_N`."""
        weight_BN = self.decide(memory, features, learned_N).weight_BN
        return jnp.where(learned_N[None], weight_BN, -jnp.inf)

    def decide(self, memory: Memory, features: FrozenFeatures, learned_N: Array) -> Decision:
        """One-hot on the task that was learned last; all zero before the first."""
        samples = features.pooled.text_BD.shape[0]
        tasks = learned_N.shape[0]
        number_N = jnp.arange(tasks)
        newest = jnp.max(jnp.where(learned_N, number_N, -1))
        # -1 is no task: its row is all zero.
        weight_N = jax.nn.one_hot(newest, tasks)
        weight_BN = jnp.broadcast_to(weight_N, (samples, tasks))
        return Decision(weight_BN, weight_BN)
