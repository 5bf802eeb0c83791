"""Stages of the `Routed` family: tuning an expert, measuring which layers to expand, fitting the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Voice, all_slots
from hidecmoe_jax.methods.base import FrozenFeatures, Learner, Loss, with_leaves
from hidecmoe_jax.methods.fusion import owning_tasks, slot_of
from hidecmoe_jax.methods.growth.layer_choice import LayerGains
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.methods.shared_slots import serving_slots
from hidecmoe_jax.methods.stages import FitGate, Stage
from hidecmoe_jax.models.llava import Batch, Model, answer_loss, projector_leaves

if TYPE_CHECKING:
    from hidecmoe_jax.methods.routed import Routed


def stages_of(method: Routed, lesson: int, tuning: Stage) -> tuple[Stage, ...]:
    """The stages of a lesson: `tuning`; from the second lesson on weighing layers, where they are chosen; the gate."""
    if method.growth == "none":
        return ()
    stages: list[Stage] = [tuning]
    if method.chooses and lesson:
        choice = method.expand
        if choice.by == "probe":
            stages.append(ProbeLayers(method=method, steps=choice.steps))
        stages.append(WeighLayers(method=method))
    if method.gated and method.gate.kind != "named":
        stages.append(FitGate(gate=method.gate))
    return tuple(stages)


def tuned_projector(model: Model, learner: Learner) -> dict[str, Array]:
    """The projector's leaves as last tuned, ready to train: float32 whatever the base is stored in, because a step of
    2e-5 would be lost in bfloat16."""
    tuned = {}
    for path, leaf in projector_leaves(model).items():
        untuned = leaf.astype(jnp.float32)
        tuned[path] = learner.shared.get(path, untuned)
    return tuned


def _answer_loss(forward: tuple[Model, tuple[Voice, ...]], batch: Batch) -> Loss:
    tuned_model, voices = forward
    total, tokens, _ = answer_loss(tuned_model, batch, voices)
    return Loss(total, tokens)


@dataclass(frozen=True, kw_only=True)
class ExpertAlone(Stage):
    """The answer loss of the live expert alone, because HiDe trains every expert as if it were the only one."""

    dropout: float
    kind: str = "tune"

    def forward(self, model: Model, learner: Learner, key: Array) -> tuple[Model, tuple[Voice, ...]]:
        """Model and voices of the loss."""
        live = learner.live[LINEARS]
        voice = Voice(live, all_slots(live), key, dropout=self.dropout)
        # On the right side of `|`, because what trains replaces what was tuned before.
        tuned_model = with_leaves(model, learner.shared | learner.tuned)
        return tuned_model, (voice,)

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """Answer loss of the model and voices of `forward`."""
        return _answer_loss(self.forward(model, learner, key), batch)


@dataclass(frozen=True, kw_only=True)
class Tune(Stage):
    """Trains the task's own expert alone (or the shared one), and the projector along with it."""

    method: Routed
    kind: str = "tune"

    @property
    def compiled_as(self) -> Stage:
        """Of the method the loss reads the dropout alone; a subclass may read more."""
        return ExpertAlone(dropout=self.method.lora.dropout) if type(self) is Tune else self

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """Puts a fresh expert (or the shared one) into `live`, and the projector into `tuned`."""
        method = self.method
        if method.growth == "shared" and method.learned(learner):
            expert = surgery.extract(learner.past[LINEARS], 0)
        else:
            empty_slot = method.lora.blank(model, 1)
            expert = surgery.sprout(empty_slot, 0, lesson, key)
        tuned = {}
        if method.train_projector:
            tuned = tuned_projector(model, learner)
        return learner.replace(live={LINEARS: expert}, tuned=tuned)

    def forward(self, model: Model, learner: Learner, key: Array) -> tuple[Model, tuple[Voice, ...]]:
        """Model and voices of the training loss."""
        return ExpertAlone(dropout=self.method.lora.dropout).forward(model, learner, key)

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """Answer loss of the model and voices of `forward`."""
        return _answer_loss(self.forward(model, learner, key), batch)

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Plants the trained expert, fuses the layers that are not expanded, and stores the tuned projector."""
        method = self.method
        expert = learner.live[LINEARS]
        if method.growth == "shared":
            # Into a blank bank: the shared expert replaces itself.
            empty_slot = method.lora.blank(model, 1)
            bank = surgery.plant(empty_slot, 0, expert, 0)
        else:
            bank = surgery.plant(learner.past[LINEARS], slot_of(lesson), expert, lesson)
            bank = method.fused_again(bank, learner.memory)
        shared = learner.shared | learner.tuned
        return learner.replace(live={}, tuned={}, past={LINEARS: bank}, shared=shared)


@dataclass(frozen=True, kw_only=True)
class _LayerStage(Stage):
    """A stage that measures which layers to expand, on a subset of the task's records."""

    method: Routed
    uses_past: bool = True

    def subset(self, count: int, seed: int) -> np.ndarray:
        """As `LayerChoice.subset`."""
        return self.method.expand.subset(self.subset_name, count, seed)


@dataclass(frozen=True, kw_only=True)
class ProbeLayers(_LayerStage):
    """Trains a token router in every layer over the experts of all tasks, which stay frozen."""

    kind: str = "probe"
    subset_name: str = "probe"

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """Puts the routers into training."""
        return learner.replace(routers={LINEARS: learner.memory.router})

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """Answer loss with every token mixing all tasks' experts."""
        tuned_model = with_leaves(model, learner.shared)
        bank = learner.past[LINEARS]
        router_LDS = learner.routers[LINEARS]
        return self.method.expand.loss(tuned_model, bank, router_LDS, batch)

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Stores the routers for the measurement."""
        memory = learner.memory.replace(router=learner.routers[LINEARS])
        return learner.replace(routers={}, memory=memory)


@dataclass(frozen=True, kw_only=True)
class WeighLayers(_LayerStage):
    """Measures the worth of every layer to the task and chooses the expanded layers anew."""

    kind: str = "weigh"
    source: str = "usage"
    subset_name: str = "measure"

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """The learner with every layer fused, and the gains of the task's own expert and of the fusion stored."""
        past = learner.past[LINEARS]
        rule = self.method.fusion_rule
        layers = tuple(range(past.layers))
        slot_LN = serving_slots(past, learner.memory.home)
        past = rule.fused(past, layers, slot_LN)
        is_own_S = jax.nn.one_hot(slot_of(lesson), past.slots)
        own_LS = jnp.broadcast_to(is_own_S, past.owner_LS.shape)
        fused_LS = rule.gains(past, layers, slot_LN)
        gains = LayerGains(own_LS, fused_LS)
        memory = learner.memory.replace(weighing=gains)
        return learner.replace(past={LINEARS: past}, memory=memory)

    def usage(self, model: Model, learner: Learner, batch: Batch) -> dict[str, Array]:
        """Sums from which the worth of layers is computed."""
        past = learner.past[LINEARS]
        memory = learner.memory
        tuned_model = with_leaves(model, learner.shared)
        return self.method.expand.measure(tuned_model, past, memory.weighing, memory.router, batch)

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Stores the worth of the layers and makes the fusions anew in those that are not chosen."""
        past = learner.past[LINEARS]
        memory = learner.memory
        choice = self.method.expand
        earlier_S = _earlier_slots(past, lesson)
        worth_L = choice.worth(result.usage, earlier_S)
        worth_NL = memory.worth.at[lesson].set(worth_L)
        # Routers go back to zero, so that the memory is the same whether or not layers were probed.
        router = choice.blank_router(past, model.config.width)
        memory = memory.replace(weighing=None, router=router, worth=worth_NL)
        return self.method.with_bank(learner, past, memory)


def _earlier_slots(bank: Bank, lesson: int) -> np.ndarray:
    """Slots that hold an expert of another task than the lesson's, bool [S]."""
    earlier = [task for task in owning_tasks(bank) if task != lesson]
    owner_LS = np.asarray(bank.owner_LS)
    is_earlier_LS = np.isin(owner_LS, earlier)
    return is_earlier_LS.any(axis=0)
