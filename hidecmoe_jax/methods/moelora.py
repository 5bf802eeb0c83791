"""MoELoRA as CoIN has it (arXiv 2403.08350): a mixture of LoRA experts at every linear, shared by all tasks.

Every adapted linear of the decoder has `experts` LoRA experts and a router of its own, which reads what the linear
reads; a softmax over all experts weighs them token by token. Tasks are learned one after another with everything
trainable, projector included, so old tasks are not protected: this is a reference point, and the form in which CoIN's
adapters are adopted. Nothing is routed by task, so no task is ever named or located.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.experts import pool, surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.methods.base import (
    Archive,
    Decision,
    FrozenFeatures,
    Learner,
    Loss,
    Method,
    Serving,
    check_finite,
    no_choice,
    no_parameters,
    with_leaves,
)
from hidecmoe_jax.methods.lora import LINEARS, PARALLEL, Lora
from hidecmoe_jax.methods.routed_stages import tuned_projector
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Batch, Model, answer_loss, projector_leaves


class MoeLoraMemory(struct.PyTreeNode):
    """The routers [L, D, S] that the last task left, by site (empty before the first task); when serving also the bank,
    because no task owns anything of it."""

    routers: dict[str, Array] = struct.field(default_factory=dict)
    bank: Bank | None = None


@dataclass(frozen=True)
class MoeLora(Method):
    """MoELoRA; defaults are CoIN's (rank 128 and alpha 256 over 8 experts, so 16 and 32 for each of them).

    Attributes:
      lora: shape of one expert.
      experts: how many of them a linear has.
      train_projector: whether the projector is tuned along.
    """

    kind: ClassVar[str] = "moelora"
    name: str = "moelora"
    lora: Lora = Lora(rank=16, alpha=32.0)
    experts: int = 8
    train_projector: bool = True

    def __post_init__(self):
        if PARALLEL in self.lora.sites or self.experts < 1:
            raise ValueError(f"experts {self.experts} must be at least 1, and lora.sites linears, not {PARALLEL!r}")

    def blank(self, model: Model) -> Bank:
        """The experts, all zeros."""
        return self.lora.blank(model, self.experts)

    def init(self, model: Model, capacity: int) -> Learner:
        """No experts; the room is the same for any number of tasks."""
        past = {LINEARS: self.blank(model)}
        return Learner({}, {}, past, {}, MoeLoraMemory())

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Tuning."""
        return (TuneAll(method=self),)

    def fresh(self, model: Model, lesson: int, key: Array) -> tuple[Bank, dict[str, Array]]:
        """Experts initialised as LoRA is, and routers as a torch linear: uniform within 1 / sqrt(width)."""
        router_key, *expert_keys = jax.random.split(key, self.experts + 1)
        empty_slot = self.lora.blank(model, 1)
        banks = [surgery.sprout(empty_slot, 0, lesson, expert_key) for expert_key in expert_keys]
        widths = self.lora.shapes(model)
        routers = {}
        for site, (width, _) in widths.items():
            # Keyed by the site's name, so that another choice of sites draws the same routers.
            site_number = zlib.crc32(site.encode())
            site_key = jax.random.fold_in(router_key, site_number)
            shape = (empty_slot.layers, width, self.experts)
            bound = width**-0.5
            routers[site] = jax.random.uniform(site_key, shape, jnp.float32, -bound, bound)
        return pool.concat_slots(banks), routers

    def voice(self, bank: Bank, routers: dict[str, Array], key: Array | None = None) -> Voice:
        """All experts under the routers of their linears."""
        shape = (bank.layers, 1, bank.slots)
        gain_L1S = jnp.ones(shape, jnp.float32)
        routing = Routing(gain_L1S, site_routers=routers)
        return Voice(bank, routing, key, dropout=self.lora.dropout)

    def to_archive(self, learner: Learner, lesson: int) -> Archive:
        """All experts, the projector and all routers, as this lesson left them."""
        routers = {}
        for site, router_LDS in learner.memory.routers.items():
            routers[f"router/{site}"] = router_LDS
        bank = learner.past[LINEARS]
        experts = trees.flatten(bank.factors)
        return {"experts": experts, "shared": dict(learner.shared), "memory": routers}

    def from_archive(self, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
        """The learner after the last archived lesson: the inverse of `to_archive`."""
        learner = self.init(model, capacity)
        if not archive:
            return learner
        last = archive[-1]
        factors = trees.unflatten(last["experts"])
        bank = self.blank(model).with_factors(factors)
        # No task owns an expert: 0 only marks the slots as taken.
        owner_LS = jnp.zeros_like(bank.owner_LS)
        bank = bank.replace(owner_LS=owner_LS)
        shared = {path: jnp.asarray(leaf) for path, leaf in last["shared"].items()}
        routers = {}
        for path, router_LDS in last["memory"].items():
            site = path.removeprefix("router/")
            routers[site] = jnp.asarray(router_LDS)
        memory = MoeLoraMemory(routers)
        return learner.replace(past={LINEARS: bank}, shared=shared, memory=memory)

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """No task owns an expert."""
        return ()

    def describe_experts(self) -> str:
        """Where the experts are and what is routed among them, for messages."""
        sites = ", ".join(self.lora.sites)
        return f"every token mixes {self.experts} experts at every linear ({sites})"

    def serve(self, model: Model, learner: Learner) -> Serving:
        """Experts and routers as they are.

        Raises:
          NumericsError: as `check_finite`.
        """
        check_finite(learner.memory)
        memory = learner.memory
        if memory.routers:
            memory = memory.replace(bank=learner.past[LINEARS])
        tuned_model = with_leaves(model, learner.shared)
        return Serving(tuned_model, None, None, memory)

    def decide(self, serving: Serving, features: FrozenFeatures, named_B: Array | None) -> Decision:
        """There is no task to choose."""
        return no_choice(features)

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """All experts, weighted token by token."""
        memory = serving.memory
        if not memory.routers:
            return ()
        voice = self.voice(memory.bank, memory.routers)
        return (voice,)

    @property
    def rank(self) -> int:
        """Rank of one expert."""
        return self.lora.rank

    def with_rank(self, rank: int) -> MoeLora:
        """The method with experts of another rank."""
        return replace(self, lora=replace(self.lora, rank=rank))

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Parameters beyond the base that answering needs after `tasks` tasks, by kind."""
        if not tasks:
            return no_parameters()
        shapes = self.lora.shapes(model)
        # A router reads what its linear reads: the first of the two widths.
        widths = [width for width, _ in shapes.values()]
        experts = model.config.layers * self.experts
        projector = 0
        if self.train_projector:
            projector = trees.count(projector_leaves(model))
        return no_parameters() | {
            "experts": experts * self.lora.size(model),
            "routers": experts * sum(widths),
            "projector": projector,
        }

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Parameters beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` in one stage."""
        stored = self.stored_after(model, len(learner.memory.routers))
        return {"stored": stored, "archived": stored, "trained": stored}


@dataclass(frozen=True, kw_only=True)
class TuneAll(Stage):
    """Trains all experts, all routers and the projector."""

    method: MoeLora
    kind: str = "tune"

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """Puts experts and routers as the last lesson left them into training; before the first they are drawn."""
        live = learner.past[LINEARS]
        routers = learner.memory.routers
        if not routers:
            live, routers = self.method.fresh(model, lesson, key)
        tuned = {}
        if self.method.train_projector:
            tuned = tuned_projector(model, learner)
        return learner.replace(live={LINEARS: live}, tuned=tuned, routers=dict(routers))

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """Answer loss with all experts under their routers."""
        live = learner.live[LINEARS]
        voice = self.method.voice(live, learner.routers, key)
        tuned_model = with_leaves(model, learner.shared | learner.tuned)
        total, tokens, _ = answer_loss(tuned_model, batch, (voice,))
        return Loss(total, tokens)

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Hands everything on to the next task."""
        memory = MoeLoraMemory(dict(learner.routers))
        past = dict(learner.live)
        shared = learner.shared | learner.tuned
        return learner.replace(live={}, tuned={}, routers={}, past=past, shared=shared, memory=memory)
