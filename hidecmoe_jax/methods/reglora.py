"""RegLoRA, the regularised LoRA of SEFE (arXiv 2505.02486): later updates keep out of the key elements of earlier ones.

The key elements of a task are the largest `share` of the entries of its update a b, by magnitude, in every matrix. The
penalty is strength times the mean magnitude of the new update at the key elements of all earlier tasks, summed over
sites and layers, without the scale alpha / rank, in nats an answer token. Every task trains a LoRA on top of the frozen
sum of those before, and the sum answers.

Different from SEFE: its other half, which rewrites the answers of the training data in several styles, is a change of
data and not done here; a key element of several tasks counts once in the mean; and by default the projector stays as it
is. Stored are all tasks' experts. The key elements are found again from them when a task begins, one byte for every
entry of the adapted matrices while it trains (6.5 GB at 7B), and the dense update is formed in every step, one layer at
a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.methods.base import FrozenFeatures, Learner, Loss
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.methods.stages import Stage, WrappedStage
from hidecmoe_jax.methods.summed import Summed
from hidecmoe_jax.models.llava import Batch, Model

EXTRAS = "reglora"
"""Name of the arrays of the method in `Learner.extras`, there only while a task is tuned: `key` by site."""


@dataclass(frozen=True)
class RegLora(Summed):
    """Summed experts with the penalty.

    Attributes:
      strength: weight of the penalty (2500 in SEFE).
      share: part of a matrix that is key to a task (0.02 in SEFE).
    """

    kind: ClassVar[str] = "reglora"
    name: str = "reglora"
    strength: float = 2500.0
    share: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.strength < float("inf") or not 0 < self.share <= 1:
            raise ValueError(
                f"strength {self.strength} must be at least 0 and finite, and share {self.share} in (0, 1]"
            )

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Tuning with the penalty."""
        (tune,) = self.inner.stages(lesson)
        return (TuneApart.around(tune, strength=self.strength, share=self.share),)


@partial(jax.jit, static_argnames="share")
def key_elements(bank: Bank, share: float) -> dict[str, Array]:
    """Whether an entry is among the largest `share` of some slot's update; bool [L, D, F] by site. Entries equal to the
    smallest of them are key as well; slots without an owner have none."""

    def of_slot(a_DR: Array, b_RF: Array, is_owned: Array) -> Array:
        magnitude_DF = jnp.abs(a_DR @ b_RF)
        count = max(1, int(share * magnitude_DF.size))
        ascending = jnp.sort(magnitude_DF.ravel())
        return is_owned & (magnitude_DF >= ascending[-count])

    def of_layer(layer: tuple[Array, Array, Array]) -> Array:
        a_DSR, b_SRF, is_owned_S = layer
        slots = (jnp.moveaxis(a_DSR, 1, 0), b_SRF, is_owned_S)
        found_SDF = jax.lax.map(lambda slot: of_slot(*slot), slots)
        return jnp.any(found_SDF, axis=0)

    is_owned_LS = bank.owner_LS >= 0
    return {site: jax.lax.map(of_layer, (bank.a[site], bank.b[site], is_owned_LS)) for site in bank.sites}


def size_at(expert: Bank, key: dict[str, Array]) -> Array:
    """Mean magnitude of a one-slot bank's updates at the key elements, summed over sites and layers, float32 []."""

    # Computed again in the backward pass: all dense updates at once would be as large as the model.
    @jax.checkpoint
    def of_layer(layer: tuple[Array, Array, Array]) -> Array:
        a_DSR, b_SRF, key_DF = layer
        magnitude_DF = jnp.abs(a_DSR[:, 0] @ b_SRF[0])
        total = jnp.sum(jnp.where(key_DF, magnitude_DF, 0.0))
        # Before the second task nothing is key.
        return total / jnp.maximum(jnp.sum(key_DF), 1)

    total = jnp.zeros(())
    for site in expert.sites:
        total = total + jnp.sum(jax.lax.map(of_layer, (expert.a[site], expert.b[site], key[site])))
    return total


@dataclass(frozen=True, kw_only=True)
class TuneApart(WrappedStage):
    """Tuning with the penalty."""

    strength: float
    share: float

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """As the inner stage, with the key elements of all tasks so far."""
        ready = self.inner.prepare(model, learner, lesson, key)
        found = key_elements(ready.past[LINEARS], self.share)
        return ready.replace(extras={EXTRAS: {"key": found}})

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """The inner loss, and the penalty for every answer token."""
        loss = self.inner.loss(model, learner, batch, key)
        return loss.with_penalty(self.strength * size_at(learner.live[LINEARS], learner.extras[EXTRAS]["key"]))

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """As the inner stage; the key elements have served."""
        done = self.inner.finish(model, learner, lesson, result, key)
        return done.replace(extras={})
