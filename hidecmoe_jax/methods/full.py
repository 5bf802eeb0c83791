"""Sequential full fine-tuning: the whole decoder trains on one task after another, the projector along if wanted.

The comparison of both papers (arXiv 2503.12941, 2503.21227), and the one with the most to store: after a task the
archive holds every weight that trains, in float32, and so does the training step, four times (weights, gradient, two
moments). On a mesh these are replicated, like everything that trains here, so a device must hold them whole: 108 GB for
a 7B decoder. That is why this is for small bases, and no recipe for a large one.

Rates: what trains are leaves of the base, so their rate is `tune.projector_rate`, not `tune.rate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.methods.base import (
    Archive,
    Decision,
    FrozenFeatures,
    Learner,
    Loss,
    Method,
    Serving,
    no_choice,
    no_parameters,
    with_leaves,
)
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Batch, Model, answer_loss, decoder_leaves, projector_leaves
from hidecmoe_jax.models.quantised import is_quantised


@dataclass(frozen=True)
class Full(Method):
    """Every weight of the decoder trains.

    Attributes:
      train_projector: whether the projector trains along.
    """

    kind: ClassVar[str] = "full"
    name: str = "full"
    train_projector: bool = False

    def weights(self, model: Model) -> dict[str, Array]:
        """The leaves of the base that train, by path."""
        leaves = decoder_leaves(model)
        if self.train_projector:
            leaves = leaves | projector_leaves(model)
        return leaves

    def init(self, model: Model, capacity: int) -> Learner:
        """Nothing trained yet.

        Raises:
          ConfigError: the base's weights are int8, to which no step can be added.
        """
        if is_quantised(model):
            raise ConfigError(
                "an int8 base cannot be fine-tuned in full", where="method.kind: full", why="scale.bits is 8",
                remedy="set scale.bits=16, or train experts beside the base, as in configs/pocket/sequential.yaml",
            )  # fmt: skip
        return Learner({}, {}, {}, {}, {})

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Tuning."""
        return (TuneBase(method=self),)

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """No task owns an expert."""
        return ()

    def to_archive(self, learner: Learner, lesson: int) -> Archive:
        """The weights as this lesson left them, whole and not as differences."""
        return {"experts": {}, "shared": dict(learner.shared), "memory": {}}

    def from_archive(self, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
        """The learner after the last archived lesson: the inverse of `to_archive`."""
        learner = self.init(model, capacity)
        if not archive:
            return learner
        shared = {path: jnp.asarray(leaf) for path, leaf in archive[-1]["shared"].items()}
        return learner.replace(shared=shared)

    def describe_experts(self) -> str:
        """What it has in place of experts, for messages."""
        return "it has no experts: it changes the base's own weights"

    def serve(self, model: Model, learner: Learner) -> Serving:
        """The base with the trained weights in place of its own."""
        return Serving(with_leaves(model, learner.shared), None, None, {})

    def decide(self, serving: Serving, features: FrozenFeatures, named_B: Array | None) -> Decision:
        """There is no task to choose."""
        return no_choice(features)

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """None."""
        return ()

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Parameters that stand in place of the base's own after `tasks` tasks; the decoder's count as `experts`."""
        if not tasks:
            return no_parameters()
        projector = trees.count(projector_leaves(model)) if self.train_projector else 0
        return no_parameters() | {"experts": trees.count(decoder_leaves(model)), "projector": projector}

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Parameters that replace those of the base: {stored, archived, trained}; the decoder's count as `experts`."""
        stored = self.stored_after(model, len(learner.shared))
        return {"stored": stored, "archived": stored, "trained": stored}


@dataclass(frozen=True, kw_only=True)
class TuneBase(Stage):
    """Trains leaves of the base from where the last task left them."""

    method: Full
    kind: str = "tune"

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """Puts the leaves into training: float32 whatever the base is stored in, because a step of 2e-5 would be lost
        in bfloat16."""
        tuned = {}
        for path, leaf in self.method.weights(model).items():
            untuned = leaf.astype(jnp.float32)
            tuned[path] = learner.shared.get(path, untuned)
        return learner.replace(tuned=tuned)

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """Answer loss of the model with the leaves as they are now."""
        tuned_model = with_leaves(model, learner.shared | learner.tuned)
        total, tokens, _ = answer_loss(tuned_model, batch)
        return Loss(total, tokens)

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Hands the leaves on to the next task."""
        return learner.replace(tuned={}, shared=learner.shared | learner.tuned)
