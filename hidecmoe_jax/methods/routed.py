"""The family of routed expert methods: one class, whose parts define the method.

A `Routed` method gives every task one LoRA expert on the chosen linears of every decoder layer (arXiv 2503.12941,
section 3). When a task ends, experts of most layers are fused into one, and the *expanded* layers keep one expert per
task, mixed per sample by a gate. HiDe-LLaVA expands the last layer and gates by anchors; naming the task and
expanding every layer is the upper reference; one shared expert is sequential LoRA, and shared over the union of all
tasks it is joint training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from hidecmoe_jax.core import strict, trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.methods import edit_tasks, routed_sizes, routed_stages
from hidecmoe_jax.methods.base import (
    Archive,
    Decision,
    FrozenFeatures,
    Learner,
    Method,
    Serving,
    Speaker,
    Traits,
    check_finite,
    no_choice,
    with_experts_folded,
    with_leaves,
)
from hidecmoe_jax.methods.edit import Edit
from hidecmoe_jax.methods.fusion import FusionRule, Volume, check_sum, own_factors, owning_tasks, with_expert
from hidecmoe_jax.methods.gates.anchors import AnchorGate, NamedGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.growth.layer_choice import LayerChoice, LayerGains
from hidecmoe_jax.methods.lora import LINEARS, Lora
from hidecmoe_jax.methods.shared_slots import redirected, serving_slots
from hidecmoe_jax.methods.slot_voices import SlotVoices
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.methods.tune_as_served import tuning_of
from hidecmoe_jax.models.llava import Model


class RoutedMemory(struct.PyTreeNode):
    """What a `Routed` method stores beside its experts; None where its parts need no such thing.

    Attributes:
      gate: arrays of the gate, by name.
      worth: float32 [N, L], worth of every layer to every task, from which the expanded layers are chosen.
      router: float32 [L, D, S], token routers that the probe of layers trains.
      weighing: gains while layers are weighed; only between `prepare` and `finish` of that stage.
      home: int32 [L, N], the task in whose slot a task is served (`shared_slots`).
    """

    gate: dict[str, Array] = struct.field(default_factory=dict)
    worth: Array | None = None
    router: Array | None = None
    weighing: LayerGains | None = None
    home: Array | None = None


@dataclass(frozen=True)
class Routed(Method):
    """A method as a choice of parts.

    Attributes:
      growth: an expert per task, one shared by all, or none (the base as it is).
      expand: layers that keep one expert per task: `last`, `all`, `none`, decoder layer numbers, or how to choose them.
      fusion: how experts of the other layers become one.
      eps: weight of every task in the fusion, in task order; empty means 1.0 each.
      volume: factor of a `product_sum` over T tasks: 1/T, 1/sqrt(T) or a number; null for 1.
      train_as: an expert trains `alone`, as published, or as `served`: at its volume, beside the fusion so far.
      gate: how an input finds its experts in the expanded layers.
      train_projector: whether the projector is tuned along, shared by all tasks.
      union: learn all tasks of the stream at once.
    """

    kind: ClassVar[str] = "routed"
    name: str = "hide"
    lora: Lora = Lora()
    growth: Literal["per_task", "shared", "none"] = "per_task"
    expand: Literal["last", "all", "none"] | tuple[int, ...] | LayerChoice = "last"
    fusion: Literal["factor_sum", "product_sum", "product_mean"] = "factor_sum"
    eps: tuple[float, ...] = ()
    gate: AnchorGate | NamedGate | LocatorGate = AnchorGate()
    train_projector: bool = True
    union: bool = False
    volume: Volume = field(default=None, metadata=strict.YOUNGER)
    train_as: Literal["alone", "served"] = field(default="alone", metadata=strict.YOUNGER)

    def __post_init__(self):
        self.lora.require_linears()
        check_sum(self)

    @property
    def traits(self) -> Traits:
        """What callers may rely on. One expert shared by all tasks is overwritten by every task."""
        mixes = self.gate.mixes_tasks
        # Neither a fusion nor the projector changes after a task.
        keeps_shared_weights = self.expand == "all" and not self.train_projector
        return Traits(
            one_task_per_lesson=self.growth != "none" and not self.union,
            needs_task_name=self.gated and self.gate.kind == "named",
            keeps_old_experts=self.gated,
            mixes_tasks=mixes,
            answers_are_final=self.gated and keeps_shared_weights and not mixes,
            reads=self.gate.reads if self.gated else None,
        )

    @property
    def gated(self) -> bool:
        """Whether the gate has tasks to choose from."""
        return self.growth == "per_task"

    @property
    def chooses(self) -> bool:
        """Whether the expanded layers are chosen by measuring."""
        return self.gated and isinstance(self.expand, LayerChoice)

    def variants(self) -> dict[str, Routed]:
        """The same experts under each fusion rule, by its name; empty where nothing is fused."""
        if self.growth != "per_task" or self.expand == "all":
            return {}
        plain = replace(self, volume=None, train_as="alone")
        variants = {rule: replace(plain, fusion=rule) for rule in surgery.FUSIONS}
        return variants | {self.fusion: self}

    def expanded(self, layers: int, memory: RoutedMemory | None = None) -> tuple[int, ...]:
        """Numbers of the expanded layers of a decoder with `layers` layers; chosen ones are read from the memory.

        Raises:
          ConfigError: the decoder has no such layers.
        """
        if not self.gated:
            return ()
        if isinstance(self.expand, LayerChoice):
            return self._chosen_layers(self.expand, layers, memory)
        all_layers = range(layers)
        if isinstance(self.expand, str):
            named = {"last": (layers - 1,), "all": tuple(all_layers), "none": ()}
            return named[self.expand]
        expanded = sorted(set(self.expand))
        wrong = [layer for layer in expanded if layer not in all_layers]
        if wrong:
            raise ConfigError(
                "cannot expand these layers", where="method.expand", why=f"{wrong} of a decoder with {layers} layers",
                remedy=f"choose from 0..{layers - 1}, or last, all, none",
            )  # fmt: skip
        return tuple(expanded)

    def _chosen_layers(self, choice: LayerChoice, layers: int, memory: RoutedMemory | None) -> tuple[int, ...]:
        if choice.layers > layers:
            raise ConfigError(
                "cannot expand so many layers", where="method.expand.layers",
                why=f"{choice.layers} of a decoder with {layers} layers", remedy=f"choose from 1..{layers}",
            )  # fmt: skip
        if memory is None:
            return tuple(range(layers - choice.layers, layers))
        return choice.pick(memory.worth)

    def fused(self, layers: int, memory: RoutedMemory | None = None) -> tuple[int, ...]:
        """Numbers of the layers whose experts are fused."""
        expanded = set(self.expanded(layers, memory))
        return tuple(layer for layer in range(layers) if layer not in expanded)

    def init(self, model: Model, capacity: int) -> Learner:
        """No experts and an empty gate, room for `capacity` tasks."""
        if self.growth == "none":
            return Learner({}, {}, {}, {}, RoutedMemory())
        # One slot more than tasks: slot 0 holds the fusion.
        slots = 1 if self.growth == "shared" else capacity + 1
        bank = self.lora.blank(model, slots)
        self.expanded(bank.layers)  # raises where the decoder has no such layers
        memory = RoutedMemory()
        if self.gated:
            gate = self.gate.blank(capacity, model)
            memory = memory.replace(gate=gate)
        if self.chooses:
            worth_NL = jnp.zeros((capacity, bank.layers))
            router = self.expand.blank_router(bank, model.config.width)
            memory = memory.replace(worth=worth_NL, router=router)
        return Learner({}, {}, {LINEARS: bank}, {}, memory)

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Tuning; from the second task on weighing layers, where they are chosen; then fitting the gate."""
        return routed_stages.stages_of(self, lesson, tuning_of(self))

    def lessons(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """Each task a lesson, all tasks one lesson (joint training), or nothing to learn; `eps` must weigh them all."""
        if self.growth == "none":
            return ()
        self.fusion_rule.require(tasks)
        if self.union:
            return (tuple(range(tasks)),)
        return super().lessons(tasks)

    def to_archive(self, learner: Learner, lesson: int) -> Archive:
        """A task's own expert, the shared leaves as it left them, and the gate's part of it."""
        bank = learner.past[LINEARS]
        memory = learner.memory
        experts = trees.flatten(bank.factors) if self.growth == "shared" else own_factors(bank, lesson)
        stored = {}
        if self.gated:
            stored = self.gate.to_archive(memory.gate, lesson)
        if self.chooses:
            stored = stored | {"worth": memory.worth[lesson]}
        return {"experts": experts, "shared": dict(learner.shared), "memory": stored}

    def from_archive(self, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
        """The learner after the archived lessons, in order: the inverse of `to_archive`. A lesson that is None is not
        fused, and the gate does not choose it."""
        learner = self.init(model, capacity)
        loaded = {task: groups for task, groups in enumerate(archive) if groups is not None}
        if not loaded:
            return learner
        empty_slot = self.lora.blank(model, 1)
        last = loaded[max(loaded)]
        shared = {path: jnp.asarray(leaf) for path, leaf in last["shared"].items()}
        if self.growth == "shared":
            factors = trees.unflatten(last["experts"])
            # The shared expert has owner 0 whatever task trained it last.
            owner_L1 = jnp.zeros_like(empty_slot.owner_LS)
            expert = empty_slot.with_factors(factors).replace(owner_LS=owner_L1)
            past = surgery.plant(empty_slot, 0, expert, 0)
            return learner.replace(past={LINEARS: past}, shared=shared)
        past = learner.past[LINEARS]
        memory = learner.memory
        for task, groups in loaded.items():
            stored = groups["memory"]
            past = with_expert(past, empty_slot, task, groups["experts"])
            gate = self.gate.from_archive(memory.gate, task, stored)
            memory = memory.replace(gate=gate)
            if self.chooses:
                worth_NL = memory.worth.at[task].set(stored["worth"])
                memory = memory.replace(worth=worth_NL)
        return self.with_bank(learner.replace(shared=shared), past, memory)

    @property
    def fusion_rule(self) -> FusionRule:
        """The rule `fusion` with its weights `eps`."""
        return FusionRule(self.fusion, self.eps, volume=self.volume)

    def fused_again(self, past: Bank, memory: RoutedMemory) -> Bank:
        """The bank with its fusion made anew from the experts of all tasks that own one."""
        layers = self.fused(past.layers, memory)
        slot_LN = serving_slots(past, memory.home)
        return self.fusion_rule.fused(past, layers, slot_LN)

    def with_bank(self, learner: Learner, bank: Bank, memory: RoutedMemory) -> Learner:
        """The learner with another bank and memory, its fusions made anew."""
        past = {LINEARS: self.fused_again(bank, memory)}
        return learner.replace(past=past, memory=memory)

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """Numbers of the tasks that have an expert, or were merged into another task's."""
        if LINEARS not in learner.past:
            return ()
        tasks = set(owning_tasks(learner.past[LINEARS]))
        tasks |= {task for task, _ in self.redirects(learner)}
        return tuple(sorted(tasks))

    def fused_gains(self, bank: Bank, memory: RoutedMemory) -> np.ndarray:
        """Constant gains [L, S] of the layers that are not expanded; zero elsewhere."""
        if self.growth == "shared":
            return np.ones(bank.owner_LS.shape, np.float32)
        layers = self.fused(bank.layers, memory)
        slot_LN = serving_slots(bank, memory.home)
        gain_LS = self.fusion_rule.gains(bank, layers, slot_LN)
        return np.asarray(gain_LS)

    def growth_of(self, model: Model, learner: Learner) -> dict:
        """Layers chosen to be expanded, and the worth of every layer to each task; empty where they are given."""
        if not self.chooses:
            return {}
        tasks = max(self.learned(learner), default=-1) + 1
        worth_NL = np.asarray(learner.memory.worth)
        # The learned tasks' rows alone: the memory may have room for more.
        worth = worth_NL[:tasks].tolist()
        expanded = self.expanded(model.config.layers, learner.memory)
        return {"expanded": list(expanded), "worth": worth, "by": self.expand.by}

    def is_gate_leaf(self, path: str) -> bool:
        """Every leaf of an archive's `memory` group but the worth of layers."""
        return path != "worth"

    def lora_bank(self, learner: Learner) -> Bank | None:
        """The bank of all tasks' experts; None of a method without experts."""
        return learner.past.get(LINEARS)

    def lora_gains(self, learner: Learner, task: int) -> np.ndarray:
        """Gain of every slot when `task` is named, float32 [L, S]: the constant gains, and in the expanded layers 1 for
        the slot that serves the task."""
        bank = learner.past[LINEARS]
        memory = learner.memory
        gain_LS = np.array(self.fused_gains(bank, memory))
        slots = np.arange(bank.slots)
        slot_LN = serving_slots(bank, memory.home)
        for layer in self.expanded(bank.layers, memory):
            serving_slot = slot_LN[layer, task]
            gain_LS[layer] = slots == serving_slot
        return gain_LS

    def archived_expert(self, model: Model, factors: dict[str, Array]) -> Bank:
        """A task's own expert as a bank of one slot, from the `experts` group of its archive."""
        tree = trees.unflatten(factors)
        bank = self.lora.blank(model, 1).with_factors(tree)
        owner_L1 = np.zeros_like(np.asarray(bank.owner_LS))
        return bank.replace(owner_LS=owner_L1)

    def narrow_edit(self, learner: Learner, edit: Edit, since: int | None) -> Edit | None:
        """As `Editable`."""
        return edit_tasks.narrowed(self, learner, edit, since)

    def apply_edit(self, learner: Learner, edit: Edit, since: int | None) -> Learner:
        """As `Editable`."""
        return edit_tasks.edited(self, learner, edit, since)

    def redirects(self, learner: Learner) -> dict[tuple[int, int], np.ndarray]:
        """Rows in which a task is served from another task's slot, after a merge."""
        return redirected(learner.memory.home)

    @property
    def rank(self) -> int:
        """Rank of the experts."""
        return self.lora.rank

    def with_rank(self, rank: int) -> Routed:
        """The method with experts of another rank."""
        return replace(self, lora=replace(self.lora, rank=rank))

    def serve(self, model: Model, learner: Learner) -> Serving:
        """Folds the constant layers into the base weights; expanded layers keep their slots.

        Raises:
          NumericsError: as `check_finite`.
        """
        check_finite(learner.memory)
        model = with_leaves(model, learner.shared)
        if not self.learned(learner):
            return Serving(model, None, None, learner.memory)
        memory = learner.memory
        bank = learner.past[LINEARS]
        fused_LS = self.fused_gains(bank, memory)
        folded = with_experts_folded(model, bank, fused_LS)
        expanded = self.expanded(bank.layers, memory)
        if not expanded:
            return Serving(folded, None, None, memory)
        # The decoder takes one run of layers: fused layers in between have no slot for any task (-1).
        first = expanded[0]
        last = expanded[-1] + 1
        in_run_L = np.arange(first, last)
        is_expanded_L1 = np.isin(in_run_L, expanded)[:, None]
        slot_LN = serving_slots(bank, memory.home)[first:last]
        slot_LN = np.where(is_expanded_L1, slot_LN, -1).astype(np.int32)
        run = surgery.cut(bank, first, last)
        return Serving(folded, run, jnp.asarray(slot_LN), memory)

    def decide(self, serving: Serving, features: FrozenFeatures, named_B: Array | None) -> Decision:
        """One-hot on the named task, or the gate's weights."""
        if serving.slot_LN is None:
            return no_choice(features)
        tasks = serving.slot_LN.shape[1]
        learned_N = jnp.any(serving.slot_LN >= 0, axis=0)
        if named_B is not None:
            chex.assert_rank(named_B, 1)
            weight_BN = jax.nn.one_hot(named_B, tasks)
            return Decision(weight_BN, weight_BN)
        return self.gate.decide(serving.memory.gate, features, learned_N)

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """As `SlotVoices`."""
        return SlotVoices(self.gate.mixes_tasks).voices(serving, decision)

    def answering(self, serving: Serving) -> tuple[Speaker, Serving]:
        """Without what the gate has stored, which the voices do not read; a subclass may read more."""
        if type(self).voices is not Routed.voices:
            return self, serving
        return SlotVoices(self.gate.mixes_tasks), serving.replace(memory=None, missing=())

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Parameters beyond the base that answering needs after `tasks` tasks, by kind."""
        return routed_sizes.stored_after(self, model, tasks)

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Parameters beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` in one stage."""
        return routed_sizes.sizes(self, model, learner)
