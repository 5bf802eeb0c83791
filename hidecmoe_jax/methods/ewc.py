"""Elastic weight consolidation (EWC, arXiv 1612.00796) on sequential LoRA.

Every parameter that trains is pulled back to where the last task left it, in proportion to how much earlier tasks
depend on it: 0.5 * strength * sum_j F_j (x_j - anchor_j)^2, in nats an answer token. F is the diagonal of the empirical
Fisher information, the mean over a task's records of the squared gradient of a record's summed answer loss, without
dropout.

Different from the paper: the Fisher information of all tasks is summed around one anchor, the parameters after the last
task, where the paper has one penalty a task. Answering needs the expert alone; learning on needs the sum as well, which
is archived with every task and as large as what trains. The anchor is what the archive holds anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.methods.base import Archive, FrozenFeatures, Learner, Loss, trainable, with_trainable
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.routed_wrapper import RoutedWrapper, require_shared
from hidecmoe_jax.methods.stages import Stage, WrappedStage
from hidecmoe_jax.models.llava import Batch, Model

EXTRAS = "ewc"
"""Name of the arrays of the method in `Learner.extras`: `fisher`, and while a task is tuned `anchor`."""


@dataclass(frozen=True)
class Ewc(RoutedWrapper):
    """`inner` with the penalty.

    Attributes:
      strength: weight of the penalty.
      fisher_records: how many records of a task its Fisher information is counted on, drawn at random; null for all.
        Each costs a backward pass of its own.
    """

    kind: ClassVar[str] = "ewc"
    name: str = "ewc"
    inner: Routed = Routed(name="sequential", growth="shared")
    strength: float = 1.0
    fisher_records: int | None = None

    def __post_init__(self):
        require_shared(self.inner, self.kind)
        if not 0 <= self.strength < float("inf"):
            raise ValueError(f"strength {self.strength} must be at least 0 and finite")
        if self.fisher_records is not None and self.fisher_records < 1:
            raise ValueError(f"fisher_records {self.fisher_records} must be at least 1, or null for all")

    def init(self, model: Model, capacity: int) -> Learner:
        """As the inner method, with a Fisher information of zero."""
        learner = self.inner.init(model, capacity)
        tune = self.inner.stages(0)[0]
        ready = tune.prepare(model, learner, 0, jax.random.key(0))
        fisher = jax.tree.map(jnp.zeros_like, trainable(ready))
        return learner.replace(extras={EXTRAS: {"fisher": fisher}})

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Tuning with the penalty, then counting the task's Fisher information."""
        (tune,) = self.inner.stages(lesson)
        quiet = replace(tune, method=replace(self.inner, lora=replace(self.inner.lora, dropout=0.0)))
        return (
            Consolidate.around(tune, strength=self.strength),
            CountFisher.around(quiet, kind="fisher", source="usage", most=self.fisher_records),
        )

    def to_archive(self, learner: Learner, lesson: int) -> Archive:
        """As the inner method, with the Fisher information of all tasks so far."""
        archive = self.inner.to_archive(learner, lesson)
        stored = trees.flatten({EXTRAS: learner.extras[EXTRAS]})
        return archive | {"memory": archive["memory"] | stored}

    def from_archive(self, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
        """The inverse of `to_archive`."""
        extras = self.init(model, capacity).extras
        if archive:
            stored = archive[-1]["memory"]
            leaves = {path: jnp.asarray(stored[path]) for path in trees.flatten(extras)}
            extras = trees.restore_into(extras, leaves)
        learner = self.inner.from_archive(model, capacity, archive)
        return learner.replace(extras=extras)

    def is_gate_leaf(self, path: str) -> bool:
        """None is."""
        return False

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """As the inner method; the archive also holds a Fisher information for every parameter that trains."""
        sizes = self.inner.sizes(model, learner)
        archived = {name: count + sizes["trained"][name] for name, count in sizes["archived"].items()}
        return sizes | {"archived": archived}


def penalty(leaves: Any, anchor: Any, fisher: Any) -> Array:
    """0.5 * sum F (x - anchor)^2 over trees of one structure, float32 []."""
    pulls = jax.tree.map(lambda x, a, f: jnp.sum(f * jnp.square(x - a)), leaves, anchor, fisher)
    return 0.5 * sum(jax.tree.leaves(pulls), jnp.zeros(()))


@dataclass(frozen=True, kw_only=True)
class Consolidate(WrappedStage):
    """Tuning with the penalty."""

    strength: float

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """As the inner stage; what trains is also the anchor, because the shared expert begins as it was left."""
        ready = self.inner.prepare(model, learner, lesson, key)
        arrays = ready.extras[EXTRAS] | {"anchor": trainable(ready)}
        return ready.replace(extras={EXTRAS: arrays})

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """The inner loss, and the penalty for every answer token."""
        loss = self.inner.loss(model, learner, batch, key)
        arrays = learner.extras[EXTRAS]
        return loss.with_penalty(self.strength * penalty(trainable(learner), arrays["anchor"], arrays["fisher"]))

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """As the inner stage; the anchor has served."""
        done = self.inner.finish(model, learner, lesson, result, key)
        return done.replace(extras={EXTRAS: {"fisher": done.extras[EXTRAS]["fisher"]}})


@dataclass(frozen=True, kw_only=True)
class CountFisher(WrappedStage):
    """Adds a task's Fisher information, after tuning."""

    most: int | None

    def subset(self, count: int, seed: int) -> np.ndarray | None:
        """At most `most` of the records, in their order."""
        if self.most is None or self.most >= count:
            return None
        drawn = np.random.default_rng(seed).permutation(count)[: self.most]
        return np.sort(drawn)

    def usage(self, model: Model, learner: Learner, batch: Batch) -> dict[str, Any]:
        """Squared gradients summed over records (`squared`), and the number of records (`count`)."""

        def loss(leaves: Any, record: Batch) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], record)
            return self.inner.loss(model, with_trainable(learner, leaves), alone, jax.random.key(0)).total

        def squared(record: Batch) -> Any:
            gradient = jax.grad(loss)(trainable(learner), record)
            return jax.tree.map(jnp.square, gradient)

        # One record after the other: all gradients at once are as many times what trains.
        squares = jax.lax.map(squared, batch)
        summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), squares)
        # Rows that fill up the last batch have no answer.
        is_record_B = jnp.any(batch.answer_mask_BA, axis=1)
        return {"squared": summed, "count": is_record_B.sum(dtype=jnp.int32)}

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Adds the mean of the squared gradients to the sum of earlier tasks."""
        count = result.usage["count"]
        old = learner.extras[EXTRAS]["fisher"]
        fisher = jax.tree.map(lambda f, s: f + jnp.asarray(s / count, jnp.float32), old, result.usage["squared"])
        counted = learner.replace(extras={EXTRAS: {"fisher": fisher}})
        return self.inner.finish(model, counted, lesson, None, key)
