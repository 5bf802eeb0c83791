"""Sequential LoRA pulled back to where the last task left it, all parameters alike (L2-SP, arXiv 1802.01483)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from hidecmoe_jax.methods.base import trainable
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.stages import WrappedStage
from hidecmoe_jax.methods.wrapper import Wrapper


@dataclass(frozen=True)
class Pull(Wrapper):
    """`inner` with a penalty of weight `strength`."""

    kind: ClassVar[str] = "pull"
    name: str = "pull"
    inner: Routed = Routed(name="sequential", growth="shared")
    strength: float = 1.0

    def stages(self, lesson):
        (tune,) = self.inner.stages(lesson)
        return (PulledBack.around(tune, strength=self.strength),)


@dataclass(frozen=True, kw_only=True)
class PulledBack(WrappedStage):
    """Tuning with the penalty; where it begins is in `Learner.extras` while it runs."""

    strength: float

    def prepare(self, model, learner, lesson, key):
        ready = self.inner.prepare(model, learner, lesson, key)
        strength = jnp.float32(self.strength if self.inner.method.learned(learner) else 0.0)  # the first task is free
        return ready.replace(extras={"pull": {"anchor": trainable(ready), "strength": strength}})

    def loss(self, model, learner, batch, key):
        loss, pull = self.inner.loss(model, learner, batch, key), learner.extras["pull"]
        squares = jax.tree.map(lambda x, a: jnp.sum((x - a) ** 2), trainable(learner), pull["anchor"])
        return loss.with_penalty(0.5 * pull["strength"] * sum(jax.tree.leaves(squares)))

    def finish(self, model, learner, lesson, result, key):
        return self.inner.finish(model, learner, lesson, result, key).replace(extras={})
