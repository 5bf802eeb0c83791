"""State that a method carries from task to task, and the hooks that it must have.

Freezing is a place, not a mask: what trains sits in `live`, `tuned` and `routers`, and the optimiser is initialised on
that alone, so an old expert can receive neither gradients nor moments nor decay. A method is a frozen dataclass of pure
hooks; its fields are its hyper-parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import NumericsError
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Stream
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.fold import merge_into_base
from hidecmoe_jax.experts.routing import Voice, constant
from hidecmoe_jax.experts.usage import Load
from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.models.llava import Model, decoder_layers, with_decoder_layers
from hidecmoe_jax.models.quantised import is_quantised
from hidecmoe_jax.models.reading import Reading

if TYPE_CHECKING:
    from hidecmoe_jax.methods.stages import Stage

Archive = dict[str, dict[str, Array]]
"""What the ledger holds of one lesson: flat arrays in the groups `experts`, `shared` and `memory`."""


class Learner(struct.PyTreeNode):
    """State of a method between two stages.

    Attributes:
      live: banks of experts that train now, by site family.
      tuned: leaves of the base (by path) that train now, such as the projector.
      past: banks that never train again.
      shared: leaves of the base as last tuned; they overlay the base for every task.
      memory: the method's other arrays (gate, old routers), a struct dataclass of the method's own; its field names are
        paths in checkpoints.
      routers: token routers [L, D, S] that train now, by family.
      extras: arrays of wrappers around the method (`wrapper.Wrapper`), by the wrapper's kind.
    """

    live: dict[str, Bank]
    tuned: dict[str, Array]
    past: dict[str, Bank]
    shared: dict[str, Array]
    memory: Any
    routers: dict[str, Array] = struct.field(default_factory=dict)
    extras: dict[str, Any] = struct.field(default_factory=dict)


class Serving(struct.PyTreeNode):
    """State from which questions are answered.

    Attributes:
      model: the base with the constant experts folded in.
      bank: experts that are mixed per sample; None where all are folded.
      slot_LN: int32, the slot that serves every task in each layer of the bank; -1 for none.
      memory: arrays that routing needs, as in `Learner`.
      missing: tasks that were learned and could not be loaded, so that every answer can name them.
    """

    model: Model
    bank: Bank | None
    slot_LN: Array | None
    memory: Any
    missing: tuple[str, ...] = struct.field(pytree_node=False, default=())


class FrozenFeatures(struct.PyTreeNode):
    """Features of samples under the frozen base, without any expert.

    Attributes:
      pooled: CLIP's features.
      state_BD: the frozen base's state that the method's traits name (`reads`), float32; None where they name none.
      usage: what the stage's `usage` counted, summed over its records; None outside `usage` stages.
    """

    pooled: Pooled
    state_BD: Array | np.ndarray | None = None
    usage: Any = None


class Match(struct.PyTreeNode):
    """Nearest task of each sample and how reliable it is, [B].

    Attributes:
      nearest_B: int32, the learned task with the best score.
      score_B: that score, or what is compared with the threshold in its place.
      threshold_B: score below which the sample belongs to no task; -inf where the gate has no thresholds.
      margin_B: how far the best score is above the second best; inf where there is only one task.
      is_unknown_B: bool, the score is below its threshold.
      is_tied_B: bool, the margin is below the gate's `tie`.
      unknown_share: part of a task's own inputs that the thresholds were calibrated to call unknown; None without any.
    """

    nearest_B: Array
    score_B: Array
    threshold_B: Array
    margin_B: Array
    is_unknown_B: Array
    is_tied_B: Array
    unknown_share: float | None = struct.field(pytree_node=False, default=None)


class Decision(struct.PyTreeNode):
    """Weights of the tasks for each sample and the scores they come from, float32 [B, N].

    A sample whose weights are all zero belongs to no known task and is answered by the base alone (with its fused
    layers, in methods that fuse). `match` is None where the task was named or there is nothing to choose.
    """

    weight_BN: Array
    score_BN: Array
    match: Match | None = None


def no_choice(features: FrozenFeatures) -> Decision:
    """The decision where there is no task to choose: weights [B, 0]."""
    samples = features.pooled.text_BD.shape[0]
    weight_B0 = jnp.zeros((samples, 0))
    return Decision(weight_B0, weight_B0)


def trainable(learner: Learner) -> dict:
    """The float leaves that the optimiser trains, in groups with a rate of their own: `experts` (factors by family),
    `routers` (by family) and `shared` (by path)."""
    experts = {name: bank.factors for name, bank in learner.live.items()}
    return {"experts": experts, "routers": dict(learner.routers), "shared": dict(learner.tuned)}


def with_trainable(learner: Learner, leaves: dict) -> Learner:
    """The learner with other trainable leaves."""
    factors = leaves["experts"]
    live = {name: bank.with_factors(factors[name]) for name, bank in learner.live.items()}
    tuned = dict(leaves["shared"])
    routers = dict(leaves["routers"])
    return learner.replace(live=live, tuned=tuned, routers=routers)


def check_finite(memory: Any) -> None:
    """Refuses to serve a memory with NaN or infinity, which a softmax or a maximum would pass on.

    Raises:
      NumericsError: names the array.
    """
    bad = trees.all_finite(memory)
    if bad is not None:
        raise NumericsError("what the gate stores is not finite", where=bad, remedy="learn the task again")


def with_leaves(model: Model, leaves: dict[str, Array]) -> Model:
    """The base model with some leaves replaced by path."""
    if not leaves:
        return model
    params = trees.overlay(model.params, leaves)
    return model.replace(params=params)


def with_experts_folded(model: Model, bank: Bank, gain_LS: Array) -> Model:
    """The model with a bank's experts, weighted by `gain_LS`, added to the decoder's weights, in the base's dtypes.

    Weights in int8 cannot take them up without being rounded again: there the bank stays beside them, as a voice.
    """
    if is_quantised(model):
        return model.replace(constant=(*model.constant, Voice(bank, constant(gain_LS))))
    layers = merge_into_base(decoder_layers(model), bank, gain_LS)
    return with_decoder_layers(model, layers)


def no_parameters() -> dict[str, int]:
    """Parameters beyond the base by kind, none of any."""
    return {"experts": 0, "routers": 0, "locator": 0, "projector": 0}


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


class Loss(struct.PyTreeNode):
    """Training loss of a batch.

    Attributes:
      total: loss summed over answer tokens, float32.
      tokens: number of answer tokens, int32.
      load: which experts the tokens chose; None where no token chooses.
    """

    total: Array
    tokens: Array
    load: Load | None = None

    def with_penalty(self, nats: Array) -> Loss:
        """The loss with a penalty in nats an answer token, by whose number a step divides."""
        return self.replace(total=self.total + nats * self.tokens.astype(jnp.float32))


class Speaker(Protocol):
    """What turns a decision into voices."""

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """The voices that the decoder takes for a decision."""


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

    def gate_memory(self, learner: Learner) -> dict[str, Array]:
        """Arrays of the gate, by name; empty where nothing is gated."""
        return learner.memory.gate if self.gated else {}

    @abstractmethod
    def init(self, model: Model, capacity: int) -> Learner:
        """The learner before the first task, with room for `capacity` tasks."""

    @abstractmethod
    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Parts of learning lesson number `lesson`, in order."""

    def lessons(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """Which tasks are learned together, in order; one lesson is one commit. By default every task is a lesson."""
        return tuple((task,) for task in range(tasks))

    def records(self, stream: Stream, lesson: tuple[int, ...]) -> tuple[Record, ...]:
        """The training records of a lesson. By default those of its tasks."""
        records: list[Record] = []
        for task in lesson:
            records += stream.tasks[task].train
        return tuple(records)

    def sources(self, lesson: tuple[int, ...]) -> tuple[int, ...]:
        """Tasks that the records of a lesson may be of. By default its own."""
        return lesson

    def variants(self) -> dict[str, Method]:
        """Other ways to serve the same archive, by name; the report shows their last row beside the method's own."""
        return {}

    @abstractmethod
    def learned(self, learner: Learner) -> tuple[int, ...]:
        """Numbers of the tasks that can be answered from the learner's experts."""

    @abstractmethod
    def to_archive(self, learner: Learner, lesson: int) -> Archive:
        """What the ledger archives of lesson number `lesson`, as groups of flat arrays; never anything of another."""

    @abstractmethod
    def from_archive(self, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
        """The learner after the lessons that were archived: the inverse of `to_archive`. A lesson that is None could
        not be loaded: it must not contribute and must not be chosen. Only a method that `keeps_old_experts` is asked
        for that."""

    def redirects(self, learner: Learner) -> dict[tuple[int, int], np.ndarray]:
        """Rows in which a task is served from another task's slot, by (task, the other); by default none."""
        return {}

    def is_gate_leaf(self, path: str) -> bool:
        """Whether a leaf of an archive's `memory` group belongs to the gate. By default those below `gate/`."""
        return path.startswith("gate/")

    def describe_experts(self) -> str:
        """Where the experts are and what is routed among them, for messages."""
        return "its experts are of a kind of the method's own"

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
    def decide(self, serving: Serving, features: FrozenFeatures, named_B: Array | None) -> Decision:
        """Weights of the tasks for every sample; `named_B` names the true task (upper reference) or is None."""

    @abstractmethod
    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """The voices that the decoder takes for a decision."""

    def answering(self, serving: Serving) -> tuple[Speaker, Serving]:
        """What the program that writes answers is compiled for: an object with the method's `voices`, static, and the
        part of `serving` that these read. Methods that answer alike share a program."""
        return self, serving
