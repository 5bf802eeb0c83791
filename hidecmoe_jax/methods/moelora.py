"""MoELoRA as CoIN has it (arXiv 2403.08350): a mixture of LoRA experts at every linear, shared by all tasks.

Every adapted linear of the decoder has `experts` LoRA experts and a router of its own, which reads what the linear
reads; a softmax over all experts weighs them token by token. Tasks are learned one after another with everything
trainable, projector included, so nothing keeps an old task: this is a reference point, and the form in which CoIN's
adapters are adopted. Nothing is routed by task, so no task is ever named or located.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.experts import pool, surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.methods.base import (
    Decision,
    FrozenFeatures,
    Learner,
    Loss,
    Method,
    Serving,
    Stage,
    check_finite,
    with_leaves,
)
from hidecmoe_jax.methods.lora import LINEARS, PARALLEL, Lora
from hidecmoe_jax.models.llava import Batch, Model, answer_loss, projector_leaves

TUNE = Stage("tune")


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
        return Learner({}, {}, {LINEARS: self.blank(model)}, {}, {})

    def stages(self, task: int) -> tuple[Stage, ...]:
        """Tuning."""
        return (TUNE,)

    def part(self, stage: Stage, count: int, seed: int) -> None:
        """Every stage reads every record."""

    def before(self, model: Model, learner: Learner, stage: Stage, task: int, key: Array) -> Learner:
        """Experts and routers as the last task left them go to where they train; before the first they are drawn."""
        if "routers" in learner.memory:
            live, routers = learner.past[LINEARS], learner.memory["routers"]
        else:
            live, routers = self._drawn(model, task, key)
        tuned = {}
        if self.train_projector:
            base = projector_leaves(model)
            tuned = {path: leaf.astype(jnp.float32) for path, leaf in base.items()} | learner.shared
        return learner.replace(live={LINEARS: live}, tuned=tuned, routers=dict(routers))

    def _drawn(self, model: Model, task: int, key: Array) -> tuple[Bank, dict[str, Array]]:
        """Experts as any LoRA begins, and routers as a torch linear does: uniform within 1 / sqrt(width)."""
        keys = jax.random.split(key, self.experts + 1)
        banks = [surgery.sprout(self.lora.blank(model, 1), 0, task, one) for one in keys[1:]]
        routers = {}
        for site, (width, _) in self.lora.shapes(model).items():
            own, shape = jax.random.fold_in(keys[0], zlib.crc32(site.encode())), (banks[0].layers, width, self.experts)
            routers[site] = jax.random.uniform(own, shape, jnp.float32, -(width**-0.5), width**-0.5)
        return pool.beside(banks), routers

    def loss(self, model: Model, learner: Learner, stage: Stage, batch: Batch, key: Array) -> Loss:
        """Answer loss with all experts under their routers."""
        voice = self._voice(learner.live[LINEARS], learner.routers, key)
        total, count, _ = answer_loss(with_leaves(model, learner.shared | learner.tuned), batch, (voice,))
        return Loss(total, count)

    def _voice(self, bank: Bank, routers: dict[str, Array], key: Array | None = None) -> Voice:
        heard = jnp.ones((bank.layers, 1, bank.slots), jnp.float32)
        return Voice(bank, Routing(heard, site_routers=routers), key, dropout=self.lora.dropout)

    def usage(self, model: Model, learner: Learner, stage: Stage, batch: Batch) -> None:
        """No stage asks for it."""

    def fit(self, model: Model, learner: Learner, stage: Stage, task: int, seen: FrozenFeatures, key: Array) -> Learner:
        """There is nothing to learn without training."""
        return learner

    def after(self, model: Model, learner: Learner, stage: Stage, task: int) -> Learner:
        """Hands everything on to the next task."""
        memory, shared = learner.memory | {"routers": dict(learner.routers)}, learner.shared | learner.tuned
        return Learner({}, {}, {LINEARS: learner.live[LINEARS]}, shared, memory)

    def to_archive(self, learner: Learner, task: int) -> dict[str, dict[str, Array]]:
        """All experts, the projector and all routers, as this task left them."""
        routers = {f"router/{site}": leaf for site, leaf in learner.memory["routers"].items()}
        experts = trees.flatten(learner.past[LINEARS].factors)
        return {"experts": experts, "shared": dict(learner.shared), "memory": routers}

    def from_archive(self, model: Model, capacity: int, kept: Sequence[dict[str, dict[str, Array]] | None]) -> Learner:
        """The learner after the last lesson that was kept: the inverse of `to_archive`."""
        learner = self.init(model, capacity)
        if not kept:
            return learner
        last = kept[-1]
        bank = self.blank(model).with_factors(trees.unflatten(last["experts"]))
        bank = bank.replace(owner_LS=jnp.zeros_like(bank.owner_LS))
        shared = {path: jnp.asarray(leaf) for path, leaf in last["shared"].items()}
        routers = {path.removeprefix("router/"): jnp.asarray(leaf) for path, leaf in last["memory"].items()}
        return learner.replace(past={LINEARS: bank}, shared=shared, memory={"routers": routers})

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """No task owns an expert."""
        return ()

    def describe_experts(self) -> str:
        """Where the experts are and what is routed among them, for messages."""
        return f"every token mixes {self.experts} experts at every linear ({', '.join(self.lora.sites)})"

    def serve(self, model: Model, learner: Learner) -> Serving:
        """Experts and routers as they are. The bank is part of the memory: no task owns anything of it.

        Raises:
          NumericsError: as `check_finite`.
        """
        check_finite(learner.memory)
        memory = learner.memory | {"bank": learner.past[LINEARS]} if learner.memory else {}
        return Serving(with_leaves(model, learner.shared), None, None, memory)

    def decide(self, serving: Serving, seen: FrozenFeatures, named_B: Array | None) -> Decision:
        """There is no task to choose."""
        weight = jnp.zeros((seen.pooled.text_BD.shape[0], 0))
        return Decision(weight, weight)

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """All experts, weighed token by token."""
        return (self._voice(serving.memory["bank"], serving.memory["routers"]),) if serving.memory else ()

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Numbers beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` in one stage."""
        none = {"experts": 0, "routers": 0, "locator": 0, "projector": 0}
        if not learner.memory:
            return {"stored": none, "archived": none, "trained": none}
        layers, widths = model.config.layers, [width for width, _ in self.lora.shapes(model).values()]
        stored = none | {
            "experts": layers * self.experts * self.lora.size(model),
            "routers": layers * self.experts * sum(widths),
            "projector": trees.count(projector_leaves(model)) if self.train_projector else 0,
        }
        return {"stored": stored, "archived": stored, "trained": stored}
