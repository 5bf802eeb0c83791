"""What a method carries from task to task, and the hooks it must have.

Freezing is a place, not a mask: what trains sits in `live` and `tuned`, and the optimiser is initialised on that
alone, so an old expert can receive neither gradients nor moments nor decay. A method is a frozen dataclass of pure
hooks; its fields are its hyper-parameters.
"""

from __future__ import annotations

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
from hidecmoe_jax.models.llava import Batch, Model, Reading


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
    decoder = dict(model.params["decoder"])
    decoder["layers"] = merge_into_base(decoder["layers"], bank, gain_LS)
    return model.replace(params={**model.params, "decoder": decoder})


class Method(Protocol):
    """The hooks of a continual method (a frozen dataclass). All are pure."""

    name: str

    @property
    def needs_name(self) -> bool:
        """Whether answering needs the task's name (an upper reference, not a method)."""

    @property
    def isolates(self) -> bool:
        """Whether earlier lessons' experts must keep every byte."""

    @property
    def blends(self) -> bool:
        """Whether one sample may hear several tasks' experts. If not, one that finds its task is answered as if the
        task had been named."""

    @property
    def lasting(self) -> bool:
        """Whether what a sample is answered, once its task is chosen, never changes while later tasks are learned. Rows
        of a run then take such answers from earlier rows. Never for a method that `blends`."""

    @property
    def reading(self) -> Reading | None:
        """The state of the frozen base that it looks at, which costs a second prefill at inference; None for none."""

    def init(self, model: Model, capacity: int) -> Learner:
        """The learner before the first task, with room for `capacity` tasks."""

    def stages(self, task: int) -> tuple[Stage, ...]:
        """Parts of learning lesson number `task`, in order."""

    def part(self, stage: Stage, count: int, seed: int) -> Array | None:
        """Numbers of the records, of `count`, that a stage with a `part` of its own reads; None for all."""

    def lessons(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """Which tasks are learned together, in order; one lesson is one commit."""

    def records(self, stream: Stream, lesson: tuple[int, ...]) -> tuple[Record, ...]:
        """What a lesson trains on."""

    def before(self, model: Model, learner: Learner, stage: Stage, task: int, key: Array) -> Learner:
        """Surgery before a training stage: what trains goes to `live` and `tuned`."""

    def loss(
        self, model: Model, learner: Learner, stage: Stage, batch: Batch, key: Array
    ) -> tuple[Array, Array, Load | None]:
        """Summed loss (float32) and number of answer tokens (int32) of a batch, and which experts its tokens chose;
        None where no token chooses."""

    def usage(self, model: Model, learner: Learner, stage: Stage, batch: Batch) -> Any:
        """What a `usage` stage counts on a batch, as arrays that are summed over batches."""

    def fit(self, model: Model, learner: Learner, stage: Stage, task: int, seen: FrozenFeatures, key: Array) -> Learner:
        """What a stage that does not train has found, on the host."""

    def after(self, model: Model, learner: Learner, stage: Stage, task: int) -> Learner:
        """Surgery after a stage; leaves nothing in `live` or `tuned`."""

    def variants(self) -> dict[str, Method]:
        """Other ways to serve the same archive, by name; the report shows their last row beside the method's own."""

    def to_archive(self, learner: Learner, task: int) -> dict[str, dict[str, Array]]:
        """What the ledger archives of lesson number `task`, as groups of flat arrays; never anything of another."""

    def from_archive(self, model: Model, capacity: int, kept: Sequence[dict[str, dict[str, Array]] | None]) -> Learner:
        """The learner after the lessons that were kept: the inverse of `to_archive`. A lesson that is None could not be
        loaded: nothing of it may be heard or chosen. Only a method that `isolates` is asked for that."""

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Numbers beyond the base: {stored, archived, trained} by {experts, routers, locator, projector}."""

    def growth_of(self, model: Model, learner: Learner) -> dict[str, Any]:
        """Where a growing method added experts and why, as plain values for the report; empty for others."""

    def serve(self, model: Model, learner: Learner) -> Serving:
        """What answers after the last finished task."""

    def decide(self, serving: Serving, seen: FrozenFeatures, named_B: Array | None) -> Decision:
        """Weights of the tasks for every sample; `named_B` names the true task (upper reference) or is None."""

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """What the decoder hears."""
