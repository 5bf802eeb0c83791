"""What a method carries from task to task, and the hooks it must have.

Freezing is a place, not a mask: what trains sits in `live` and `tuned`, and the optimiser is initialised on that
alone, so an old expert can receive neither gradients nor moments nor decay. A method is a frozen dataclass of pure
hooks; its fields are its hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flax import struct
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Stream
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.models.llava import Batch, Model


@struct.dataclass
class Learner:
    """State of a method between two stages.

    Attributes:
      live: banks of experts that train now, by site family.
      tuned: leaves of the base (by path) that train now, such as the projector.
      past: banks that never train again.
      shared: leaves of the base as last tuned; they overlay the base for everybody.
      memory: everything else worth remembering (anchors).
    """

    live: dict[str, Bank]
    tuned: dict[str, Array]
    past: dict[str, Bank]
    shared: dict[str, Array]
    memory: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One part of learning a task.

    Attributes:
      kind: names the compiled program and the random numbers.
      trains: whether the optimiser runs; otherwise the stage only observes features.
      hears_past: whether old experts speak while it trains (if not, the loss never sees them and pays for one expert).
    """

    kind: str
    trains: bool = True
    hears_past: bool = False


@struct.dataclass
class Serving:
    """What answers: a model with the constant experts folded in, the bank that is still mixed per sample, if any, and
    what routing needs. `slot_LN` is the slot of every task in each layer of the bank (-1: none)."""

    model: Model
    bank: Bank | None
    slot_LN: Array | None
    memory: dict[str, Any]


@struct.dataclass
class Decision:
    """Who is heard, per sample and task: weights that enter the gate, scores they come from, float32 [B, N]."""

    weight_BN: Array
    score_BN: Array


def trainable(learner: Learner) -> dict:
    """The float leaves that the optimiser sees: {"experts": {family: factors}, "shared": {path: leaf}}."""
    return {"experts": {name: bank.factors for name, bank in learner.live.items()}, "shared": dict(learner.tuned)}


def with_trainable(learner: Learner, leaves: dict) -> Learner:
    """The learner with other trainable leaves."""
    live = {name: bank.with_factors(leaves["experts"][name]) for name, bank in learner.live.items()}
    return learner.replace(live=live, tuned=dict(leaves["shared"]))


def dressed(model: Model, leaves: dict[str, Array]) -> Model:
    """The base model with some leaves replaced by path."""
    return model.replace(params=trees.overlay(model.params, leaves)) if leaves else model


class Method(Protocol):
    """The hooks of a continual method (a frozen dataclass). All are pure."""

    name: str

    @property
    def needs_name(self) -> bool:
        """Whether answering needs the task's name (an upper reference, not a method)."""

    @property
    def isolates(self) -> bool:
        """Whether earlier lessons' experts must keep every byte."""

    def birth(self, model: Model, capacity: int) -> Learner:
        """The learner before the first task, with room for `capacity` tasks."""

    def stages(self) -> tuple[Stage, ...]:
        """Parts of learning one task, in order."""

    def lessons(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """Which tasks are learned together, in order; one lesson is one commit."""

    def records(self, stream: Stream, lesson: tuple[int, ...]) -> tuple[Record, ...]:
        """What a lesson trains on."""

    def before(self, model: Model, learner: Learner, stage: Stage, task: int, key: Array) -> Learner:
        """Surgery before a training stage: what trains goes to `live` and `tuned`."""

    def loss(self, model: Model, learner: Learner, stage: Stage, batch: Batch, key: Array) -> tuple[Array, Array]:
        """Summed loss (float32) and number of answer tokens (int32) of a batch."""

    def observe(self, learner: Learner, stage: Stage, task: int, pooled: Pooled, valid_B: Array) -> Learner:
        """One batch of features seen in a stage that does not train."""

    def after(self, model: Model, learner: Learner, stage: Stage, task: int) -> Learner:
        """Surgery after a stage; leaves nothing in `live` or `tuned`."""

    def variants(self) -> dict[str, Method]:
        """Other ways to serve the same archive, by name; the report shows their last row beside the method's own."""

    def keep(self, learner: Learner, task: int) -> dict[str, dict[str, Array]]:
        """What the ledger archives of lesson number `task`, as groups of flat arrays; never anything of another."""

    def recall(self, model: Model, capacity: int, kept: Sequence[dict[str, dict[str, Array]]]) -> Learner:
        """The learner after the lessons that were kept: the inverse of `keep`."""

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Numbers beyond the base: {stored, archived, trained} by {experts, routers, locator, projector}."""

    def serve(self, model: Model, learner: Learner) -> Serving:
        """What answers after the last finished task."""

    def decide(self, serving: Serving, pooled: Pooled, named_B: Array | None) -> Decision:
        """Weights of the tasks for every sample; `named_B` names the true task (upper reference) or is None."""

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """What the decoder hears."""
