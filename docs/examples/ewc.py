"""Elastic weight consolidation (arXiv 1612.00796) around a method that trains one shared expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from hidecmoe_jax.core import trees
from hidecmoe_jax.methods.base import trainable, with_trainable
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.stages import WrappedStage
from hidecmoe_jax.methods.wrapper import Wrapper


@dataclass(frozen=True)
class Ewc(Wrapper):
    """`inner` with a penalty of weight `strength`; its arrays are in `Learner.extras`."""

    kind: ClassVar[str] = "ewc"
    name: str = "ewc"
    inner: Routed = Routed(name="sequential", growth="shared")
    strength: float = 1.0

    def init(self, model, capacity):
        learner = self.inner.init(model, capacity)
        (tune,) = self.inner.stages(0)
        zeros = jax.tree.map(jnp.zeros_like, trainable(tune.prepare(model, learner, 0, jax.random.key(0))))
        return learner.replace(extras={"ewc": {"fisher": zeros, "anchor": zeros}})

    def stages(self, lesson):
        (tune,) = self.inner.stages(lesson)
        return Penalised.around(tune, strength=self.strength), CountFisher.around(tune, kind="fisher", source="usage")

    def to_archive(self, learner, lesson):
        archive = self.inner.to_archive(learner, lesson)
        ewc = {f"ewc/{path}": leaf for path, leaf in trees.flatten(learner.extras["ewc"]).items()}
        return archive | {"memory": archive["memory"] | ewc}

    def from_archive(self, model, capacity, archive):
        learner, ewc = self.inner.from_archive(model, capacity, archive), self.init(model, capacity).extras["ewc"]
        if archive:
            stored = {path.removeprefix("ewc/"): jnp.asarray(leaf) for path, leaf in archive[-1]["memory"].items()}
            ewc = trees.restore_into(ewc, stored)
        return learner.replace(extras={"ewc": ewc})


@dataclass(frozen=True, kw_only=True)
class Penalised(WrappedStage):
    """Tuning with a penalty that pulls leaves which mattered to earlier tasks back to where the last task left them."""

    strength: float

    def loss(self, model, learner, batch, key):
        loss, ewc = self.inner.loss(model, learner, batch, key), learner.extras["ewc"]
        pull = jax.tree.map(lambda f, x, a: jnp.sum(f * (x - a) ** 2), ewc["fisher"], trainable(learner), ewc["anchor"])
        penalty = 0.5 * self.strength * sum(jax.tree.leaves(pull))
        return loss.replace(total=loss.total + penalty * loss.tokens.astype(jnp.float32))


class CountFisher(WrappedStage):
    """Adds a task's diagonal Fisher information: the mean of the squared gradients of its records, after tuning."""

    def usage(self, model, learner, batch):
        def loss(leaves, record):
            batch_of_one = jax.tree.map(lambda leaf: leaf[None], record)
            return self.inner.loss(model, with_trainable(learner, leaves), batch_of_one, jax.random.key(0)).total

        def squared(record):
            return jax.tree.map(jnp.square, jax.grad(loss)(trainable(learner), record))

        return jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.lax.map(squared, batch))

    def finish(self, model, learner, lesson, result, key):
        records, old = len(result.pooled.text_BD), learner.extras["ewc"]["fisher"]
        fisher = jax.tree.map(lambda f, new: f + jnp.asarray(new / records, jnp.float32), old, result.usage)
        extras = {"ewc": {"fisher": fisher, "anchor": trainable(learner)}}
        return self.inner.finish(model, learner.replace(extras=extras), lesson, None, key)
