"""Learning without forgetting (LwF, arXiv 1606.09282) on sequential LoRA.

While a task is learned, the model as the last task left it answers the same records, and the model that trains is held
to its distribution over every answer token: loss + strength * T^2 * KL(old || new), both softened by the temperature T.
No record of an earlier task is needed, and nothing is stored beyond the shared expert; a step costs a second forward
pass. The first task has no earlier model and no such term (its step computes it all the same, at weight 0, so that all
tasks run one program).

Different from the paper: there are no heads of old tasks, so the old model's distribution over the answers of the new
task stands for them; T^2 is that of arXiv 1503.02531, which keeps the gradient's size when T is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.methods.base import FrozenFeatures, Learner, Loss, trainable, with_trainable
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.routed_stages import Tune
from hidecmoe_jax.methods.routed_wrapper import RoutedWrapper, require_shared
from hidecmoe_jax.methods.stages import Stage, WrappedStage
from hidecmoe_jax.models.llava import Batch, Model, answer_logits

EXTRAS = "lwf"
"""Name of the arrays of the method in `Learner.extras`, there only while a task is tuned: `old` and `weight`."""


@dataclass(frozen=True)
class Lwf(RoutedWrapper):
    """`inner`, distilled from itself as the last task left it.

    Attributes:
      strength: weight of the distillation.
      temperature: T, by which the logits of both models are divided.
    """

    kind: ClassVar[str] = "lwf"
    name: str = "lwf"
    inner: Routed = Routed(name="sequential", growth="shared")
    strength: float = 1.0
    temperature: float = 2.0

    def __post_init__(self):
        require_shared(self.inner, self.kind)
        if not 0 <= self.strength < float("inf") or not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"strength {self.strength} must be at least 0 and temperature {self.temperature} above 0, both finite"
            )

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Tuning with the distillation."""
        (tune,) = self.inner.stages(lesson)
        return (Distil.around(tune, strength=self.strength, temperature=self.temperature),)


def divergence(old_BAV: Array, new_BAV: Array, temperature: float) -> Array:
    """T^2 KL(softmax(old / T) || softmax(new / T)) at every answer column, float32 [B, A]."""
    old_log_p_BAV = jax.nn.log_softmax(old_BAV / temperature, axis=-1)
    new_log_p_BAV = jax.nn.log_softmax(new_BAV / temperature, axis=-1)
    old_p_BAV = jnp.exp(old_log_p_BAV)
    kl_BA = jnp.sum(old_p_BAV * (old_log_p_BAV - new_log_p_BAV), axis=-1)
    return temperature**2 * kl_BA


@dataclass(frozen=True, kw_only=True)
class Distil(WrappedStage):
    """Tuning with the distillation."""

    inner: Tune
    strength: float
    temperature: float

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """As the inner stage; what trains begins as the last task left it, and stays beside it as the old model."""
        ready = self.inner.prepare(model, learner, lesson, key)
        has_old = bool(self.inner.method.learned(learner))
        weight = jnp.float32(self.strength if has_old else 0.0)
        return ready.replace(extras={EXTRAS: {"old": trainable(ready), "weight": weight}})

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """Answer loss, and the weighted divergence from the old model, summed over answer tokens."""
        arrays = learner.extras[EXTRAS]
        new_model, new_voices = self.inner.forward(model, learner, key)
        new_BAV, _ = answer_logits(new_model, batch, new_voices)
        method = self.inner.method
        quiet = replace(self.inner, method=replace(method, lora=replace(method.lora, dropout=0.0)))
        old_model, old_voices = quiet.forward(model, with_trainable(learner, arrays["old"]), key)
        old_BAV, _ = answer_logits(old_model, batch, old_voices)
        old_BAV = jax.lax.stop_gradient(old_BAV)
        log_p_BAV = jax.nn.log_softmax(new_BAV, axis=-1)
        log_p_BA1 = jnp.take_along_axis(log_p_BAV, batch.answer_BA[..., None], axis=-1)
        loss_BA = arrays["weight"] * divergence(old_BAV, new_BAV, self.temperature) - log_p_BA1[..., 0]
        total = jnp.sum(jnp.where(batch.answer_mask_BA, loss_BA, 0.0))
        return Loss(total, jnp.sum(batch.answer_mask_BA, dtype=jnp.int32))

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """As the inner stage; the old model has served."""
        done = self.inner.finish(model, learner, lesson, result, key)
        return done.replace(extras={})
