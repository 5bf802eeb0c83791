"""O-LoRA (arXiv 2310.14152): every task learns a LoRA of its own in directions orthogonal to those of earlier tasks.

The model answers with the sum of all tasks' updates, and each is trained on top of the frozen sum of those before. The
penalty is on the down projections, whose columns span what an update reads of its input: strength times the sum over
sites, layers and earlier tasks i of |A_i^T A|, entry by entry, absolute values (`absolute`, which the published results
were computed with) or squares (`squared`, as the paper writes it), in nats an answer token.

Different from the published code: no second penalty on the size of the new update (its weight is 0 in their scripts),
and by default the projector stays as it is, because tuning it for one task changes all others. Stored are all tasks'
experts, so the size grows with their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.methods.base import Learner, Loss
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.methods.stages import Stage, WrappedStage
from hidecmoe_jax.methods.summed import Summed
from hidecmoe_jax.models.llava import Batch, Model

Norm = Literal["absolute", "squared"]


@dataclass(frozen=True)
class OLora(Summed):
    """Summed experts with the penalty.

    Attributes:
      strength: weight of the penalty (0.5 in the paper).
      norm: how an entry of A_i^T A counts.
    """

    kind: ClassVar[str] = "olora"
    name: str = "o-lora"
    strength: float = 0.5
    norm: Norm = "absolute"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.strength < float("inf"):
            raise ValueError(f"strength {self.strength} must be at least 0 and finite")

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Tuning with the penalty."""
        (tune,) = self.inner.stages(lesson)
        return (TuneOrthogonal.around(tune, strength=self.strength, norm=self.norm),)


def overlap(past: Bank, live: Bank, norm: Norm) -> Array:
    """Sum of |A_i^T A| over sites, layers, the slots i of `past` and the entries [R, R], float32 []."""
    total = jnp.zeros(())
    for site in live.sites:
        # Slots without an owner are zeros and add nothing.
        product_LSRQ = jnp.einsum("ldsr,ldtq->lsrq", past.a[site], live.a[site])
        entries = jnp.abs(product_LSRQ) if norm == "absolute" else jnp.square(product_LSRQ)
        total = total + jnp.sum(entries)
    return total


@dataclass(frozen=True, kw_only=True)
class TuneOrthogonal(WrappedStage):
    """Tuning with the penalty."""

    strength: float
    norm: Norm

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """The inner loss, and the penalty for every answer token."""
        loss = self.inner.loss(model, learner, batch, key)
        return loss.with_penalty(self.strength * overlap(learner.past[LINEARS], learner.live[LINEARS], self.norm))
