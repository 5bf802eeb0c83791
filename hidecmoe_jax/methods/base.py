"""What a method carries from task to task, and the hooks it must have.

Freezing is a place, not a mask: what trains sits in `live` and `tuned`, and the optimiser is initialised on that
alone, so an old expert can receive neither gradients nor moments nor decay. A method is a frozen dataclass of pure
hooks; its fields are its hyper-parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flax import struct
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import NumericsError
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Stream
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.experts.surgery import merge_into_base
from hidecmoe_jax.experts.usage import Load
from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.models.llava import Batch, Model, Reading, decoder_layers, with_decoder_layers


@struct.dataclass
class Learner:
    """State of a method between two stages.

    Attributes:
      live: banks of experts that train now, by site family.
      tuned: leaves of the base (by path) that train now, such as the projector.
      past: banks that never train again.
      shared: leaves of the base as last tuned; they overlay the base for everybody.
      memory: everything else worth remembering (anchors, old routers, what a locator knows).
      routers: token routers [L, D, S] that train now, by family.
    """

    live: dict[str, Bank]
    tuned: dict[str, Array]
    past: dict[str, Bank]
    shared: dict[str, Array]
    memory: dict[str, Any]
    routers: dict[str, Array] = struct.field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One part of learning a task.

    Attributes:
      kind: names the compiled program and the random numbers.
      source: what the stage reads. `answers` trains on batches; `usage` counts on batches, without training; `features`
        shows the method what the frozen model says of every record.
      hears_past: whether old experts speak while it trains (if not, the loss never sees them and pays for one expert).
      part: which records of the lesson: `all`, or a name that the method's `part` knows.
      steps: at least so many optimiser steps, in whole passes over the part; 0 leaves it to the task's epochs.
      rate: peak learning rate of experts and routers, where it is not the task's.
      accumulate: micro-batches of a step, where they are not the task's.
    """

    kind: str
    source: Literal["answers", "usage", "features"] = "answers"
    hears_past: bool = False
    part: str = "all"
    steps: int = 0
    rate: float | None = None
    accumulate: int | None = None

    @property
    def trains(self) -> bool:
        """Whether the optimiser runs."""
        return self.source == "answers"


@struct.dataclass
class Serving:
    """What answers: a model with the constant experts folded in, the bank that is still mixed per sample, if any, and
    what routing needs. `slot_LN` is the slot that serves every task in each layer of the bank (-1: none); `missing`
    names tasks that were learned and could not be loaded, so that every answer can say so."""

    model: Model
    bank: Bank | None
    slot_LN: Array | None
    memory: dict[str, Any]
    missing: tuple[str, ...] = struct.field(pytree_node=False, default=())


@struct.dataclass
class FrozenFeatures:
    """What is known of samples without any expert.

    Attributes:
      pooled: CLIP's features.
      state_BD: the frozen base's state that the method's `reading` names, float32; None where it names none.
      usage: what the method's `usage` counted, summed over a stage; None outside `usage` stages.
    """

    pooled: Pooled
    state_BD: Array | None = None
    usage: Any = None


@struct.dataclass
class Match:
    """How sure a gate is of each sample's nearest task, [B].

    Attributes:
      nearest_B: int32, the learned task with the best score, and `score_B`, that score, or what is held against the
        limit in its place.
      limit_B: the score below which the sample belongs to no task; -inf where the gate has no thresholds.
      ahead_B: how far the best score is above the second best; inf where there is only one task.
      unknown_B, tied_B: bool, the score is below its limit; `ahead_B` is below the gate's `tie`.
      foreign: part of a task's own inputs that the limits were calibrated to call unknown; None without limits.
    """

    nearest_B: Array
    score_B: Array
    limit_B: Array
    ahead_B: Array
    unknown_B: Array
    tied_B: Array
    foreign: float | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class Decision:
    """Who is heard, per sample and task: weights that enter the gate, scores they come from, float32 [B, N].

    A sample whose weights are all zero belongs to no known task and is answered by the base alone, in methods that fuse
    layers by the base with its fused layers. `certainty` is None where nobody had to look for the task.
    """

    weight_BN: Array
    score_BN: Array
    certainty: Match | None = None


def trainable(learner: Learner) -> dict:
    """The float leaves that the optimiser sees, in groups that have a rate of their own: `experts` (factors by family),
    `routers` (by family) and `shared` (by path)."""
    experts = {name: bank.factors for name, bank in learner.live.items()}
    return {"experts": experts, "routers": dict(learner.routers), "shared": dict(learner.tuned)}


def with_trainable(learner: Learner, leaves: dict) -> Learner:
    """The learner with other trainable leaves."""
    live = {name: bank.with_factors(leaves["experts"][name]) for name, bank in learner.live.items()}
    return learner.replace(live=live, tuned=dict(leaves["shared"]), routers=dict(leaves["routers"]))


def check_finite(memory: dict[str, Any]) -> None:
    """Refuses to serve what routing would read as NaN or infinity.

    Raises:
      NumericsError: names the array (RT7); a softmax or a maximum would pass it on.
    """
    bad = trees.all_finite(memory)
    if bad is not None:
        raise NumericsError("what the gate knows is not finite", where=bad, remedy="learn the task again")


def with_leaves(model: Model, leaves: dict[str, Array]) -> Model:
    """The base model with some leaves replaced by path."""
    return model.replace(params=trees.overlay(model.params, leaves)) if leaves else model


def with_experts_folded(model: Model, bank: Bank, gain_LS: Array) -> Model:
    """The model with a bank's experts, as loud as `gain_LS`, added to the decoder's weights, in the base's dtypes."""
    return with_decoder_layers(model, merge_into_base(decoder_layers(model), bank, gain_LS))


@dataclass(frozen=True)
class Traits:
    """Properties of a method that runs, studies and exports depend on.

    Attributes:
      one_task_per_lesson: every lesson trains one task, so tasks can be added and taken back one by one.
      needs_task_name: answering needs the task's name (an upper reference, not a method).
      keeps_old_experts: earlier lessons' experts keep every byte while later ones are learned.
      mixes_tasks: one sample may be answered by several tasks' experts. If not, a sample whose task was located is
        answered as if the task had been named.
      answers_are_final: learning later tasks cannot change an answer (no fusion, frozen projector, hard gate), so
        cached answers stay valid. Never true of a method that `mixes_tasks`.
      reads: state of the frozen base that the gate reads, which costs a second prefill; None for no such state.
    """

    one_task_per_lesson: bool = True
    needs_task_name: bool = False
    keeps_old_experts: bool = False
    mixes_tasks: bool = False
    answers_are_final: bool = False
    reads: Reading | None = None


@struct.dataclass
class Loss:
    """Training loss of a batch.

    Attributes:
      total: loss summed over answer tokens, float32.
      tokens: number of answer tokens, int32.
      load: which experts the tokens chose; None where no token chooses.
    """

    total: Array
    tokens: Array
    load: Load | None = None


class Method(Protocol):
    """The hooks of a continual method (a frozen dataclass). All are pure.

    A class that inherits from it takes the hooks that have a body as they are; every other one it must define.
    """

    name: str
    lora = None
    """Shape of one expert (`Lora`); None where the method has no single shape."""
    gate = None
    """The gate that chooses a task for an input; None where there is none."""

    @property
    def traits(self) -> Traits:
        """What callers may rely on."""
        return Traits()

    @property
    def gated(self) -> bool:
        """Whether the gate has tasks to choose from."""
        return self.gate is not None

    @abstractmethod
    def init(self, model: Model, capacity: int) -> Learner:
        """The learner before the first task, with room for `capacity` tasks."""

    @abstractmethod
    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Parts of learning lesson number `lesson`, in order."""

    @abstractmethod
    def part(self, stage: Stage, count: int, seed: int) -> Array | None:
        """Numbers of the records, of `count`, that a stage with a `part` of its own reads; None for all."""

    def lessons(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """Which tasks are learned together, in order; one lesson is one commit. By default every task is a lesson."""
        return tuple((task,) for task in range(tasks))

    def records(self, stream: Stream, lesson: tuple[int, ...]) -> tuple[Record, ...]:
        """The training records of a lesson. By default those of its tasks."""
        return tuple(record for task in lesson for record in stream.tasks[task].train)

    @abstractmethod
    def before(self, model: Model, learner: Learner, stage: Stage, lesson: int, key: Array) -> Learner:
        """Surgery before a training stage: what trains goes to `live` and `tuned`."""

    @abstractmethod
    def loss(self, model: Model, learner: Learner, stage: Stage, batch: Batch, key: Array) -> Loss:
        """Training loss of a batch."""

    @abstractmethod
    def usage(self, model: Model, learner: Learner, stage: Stage, batch: Batch) -> Any:
        """What a `usage` stage counts on a batch, as arrays that are summed over batches."""

    @abstractmethod
    def fit(
        self, model: Model, learner: Learner, stage: Stage, lesson: int, seen: FrozenFeatures, key: Array
    ) -> Learner:
        """The learner after a stage that does not train: stores what was measured. Runs on the host."""

    @abstractmethod
    def after(self, model: Model, learner: Learner, stage: Stage, lesson: int) -> Learner:
        """Surgery after a stage; leaves nothing in `live` or `tuned`."""

    def variants(self) -> dict[str, Method]:
        """Other ways to serve the same archive, by name; the report shows their last row beside the method's own."""
        return {}

    @abstractmethod
    def learned(self, learner: Learner) -> tuple[int, ...]:
        """Numbers of the tasks that can be answered from the learner's experts."""

    @abstractmethod
    def to_archive(self, learner: Learner, lesson: int) -> dict[str, dict[str, Array]]:
        """What the ledger archives of lesson number `lesson`, as groups of flat arrays; never anything of another."""

    @abstractmethod
    def from_archive(self, model: Model, capacity: int, kept: Sequence[dict[str, dict[str, Array]] | None]) -> Learner:
        """The learner after the lessons that were archived: the inverse of `to_archive`. A lesson that is None could
        not be loaded: it must not contribute and must not be chosen. Only a method that `keeps_old_experts` is asked
        for that."""

    def is_gate_leaf(self, path: str) -> bool:
        """Whether a leaf of an archive's `memory` group belongs to the gate. By default those below `gate/`."""
        return path.startswith("gate/")

    def describe_experts(self) -> str:
        """Where the experts are and what is routed among them, for messages."""
        return "only the method itself knows how its experts are routed"

    @abstractmethod
    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Parameters beyond the base: {stored, archived, trained} by {experts, routers, locator, projector}."""

    def growth_of(self, model: Model, learner: Learner) -> dict[str, Any]:
        """Where a growing method added experts and why, as plain values for the report; empty for others."""
        return {}

    @abstractmethod
    def serve(self, model: Model, learner: Learner) -> Serving:
        """The serving state after the last finished task."""

    @abstractmethod
    def decide(self, serving: Serving, seen: FrozenFeatures, named_B: Array | None) -> Decision:
        """Weights of the tasks for every sample; `named_B` names the true task (upper reference) or is None."""

    @abstractmethod
    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """The voices that the decoder takes for a decision."""
