"""Incremental MoELoRA (IncMoELoRA in arXiv 2603.27481): every task adds experts and router columns to a mixture.

As MoELoRA at every linear, but for what trains: a task trains `experts` new LoRA and their columns of the linears'
routers, next to those of earlier tasks, which are frozen. A token weighs all of them by one softmax, in training and
in answers. Nothing that was learned changes, and yet old tasks can lose: the new columns take a part of every softmax,
of old tasks' tokens too. A router kept for every task, as in LLaVA-CMoE, has no such drift.

Stored are all tasks' experts and columns. Dropout, where there is any, is applied to the input of old experts as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.experts import pool
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.methods.base import (
    Archive,
    Decision,
    FrozenFeatures,
    Learner,
    Loss,
    Serving,
    Traits,
    check_finite,
    with_leaves,
)
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.moelora import MoeLora, MoeLoraMemory
from hidecmoe_jax.methods.routed_stages import tuned_projector
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Batch, Model, answer_loss

GROWN = "grown"
"""Family name of the experts in a learner: a task owns several slots, so that they are no bank of single LoRA."""


@dataclass(frozen=True)
class IncMoe(MoeLora):
    """MoELoRA that grows.

    Attributes:
      lora: shape of one expert.
      experts: how many a task adds to every linear.
      train_projector: whether the projector is tuned along, shared by all tasks.
    """

    kind: ClassVar[str] = "incmoe"
    name: str = "incmoe"
    lora: Lora = Lora(rank=8, alpha=16.0)
    experts: int = 2
    train_projector: bool = False

    @property
    def traits(self) -> Traits:
        """Experts and columns are kept, and answers change with every task."""
        return Traits(keeps_old_experts=True)

    def init(self, model: Model, capacity: int) -> Learner:
        """No experts, room for those of `capacity` tasks."""
        slots = capacity * self.experts
        bank = self.lora.blank(model, slots)
        routers = {}
        for site, (width, _) in self.lora.shapes(model).items():
            routers[site] = jnp.zeros((bank.layers, width, slots))
        return Learner({}, {}, {GROWN: bank}, {}, MoeLoraMemory(routers))

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Tuning."""
        return (TuneNew(method=self),)

    def slots(self, task: int) -> slice:
        """The slots of a task's experts."""
        return slice(task * self.experts, (task + 1) * self.experts)

    def mixture(self, bank: Bank, routers: dict[str, Array], key: Array | None = None) -> Voice:
        """Experts with an owner under the routers of their linears."""
        is_owned_LS = bank.owner_LS >= 0
        gain_L1S = is_owned_LS[:, None].astype(jnp.float32)
        routing = Routing(gain_L1S, site_routers=routers)
        return Voice(bank, routing, key, dropout=self.lora.dropout)

    def grown(self, learner: Learner, task: int, experts: Bank, columns: dict[str, Array]) -> Learner:
        """The learner with a task's experts and router columns in their slots."""
        place = self.slots(task)
        bank = pool.write_slots(learner.past[GROWN], place.start, experts)
        routers = {}
        for site, router_LDS in learner.memory.routers.items():
            routers[site] = router_LDS.at[:, :, place].set(columns[site])
        return learner.replace(past={GROWN: bank}, memory=MoeLoraMemory(routers))

    def to_archive(self, learner: Learner, lesson: int) -> Archive:
        """A task's experts and columns, and the projector as it left it."""
        place = self.slots(lesson)
        experts = pool.slice_slots(learner.past[GROWN], place.start, place.stop)
        columns = {}
        for site, router_LDS in learner.memory.routers.items():
            columns[f"router/{site}"] = router_LDS[:, :, place]
        return {"experts": trees.flatten(experts.factors), "shared": dict(learner.shared), "memory": columns}

    def from_archive(self, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
        """The learner after the archived lessons; the experts of a lesson that is None are left out of the softmax."""
        learner = self.init(model, capacity)
        for task, groups in enumerate(archive):
            if groups is None:
                continue
            blank = self.lora.blank(model, self.experts)
            experts = blank.with_factors(trees.unflatten(groups["experts"]))
            experts = experts.replace(owner_LS=jnp.full_like(blank.owner_LS, task))
            columns = {path.removeprefix("router/"): jnp.asarray(leaf) for path, leaf in groups["memory"].items()}
            learner = self.grown(learner, task, experts, columns)
            shared = {path: jnp.asarray(leaf) for path, leaf in groups["shared"].items()}
            learner = learner.replace(shared=shared)
        return learner

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """Tasks that own experts; none of them is chosen, all answer together."""
        owners = np.unique(np.asarray(learner.past[GROWN].owner_LS))
        return tuple(owners[owners >= 0].tolist())

    def is_gate_leaf(self, path: str) -> bool:
        """None is."""
        return False

    def describe_experts(self) -> str:
        """Where the experts are and what is routed among them, for messages."""
        sites = ", ".join(self.lora.sites)
        return f"every token mixes {self.experts} experts of every task at every linear ({sites})"

    def serve(self, model: Model, learner: Learner) -> Serving:
        """Experts and routers as they are.

        Raises:
          NumericsError: as `check_finite`.
        """
        check_finite(learner.memory)
        bank = learner.past[GROWN] if self.learned(learner) else None
        tuned_model = with_leaves(model, learner.shared)
        return Serving(tuned_model, None, None, learner.memory.replace(bank=bank))

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """All experts, weighted token by token."""
        memory = serving.memory
        if memory.bank is None:
            return ()
        return (self.mixture(memory.bank, memory.routers),)

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Parameters beyond the base that answering needs after `tasks` tasks, by kind."""
        counts = super().stored_after(model, min(tasks, 1))
        return counts | {"experts": tasks * counts["experts"], "routers": tasks * counts["routers"]}

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Parameters beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` in one stage."""
        tasks = len(self.learned(learner))
        stored = self.stored_after(model, tasks)
        archived = stored | {"projector": tasks * stored["projector"]}
        return {"stored": stored, "archived": archived, "trained": self.stored_after(model, min(tasks, 1))}


@dataclass(frozen=True, kw_only=True)
class TuneNew(Stage):
    """Trains a task's experts and router columns beside the frozen ones of earlier tasks."""

    method: IncMoe
    kind: str = "tune"
    uses_past: bool = True

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """Draws the experts and columns, as MoELoRA does."""
        experts, columns = self.method.fresh(model, lesson, key)
        tuned = {}
        if self.method.train_projector:
            tuned = tuned_projector(model, learner)
        return learner.replace(live={GROWN: experts}, tuned=tuned, routers=columns)

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """Answer loss with old and new experts under one softmax."""
        bank = pool.concat_slots([learner.past[GROWN], learner.live[GROWN]])
        routers = {}
        for site, column_LDE in learner.routers.items():
            routers[site] = jnp.concatenate([learner.memory.routers[site], column_LDE], axis=-1)
        voice = self.method.mixture(bank, routers, key)
        tuned_model = with_leaves(model, learner.shared | learner.tuned)
        total, tokens, _ = answer_loss(tuned_model, batch, (voice,))
        return Loss(total, tokens)

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Puts the experts and columns into their slots."""
        done = self.method.grown(learner, lesson, learner.live[GROWN], learner.routers)
        shared = learner.shared | learner.tuned
        return done.replace(live={}, tuned={}, routers={}, shared=shared)
