"""A method around another one: every hook is forwarded, and a wrapper overrides what it changes.

Regularisers such as EWC wrap: they change stages (`stages.WrappedStage`) and store arrays of their own in
`Learner.extras`, which the inner method passes on untouched. Capabilities are not forwarded: a wrapper implements those
that it supports (`routed_wrapper` has those that a regulariser leaves as they are).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Stream
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.methods.base import Archive, Decision, FrozenFeatures, Learner, Method, Serving, Traits
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Model

if TYPE_CHECKING:
    from hidecmoe_jax.methods.gates.anchors import Gate
    from hidecmoe_jax.methods.lora import Lora


class Wrapper(Method):
    """Forwards every hook to `inner`, which a subclass has as a field or as a property."""

    inner: Method

    @property
    def lora(self) -> Lora | None:
        """As the inner method."""
        return self.inner.lora

    @property
    def gate(self) -> Gate | None:
        """As the inner method."""
        return self.inner.gate

    @property
    def traits(self) -> Traits:
        """As the inner method."""
        return self.inner.traits

    @property
    def gated(self) -> bool:
        """As the inner method."""
        return self.inner.gated

    def gate_memory(self, learner: Learner) -> dict[str, Array]:
        """As the inner method."""
        return self.inner.gate_memory(learner)

    def init(self, model: Model, capacity: int) -> Learner:
        """As the inner method."""
        return self.inner.init(model, capacity)

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """As the inner method."""
        return self.inner.stages(lesson)

    def lessons(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """As the inner method."""
        return self.inner.lessons(tasks)

    def records(self, stream: Stream, lesson: tuple[int, ...]) -> tuple[Record, ...]:
        """As the inner method."""
        return self.inner.records(stream, lesson)

    def sources(self, lesson: tuple[int, ...]) -> tuple[int, ...]:
        """As the inner method."""
        return self.inner.sources(lesson)

    def variants(self) -> dict[str, Method]:
        """This wrapper around every variant of the inner method. A wrapper whose `inner` is a property overrides it."""
        return {name: replace(self, inner=variant) for name, variant in self.inner.variants().items()}

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """As the inner method."""
        return self.inner.learned(learner)

    def to_archive(self, learner: Learner, lesson: int) -> Archive:
        """As the inner method."""
        return self.inner.to_archive(learner, lesson)

    def from_archive(self, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
        """As the inner method."""
        return self.inner.from_archive(model, capacity, archive)

    def redirects(self, learner: Learner) -> dict[tuple[int, int], np.ndarray]:
        """As the inner method."""
        return self.inner.redirects(learner)

    def is_gate_leaf(self, path: str) -> bool:
        """As the inner method."""
        return self.inner.is_gate_leaf(path)

    def describe_experts(self) -> str:
        """As the inner method."""
        return self.inner.describe_experts()

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """As the inner method."""
        return self.inner.sizes(model, learner)

    def growth_of(self, model: Model, learner: Learner) -> dict[str, Any]:
        """As the inner method."""
        return self.inner.growth_of(model, learner)

    def serve(self, model: Model, learner: Learner) -> Serving:
        """As the inner method."""
        return self.inner.serve(model, learner)

    def decide(self, serving: Serving, features: FrozenFeatures, named_B: Array | None) -> Decision:
        """As the inner method."""
        return self.inner.decide(serving, features, named_B)

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """As the inner method."""
        return self.inner.voices(serving, decision)
