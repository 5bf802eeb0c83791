"""Stages: the parts of learning a lesson, each with its own hooks.

A stage is a frozen dataclass and a static argument of the jitted training step. Stages of one kind must compare equal
across lessons, otherwise every lesson would compile its own program: a stage holds settings, never a lesson's number.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jax import Array

from hidecmoe_jax.data.rewording import FitWording
from hidecmoe_jax.methods.base import FrozenFeatures, Learner, Loss
from hidecmoe_jax.models.llava import Batch, Model

if TYPE_CHECKING:
    from hidecmoe_jax.methods.gates.anchors import Gate


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of learning a lesson. By default `subset`, `prepare` and `finish` change nothing, and `loss` and `usage`
    raise: a stage that trains defines `loss`, one that counts defines `usage`.

    Attributes:
      kind: name of the stage in random keys, files and metrics.
      source: what the stage reads. `answers` trains on batches; `usage` counts on batches without training; `features`
        reads the frozen model's features of every record.
      uses_past: whether old experts contribute while it trains. If False, old experts are left out of the forward pass,
        so a step costs one expert however many tasks there are.
      subset_name: which records of the lesson it reads: `all`, or a name that its `subset` draws.
      steps: at least so many optimiser steps, in whole passes over the subset; 0 leaves it to the task's epochs.
      rate: peak learning rate of experts and routers, where it is not the task's.
      accumulate: micro-batches of a step, where they are not the task's.
      wording: of the prompts whose features are read; only for source `features`.
      couples: whether the loss of a micro-batch is more than the sum over its answer tokens, as load balancing is: such
        a micro-batch has its records whether or not they are packed into rows.
    """

    kind: str
    source: Literal["answers", "usage", "features"] = "answers"
    uses_past: bool = False
    subset_name: str = "all"
    steps: int = 0
    rate: float | None = None
    accumulate: int | None = None
    wording: FitWording = "as_given"
    couples: bool = False

    @property
    def trains(self) -> bool:
        """Whether the optimiser runs."""
        return self.source == "answers"

    @property
    def compiled_as(self) -> Stage:
        """A stage of the same loss that holds nothing the loss does not read: the static argument of the jitted step,
        so that methods that train alike share a program."""
        return self

    def subset(self, count: int, seed: int) -> np.ndarray | None:
        """Indices of the records to read, int [M], from range(count); None for all."""
        return None

    def require(self, count: int) -> None:
        """Refuses a lesson of too few records; known before anything trains.

        Raises:
          DataError: names the number and the least one.
        """
        self.subset(count, 0)

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """Surgery before the stage: what trains goes to `live`, `tuned` and `routers`."""
        return learner

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """Training loss of a batch; of stages that train."""
        raise NotImplementedError(f"stage {self.kind} does not train")

    def usage(self, model: Model, learner: Learner, batch: Batch) -> Any:
        """What is counted on a batch, as arrays that are summed over batches; of stages with source `usage`."""
        raise NotImplementedError(f"stage {self.kind} does not count")

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """The learner after the stage, with nothing left in `live`, `tuned` and `routers`. Runs on the host.

        Args:
          result: features and counts of the subset; None after training.
        """
        return learner


@dataclass(frozen=True, kw_only=True)
class WrappedStage(Stage):
    """A stage around another one: every hook is forwarded, a subclass overrides what it changes."""

    inner: Stage

    @classmethod
    def around(cls, inner: Stage, **changes: Any) -> WrappedStage:
        """The wrapper with the settings of `inner`, but for the `changes`."""
        settings = {field.name: getattr(inner, field.name) for field in fields(Stage)}
        return cls(inner=inner, **settings | changes)

    def subset(self, count: int, seed: int) -> np.ndarray | None:
        """As the inner stage."""
        return self.inner.subset(count, seed)

    def require(self, count: int) -> None:
        """As the inner stage."""
        self.inner.require(count)

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """As the inner stage."""
        return self.inner.prepare(model, learner, lesson, key)

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """As the inner stage."""
        return self.inner.loss(model, learner, batch, key)

    def usage(self, model: Model, learner: Learner, batch: Batch) -> Any:
        """As the inner stage."""
        return self.inner.usage(model, learner, batch)

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """As the inner stage."""
        return self.inner.finish(model, learner, lesson, result, key)


@dataclass(frozen=True, kw_only=True)
class FitGate(Stage):
    """Fits the gate to the features of the lesson's records; nothing trains in the decoder."""

    gate: Gate
    kind: str = "locate"
    source: str = "features"

    def __post_init__(self):
        # A gate from outside the package may be older than the setting.
        wording = getattr(self.gate, "wording", "as_given")
        # The usual way to set a field of a frozen dataclass.
        object.__setattr__(self, "wording", wording)

    def require(self, count: int) -> None:
        """As the gate."""
        self.gate.require(count)

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Stores what the gate has learned of the task."""
        fitted = self.gate.fit(learner.memory.gate, lesson, result, key=key)
        return learner.replace(memory=learner.memory.replace(gate=fitted))
