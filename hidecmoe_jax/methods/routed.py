"""The family of routed expert methods: one class, whose parts say which method it is.

A `Routed` method gives every task one LoRA expert on the chosen linears of every decoder layer (arXiv 2503.12941,
section 3). At task end, experts of most layers are fused into one, and the *expanded* layers keep one expert per
task, mixed per sample by a gate. HiDe-LLaVA expands the last layer and gates by anchors; naming the task and
expanding every layer is the upper reference; one shared expert is sequential LoRA, and shared over the union of all
tasks it is joint training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice, everyone
from hidecmoe_jax.methods import edit_tasks
from hidecmoe_jax.methods.base import (
    Decision,
    FrozenFeatures,
    Learner,
    Loss,
    Method,
    Serving,
    Stage,
    Traits,
    check_finite,
    with_experts_folded,
    with_leaves,
)
from hidecmoe_jax.methods.edit import Edit
from hidecmoe_jax.methods.fusion import FusionRule, archived, owners, planted
from hidecmoe_jax.methods.gates.anchors import AnchorGate, NamedGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.growth.layer_choice import WEIGH, LayerChoice
from hidecmoe_jax.methods.lora import LINEARS, Lora
from hidecmoe_jax.methods.shared_slots import own_slots, serving_slots, shared
from hidecmoe_jax.models.llava import Batch, Model, answer_loss, projector_leaves

TUNE, LOCATE = Stage("tune"), Stage("locate", source="features")


@dataclass(frozen=True)
class Routed(Method):
    """A method as a choice of parts.

    Attributes:
      growth: an expert per task, one shared by all, or none (the base as it is).
      expand: layers that keep one expert per task: `last`, `all`, `none`, decoder layer numbers, or how to choose them.
      fusion: how experts of the other layers become one (HiDe-D1).
      eps: weight of every task in the fusion, in task order; empty means 1.0 each (HiDe-D2).
      gate: how an input finds its experts in the expanded layers.
      train_projector: whether the projector is tuned along, shared by all tasks (HiDe-D15).
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

    def __post_init__(self):
        self.lora.require_linears()

    @property
    def traits(self) -> Traits:
        """What callers may rely on. One expert shared by all tasks is overwritten by every task."""
        mixes = self.gate.mixes_tasks
        return Traits(
            one_task_per_lesson=self.growth != "none" and not self.union,
            needs_task_name=self.gated and self.gate.kind == "named",
            keeps_old_experts=self.gated,
            mixes_tasks=mixes,
            answers_are_final=self.gated and self.expand == "all" and not self.train_projector and not mixes,
            reads=self.gate.reads if self.gated else None,
        )

    @property
    def gated(self) -> bool:
        """Whether the gate has tasks to choose from."""
        return self.growth == "per_task"

    def variants(self) -> dict[str, Routed]:
        """The same experts under each fusion rule, by its name; empty where nothing is fused."""
        if self.growth != "per_task" or self.expand == "all":
            return {}
        return {rule: replace(self, fusion=rule) for rule in surgery.FUSIONS}

    @property
    def chooses(self) -> bool:
        """Whether the expanded layers are found by measuring."""
        return self.gated and isinstance(self.expand, LayerChoice)

    def expanded(self, layers: int, memory: dict[str, Any] | None = None) -> tuple[int, ...]:
        """Numbers of the expanded layers of a decoder with `layers` layers; chosen ones are read from the memory."""
        if not self.gated:
            return ()
        if isinstance(self.expand, LayerChoice):
            if self.expand.layers > layers:
                raise ConfigError(
                    "cannot expand so many layers", where="method.expand.layers",
                    why=f"{self.expand.layers} of a decoder with {layers} layers", remedy=f"choose from 1..{layers}",
                )  # fmt: skip
            chosen = range(layers - self.expand.layers, layers) if memory is None else self.expand.pick(memory["worth"])
        else:
            named = {"last": (layers - 1,), "all": tuple(range(layers)), "none": ()}
            chosen = named[self.expand] if isinstance(self.expand, str) else sorted(set(self.expand))
        wrong = [layer for layer in chosen if not 0 <= layer < layers]
        if wrong:
            raise ConfigError(
                "cannot expand these layers", where="method.expand", why=f"{wrong} of a decoder with {layers} layers",
                remedy=f"choose from 0..{layers - 1}, or last, all, none",
            )  # fmt: skip
        return tuple(chosen)

    def fused(self, layers: int, memory: dict[str, Any] | None = None) -> tuple[int, ...]:
        """Numbers of the layers whose experts are fused."""
        kept = set(self.expanded(layers, memory))
        return tuple(layer for layer in range(layers) if layer not in kept)

    def init(self, model: Model, capacity: int) -> Learner:
        """No experts and an ignorant gate, room for `capacity` tasks."""
        if self.growth == "none":
            return Learner({}, {}, {}, {}, {})
        past = self.lora.blank(model, 1 if self.growth == "shared" else capacity + 1)
        memory = {"gate": self.gate.blank(capacity, model)} if self.gated else {}
        self.expanded(past.layers)  # refuses layers that there are not
        if self.chooses:
            memory["worth"] = jnp.zeros((capacity, past.layers))
            memory |= self.expand.blank(past, model.config.width)
        return Learner({}, {}, {LINEARS: past}, {}, memory)

    def stages(self, task: int) -> tuple[Stage, ...]:
        """Tuning, from the second task on weighing layers where they are chosen, then what the gate learns from."""
        if self.growth == "none":
            return ()
        weigh = self.expand.stages() if self.chooses and task else ()
        locate = (LOCATE,) if self.gated and self.gate.kind != "named" else ()
        return (TUNE, *weigh, *locate)

    def lessons(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """Each task a lesson, all tasks one lesson (joint training), or nothing to learn."""
        if self.growth == "none":
            return ()
        return (tuple(range(tasks)),) if self.union else super().lessons(tasks)

    def before(self, model: Model, learner: Learner, stage: Stage, task: int, key: Array) -> Learner:
        """Puts a fresh expert (or the shared one) into `live`, and the projector into `tuned`."""
        if stage.kind == WEIGH:
            return self._weighing(learner, task)
        if stage.kind == "probe":
            return learner.replace(routers={LINEARS: learner.memory["router"]})
        if not stage.trains:
            return learner
        if self.growth == "shared" and self.learned(learner):
            young = surgery.extract(learner.past[LINEARS], 0)
        else:
            young = surgery.sprout(self.lora.blank(model, 1), 0, task, key)
        tuned = {}
        if self.train_projector:
            # Float32 whatever the base is stored in: a step of 2e-5 would be lost in bfloat16.
            base = {path: leaf.astype(jnp.float32) for path, leaf in projector_leaves(model).items()}
            tuned = base | {path: learner.shared[path] for path in base if path in learner.shared}
        return learner.replace(live={LINEARS: young}, tuned=tuned)

    def loss(self, model: Model, learner: Learner, stage: Stage, batch: Batch, key: Array) -> Loss:
        """Answer loss with the live expert alone: HiDe trains every expert as if it were the only one (HiDe-D16)."""
        if stage.kind == "probe":
            heard = with_leaves(model, learner.shared)
            return self.expand.loss(heard, learner.past[LINEARS], learner.routers[LINEARS], batch)
        live = learner.live[LINEARS]
        voice = Voice(live, everyone(live), key, dropout=self.lora.dropout)
        total, count, _ = answer_loss(with_leaves(model, learner.shared | learner.tuned), batch, (voice,))
        return Loss(total, count)

    def part(self, stage: Stage, count: int, seed: int) -> np.ndarray | None:
        """Records that layers are weighed on; every other stage reads every record."""
        return self.expand.part(stage, count, seed) if self.chooses else None

    def _weighing(self, learner: Learner, task: int) -> Learner:
        """The learner with every layer fused, and the gains of the task's own expert and of the fusion at hand."""
        layers = tuple(range(learner.past[LINEARS].layers))
        past, slot_LN = learner.past[LINEARS], serving_slots(learner.past[LINEARS], learner.memory)
        past = self.fusing.fused(past, layers, slot_LN)
        own_LS = jnp.broadcast_to(jax.nn.one_hot(1 + task, past.slots), past.owner_LS.shape)
        gains = {"own": own_LS, "fused": self.fusing.gains(past, layers, slot_LN)}
        return learner.replace(past={LINEARS: past}, memory=learner.memory | {"weighing": gains})

    def usage(self, model: Model, learner: Learner, stage: Stage, batch: Batch) -> dict[str, Array]:
        """What the choice of layers is made from."""
        known = learner.memory | learner.memory["weighing"]
        return self.expand.measure(with_leaves(model, learner.shared), learner.past[LINEARS], known, batch)

    def fit(self, model: Model, learner: Learner, stage: Stage, task: int, seen: FrozenFeatures, key: Array) -> Learner:
        """What every layer is worth to the task, or what the gate learns of it."""
        memory = dict(learner.memory)
        if stage.kind != WEIGH:
            return learner.replace(memory=memory | {"gate": self.gate.fit(memory["gate"], task, seen, key=key)})
        past = learner.past[LINEARS]
        earlier_S = np.isin(np.asarray(past.owner_LS), [one for one in owners(past) if one != task]).any(axis=0)
        del memory["weighing"]
        memory |= self.expand.blank(past, model.config.width)
        memory["worth"] = memory["worth"].at[task].set(self.expand.worth(seen.usage, earlier_S))
        return learner.replace(past={LINEARS: self.fused_again(past, memory)}, memory=memory)

    def after(self, model: Model, learner: Learner, stage: Stage, task: int) -> Learner:
        """Plants the trained expert, fuses the layers that are not expanded, and hands the projector on."""
        if not stage.trains:
            return learner
        if stage.kind == "probe":
            return learner.replace(routers={}, memory=learner.memory | {"router": learner.routers[LINEARS]})
        past, young = learner.past[LINEARS], learner.live[LINEARS]
        if self.growth == "shared":
            past = surgery.plant(self.lora.blank(model, 1), 0, young, 0)
        else:
            past = self.fused_again(surgery.plant(past, 1 + task, young, task), learner.memory)
        return learner.replace(live={}, tuned={}, past={LINEARS: past}, shared=learner.shared | learner.tuned)

    def to_archive(self, learner: Learner, task: int) -> dict[str, dict[str, Array]]:
        """What the ledger archives of a task: its own expert, the shared leaves as it left them, the gate's part."""
        bank = learner.past[LINEARS]
        experts = trees.flatten(bank.factors) if self.growth == "shared" else archived(bank, task)
        memory = self.gate.to_archive(learner.memory["gate"], task) if self.gated else {}
        if self.chooses:
            memory = memory | {"worth": learner.memory["worth"][task]}
        return {"experts": experts, "shared": dict(learner.shared), "memory": memory}

    def from_archive(self, model: Model, capacity: int, kept: Sequence[dict[str, dict[str, Array]] | None]) -> Learner:
        """The learner after the tasks that `kept` archived, in order: the inverse of `to_archive`. A task that is None
        is not fused, and the gate passes over it."""
        learner = self.init(model, capacity)
        there = {task: groups for task, groups in enumerate(kept) if groups is not None}
        if not there:
            return learner
        bare, last = self.lora.blank(model, 1), max(there)
        shared = {path: jnp.asarray(leaf) for path, leaf in there[last]["shared"].items()}
        if self.growth == "shared":
            one = bare.with_factors(trees.unflatten(there[last]["experts"]))
            return learner.replace(
                past={LINEARS: surgery.plant(bare, 0, one.replace(owner_LS=0 * bare.owner_LS), 0)}, shared=shared
            )
        past, memory = learner.past[LINEARS], dict(learner.memory)
        for task, groups in there.items():
            past = planted(past, bare, task, groups["experts"])
            memory["gate"] = self.gate.from_archive(memory["gate"], task, groups["memory"])
            if self.chooses:
                memory["worth"] = memory["worth"].at[task].set(groups["memory"]["worth"])
        return Learner({}, {}, {LINEARS: self.fused_again(past, memory)}, shared, memory)

    @property
    def fusing(self) -> FusionRule:
        """How experts become one."""
        return FusionRule(self.fusion, self.eps)

    def fused_again(self, past: Bank, memory: dict[str, Any]) -> Bank:
        """The bank with its fusion made anew from the experts of all tasks that own one."""
        return self.fusing.fused(past, self.fused(past.layers, memory), serving_slots(past, memory))

    def with_bank(self, learner: Learner, bank: Bank, memory: dict[str, Any]) -> Learner:
        """The learner with another bank and memory, its fusions made anew."""
        return learner.replace(past={LINEARS: self.fused_again(bank, memory)}, memory=memory)

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """Numbers of the tasks that have an expert, or were merged into another task's."""
        merged = {task for task, _ in shared(learner.memory)}
        return tuple(sorted({*owners(learner.past[LINEARS]), *merged})) if LINEARS in learner.past else ()

    def fused_gains(self, bank: Bank, memory: dict[str, Any]) -> np.ndarray:
        """Constant gains [L, S] of the layers that are not expanded; zero elsewhere."""
        if self.growth == "shared":
            return np.ones(bank.owner_LS.shape, np.float32)
        return np.asarray(self.fusing.gains(bank, self.fused(bank.layers, memory), serving_slots(bank, memory)))

    def growth_of(self, model: Model, learner: Learner) -> dict:
        """Layers chosen to be expanded, and what every layer was worth to each task; empty where they are given."""
        if not self.chooses:
            return {}
        layers, memory = model.config.layers, learner.memory
        worth = np.asarray(memory["worth"])[: max(self.learned(learner), default=-1) + 1]
        return {"expanded": list(self.expanded(layers, memory)), "worth": worth.tolist(), "by": self.expand.by}

    def is_gate_leaf(self, path: str) -> bool:
        """Every leaf of an archive's `memory` group but what layers are worth."""
        return path != "worth"

    def lora_bank(self, learner: Learner) -> Bank | None:
        """The bank of all tasks' experts; None before the first lesson of a method without experts."""
        return learner.past.get(LINEARS)

    def lora_gains(self, learner: Learner, task: int) -> np.ndarray:
        """Gain of every slot when `task` is named, float32 [L, S]: the constant gains, and in the expanded layers 1 for
        the slot that serves the task."""
        bank = learner.past[LINEARS]
        gain_LS = np.array(self.fused_gains(bank, learner.memory))
        slot_LN = serving_slots(bank, learner.memory)
        for layer in self.expanded(bank.layers, learner.memory):
            gain_LS[layer] = np.arange(bank.slots) == slot_LN[layer, task]
        return gain_LS

    def archived_expert(self, model: Model, factors: dict[str, Array]) -> Bank:
        """A task's own expert as a bank of one slot, from the `experts` group of its archive."""
        bank = self.lora.blank(model, 1).with_factors(trees.unflatten(factors))
        return bank.replace(owner_LS=np.zeros_like(np.asarray(bank.owner_LS)))

    def narrow_edit(self, learner: Learner, edit: Edit, since: int | None) -> Edit | None:
        """As `Editable`."""
        return edit_tasks.narrowed(self, learner, edit, since)

    def apply_edit(self, learner: Learner, edit: Edit, since: int | None) -> Learner:
        """As `Editable`."""
        return edit_tasks.edited(self, learner, edit, since)

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
        dressed_model, tasks = with_leaves(model, learner.shared), self.learned(learner)
        if not tasks:
            return Serving(dressed_model, None, None, learner.memory)
        bank = learner.past[LINEARS]
        constant = with_experts_folded(dressed_model, bank, self.fused_gains(bank, learner.memory))
        expanded = self.expanded(bank.layers, learner.memory)
        if not expanded:
            return Serving(constant, None, None, learner.memory)
        first, last = expanded[0], expanded[-1] + 1
        kept = np.isin(np.arange(first, last), expanded)[:, None]
        slot_LN = serving_slots(bank, learner.memory)[first:last]
        slot_LN = np.where(kept, slot_LN, -1).astype(np.int32)
        return Serving(constant, surgery.cut(bank, first, last), jnp.asarray(slot_LN), learner.memory)

    def decide(self, serving: Serving, seen: FrozenFeatures, named_B: Array | None) -> Decision:
        """One-hot on the named task, or what the gate says."""
        if serving.slot_LN is None:
            weight = jnp.zeros((seen.pooled.text_BD.shape[0], 0))
            return Decision(weight, weight)
        tasks = serving.slot_LN.shape[1]
        learned_N = jnp.any(serving.slot_LN >= 0, axis=0)
        if named_B is not None:
            weight = jax.nn.one_hot(named_B, tasks)
            return Decision(weight, weight)
        return self.gate.decide(serving.memory["gate"], seen, learned_N)

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """The expanded layers' bank, every task's slot as loud as its weight."""
        if serving.bank is None:
            return ()
        slots = jnp.arange(serving.bank.slots)
        place_LNS = (serving.slot_LN[..., None] == slots).astype(jnp.float32)
        gain_LBS = jnp.einsum("lns,bn->lbs", place_LNS, decision.weight_BN, precision=jax.lax.Precision.HIGHEST)
        return (Voice(serving.bank, Routing(gain_LBS)),)

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Numbers beyond the base that answering needs after `tasks` tasks, by kind.

        Layers fused by `factor_sum` need one expert; product sums keep the rank of all their tasks.
        """
        if not tasks or self.growth == "none":
            return {"experts": 0, "routers": 0, "locator": 0, "projector": 0}
        layers = model.config.layers
        expanded = len(self.expanded(layers))
        per_fused = self.fusing.stored(tasks) if self.gated else 1
        return {
            "experts": self.lora.size(model) * (expanded * tasks + (layers - expanded) * per_fused),
            "routers": 0,
            "locator": tasks * self.gate.size(model) if self.gated else 0,
            "projector": trees.count(projector_leaves(model)) if self.train_projector else 0,
        }

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Numbers beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` in one stage."""
        tasks, none = len(self.learned(learner)), self.stored_after(model, 0)
        if not tasks:
            return {"stored": none, "archived": none, "trained": none}
        stored, expert = self.stored_after(model, tasks), self.lora.size(model) * learner.past[LINEARS].layers
        stored |= {"experts": stored["experts"] - self.lora.size(model) * self._merged_away(learner)}
        archived = stored | {"experts": expert * tasks, "projector": stored["projector"] * tasks}
        return {
            "stored": stored,
            "archived": archived,
            "trained": none | {"experts": expert, "projector": stored["projector"]},
        }

    def _merged_away(self, learner: Learner) -> int:
        """Experts that learned tasks lack in layers of which every task's is stored."""
        past, tasks = learner.past[LINEARS], list(self.learned(learner))
        apart = self.expanded(past.layers, learner.memory) if self.fusion == "factor_sum" else range(past.layers)
        return int((own_slots(past)[list(apart)][:, tasks] < 0).sum()) if self.gated else 0
