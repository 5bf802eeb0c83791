"""Token-routed mixtures that grow with the stream: LLaVA-CMoE (arXiv 2503.21227) and its relatives.

All tasks share one pool of experts beside the feed-forward block; every task has its own light token router, which sees
the experts that existed when its task ended and never a later one. A task gets new experts only in layers where a
probe shows a lack (`growth: probe`), or in all of them (`uniform`). At inference a locator picks the router, so with
the right router an old task is answered by the very bytes it was answered by before: all forgetting is the locator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import dynamic_update_slice_in_dim

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import pool
from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import Routing, Voice, balance_loss
from hidecmoe_jax.experts.usage import SILENT, Load
from hidecmoe_jax.methods import edit_pool
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
)
from hidecmoe_jax.methods.capabilities import ProbeResult
from hidecmoe_jax.methods.edit import Edit
from hidecmoe_jax.methods.gates.anchors import AnchorGate, NamedGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.growth import expert_init, summary
from hidecmoe_jax.methods.growth.probe import Probe, counted, cut, expands
from hidecmoe_jax.methods.lora import PARALLEL, Lora
from hidecmoe_jax.models.llama import KINDS, Tally
from hidecmoe_jax.models.llava import Batch, Model, answer_loss

SEEN = ("count", "mass")  # what measuring a probe leaves: tokens that picked each slot, and the weights they gave it


@dataclass(frozen=True)
class Mixture(Method):
    """A growing mixture as a choice of parts.

    Attributes:
      lora: shape of one expert; its site is the whole feed-forward block, or its three linears.
      first, more: experts a layer gets for the first task, and for a later one where it is expanded (CMoE-D4, D16).
      top_k: experts a token is sent to (CMoE-D5).
      balance: weight of the load-balancing loss in the first task; later tasks train without it (CMoE-D7).
      growth: `probe` expands the layers that a probe finds wanting, `uniform` all.
      start: what a new expert begins as: a copy of the most used old one (CMoE-D17), the trained probe, or a blank.
      gate: how an input finds its router.
      lowest: the lowest decoder layer that has experts.
    """

    kind: ClassVar[str] = "mixture"
    name: str = "cmoe"
    lora: Lora = Lora(rank=16, alpha=32.0, sites=(PARALLEL,))
    first: int = 2
    more: int = 1
    top_k: int = 2
    balance: float = 0.01
    growth: Literal["probe", "uniform"] = "probe"
    probe: Probe = Probe()
    start: Literal["copy", "probe", "blank"] = "copy"
    gate: LocatorGate | AnchorGate | NamedGate = LocatorGate()
    lowest: int = 0

    def __post_init__(self):
        if min(self.first, self.more, self.top_k) < 1:
            raise ValueError("first, more and top_k must be at least 1")
        if self.lowest < 0:
            raise ValueError(f"lowest {self.lowest} must not be negative")
        if self.growth == "probe" and self.first < self.top_k:
            raise ValueError(
                f"first {self.first} is below top_k {self.top_k}: every probe would be heard and nothing be told by it"
            )
        if self.growth == "uniform" and self.start != "blank":
            raise ValueError("uniform growth does not probe, so new experts start blank: set start to 'blank'")

    @property
    def traits(self) -> Traits:
        """What callers may rely on. A router never sees a later expert, so with a hard gate its answers are final."""
        mixes = self.gate.mixes_tasks
        return Traits(
            needs_task_name=self.gate.kind == "named",
            keeps_old_experts=True,
            mixes_tasks=mixes,
            answers_are_final=not mixes,
            reads=self.gate.reads,
        )

    def slots(self, task: int) -> range:
        """Where the experts of a task stand in every layer that has them."""
        start = 0 if task == 0 else self.first + (task - 1) * self.more
        return range(start, start + (self.more if task else self.first))

    def layers(self, model: Model) -> range:
        """The decoder layers that have experts."""
        return range(self.lowest, model.config.layers)

    def _blank(self, model: Model, slots: int) -> Bank:
        return self.lora.blank(model, slots, self.layers(model))

    def init(self, model: Model, capacity: int) -> Learner:
        """An empty pool with room for `capacity` tasks.

        Raises:
          ConfigError: no layer of the decoder would have experts.
        """
        if not self.layers(model):
            raise ConfigError(
                "no layer is left for experts", where="method.lowest",
                why=f"layer {self.lowest} of a decoder with {model.config.layers} layers",
                remedy=f"choose from 0..{model.config.layers - 1}",
            )  # fmt: skip
        slots = self.slots(capacity - 1).stop
        layers, width = len(self.layers(model)), model.config.width
        memory = {
            "routers": jnp.zeros((capacity, layers, width, slots)),
            "visible": jnp.zeros((capacity, layers, slots), bool),
            "gate": self.gate.blank(capacity, model),
            "probe": self._no_probe(model, slots),
            "verdict": {
                "expand": jnp.zeros((capacity, layers), bool),
                "count": jnp.zeros((capacity, layers, slots + 1, KINDS), jnp.int32),
                "mass": jnp.zeros((capacity, layers, slots + 1, KINDS)),
            },
        }
        return Learner({}, {}, {POOL: self._blank(model, slots)}, {}, memory)

    def _no_probe(self, model: Model, slots: int) -> dict[str, Any]:
        """A trained probe waits here for the tuning of its task; zeros at other times, so that shapes never change."""
        router = jnp.zeros((len(self.layers(model)), model.config.width, slots + 1))
        return {"factors": self._blank(model, 1).factors, "router": router}

    def stages(self, task: int) -> tuple[Stage, ...]:
        """Probe, count, tune, locate; the first task has nothing to compare a probe with."""
        tune, locate = Stage("tune", hears_past=True), Stage("locate", source="features")
        ending = () if self.traits.needs_task_name else (locate,)
        if task == 0 or self.growth == "uniform":
            return (tune, *ending)
        own = {"steps": self.probe.steps, "rate": self.probe.rate, "accumulate": self.probe.accumulate}
        probe = Stage("probe", hears_past=True, part="probe", **own)
        weigh = Stage("weigh", source="usage", hears_past=True, part="measure")
        return (probe, weigh, tune, *ending)

    def part(self, stage: Stage, count: int, seed: int) -> np.ndarray | None:
        """Records that probes are trained and measured on."""
        if stage.part == "all":
            return None
        return cut(self.probe, count, seed)[stage.part == "measure"]

    def before(self, model: Model, learner: Learner, stage: Stage, task: int, key: Array) -> Learner:
        """Puts a probe, or the task's new experts, and their router into training."""
        if not stage.trains:
            return learner
        past, memory, new = learner.past[POOL], learner.memory, 1 if stage.kind == "probe" else len(self.slots(task))
        live = expert_init.blank(self._blank(model, 1), new, task, key)
        if stage.kind == "probe" or self.growth == "uniform" or task == 0:
            router = expert_init.blank_router(memory["routers"][max(task - 1, 0)], past, new, key)
        else:
            verdict, probe = memory["verdict"], memory["probe"]
            if self.start == "copy":
                used_LS = counted(np.asarray(verdict["count"])[task, :, :-1], self.probe)
                live = expert_init.copied(live, past, used_LS)
            elif self.start == "probe":
                live = expert_init.promoted(live, probe["factors"])
            live = expert_init.only(live, verdict["expand"][task])
            router = expert_init.promoted_router(probe["router"], new)
        # Empty slots make up for what a task gets less than another, so that all tasks train by one program.
        room = 0 if stage.kind == "probe" else max(self.first, self.more) - new
        live = pool.beside([live, self._blank(model, room)]) if room else live
        router = jnp.pad(router, ((0, 0), (0, 0), (0, room)))
        return learner.replace(live={POOL: live}, routers={POOL: router})

    def _pool(self, learner: Learner, key: Array | None) -> tuple[Voice, Voice]:
        """Old and new experts under one gate, with the router that trains."""
        past, live, router = learner.past[POOL], learner.live[POOL], learner.routers[POOL][:, None]

        def heard(bank: Bank) -> Array:
            return (bank.owner_LS != EMPTY).astype(jnp.float32)[:, None]

        old = Routing(heard(past), router[..., : past.slots], self.top_k, gate=POOL)
        new = Routing(heard(live), router[..., past.slots :], self.top_k, gate=POOL)
        return Voice(past, old), Voice(live, new, key, dropout=self.lora.dropout)

    def loss(
        self, model: Model, learner: Learner, stage: Stage, batch: Batch, key: Array, below: tuple[Voice, ...] = ()
    ) -> Loss:
        """Answer loss of the whole pool; in the first task and while probing plus load balancing, per answer token.

        Args:
          below: what is heard in layers below the pool's.
        """
        voices = self._pool(learner, key)
        total, count, tallies = answer_loss(model, batch, (*below, *voices), tally=True)
        # The first task is known by an empty pool, which is data: a stage of its own would be one more program.
        first = jnp.all(learner.past[POOL].owner_LS == EMPTY)
        weight = self.probe.balance if stage.kind == "probe" else jnp.where(first, self.balance, 0.0)
        heard = jnp.concatenate([voice.routing.gain_LBS[:, 0] > 0 for voice in voices], axis=-1)
        # The pool reaches up to the top, so its tallies are those of the last segment of layers.
        used = jax.tree.map(lambda *parts: jnp.sum(jnp.concatenate(parts, axis=1), axis=-1), *tallies[-1])
        balance = balance_loss(used.count, used.chance, heard) * count.astype(jnp.float32)
        return Loss(total + weight * balance, count, Load(jnp.where(heard, used.count, SILENT), self.top_k))

    def usage(self, model: Model, learner: Learner, stage: Stage, batch: Batch, below: tuple[Voice, ...] = ()) -> Tally:
        """What every slot of the pool is picked for with the probe in place; the probe is the last slot."""
        probe = learner.memory["probe"]
        bare = self._blank(model, 1)
        live = bare.with_factors(probe["factors"]).replace(owner_LS=jnp.zeros_like(bare.owner_LS))
        heard = learner.replace(live={POOL: live}, routers={POOL: probe["router"]})
        _, _, tallies = answer_loss(model, batch, (*below, *self._pool(heard, None)), tally=True)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *tallies[-1])

    def fit(self, model: Model, learner: Learner, stage: Stage, task: int, seen: FrozenFeatures, key: Array) -> Learner:
        """The probes' verdict, or the task's part of the locator."""
        memory = dict(learner.memory)
        if stage.kind == "locate":
            memory["gate"] = self.gate.fit(memory["gate"], task, seen, key=key)
            return learner.replace(memory=memory)
        heard = np.asarray(learner.past[POOL].owner_LS) != EMPTY
        heard = np.concatenate([heard, np.ones((len(heard), 1), bool)], axis=1)
        count = counted(seen.usage.count, self.probe)
        found = {"expand": expands(count, heard, self.probe, fewest=self.top_k)}
        found |= {"count": seen.usage.count, "mass": seen.usage.mass}
        memory["verdict"] = {name: leaf.at[task].set(found[name]) for name, leaf in memory["verdict"].items()}
        return learner.replace(memory=memory)

    def after(self, model: Model, learner: Learner, stage: Stage, task: int) -> Learner:
        """Keeps a trained probe for the verdict, or plants the new experts and closes the task's router."""
        if not stage.trains:
            return learner
        live, router, memory = learner.live[POOL], learner.routers[POOL], dict(learner.memory)
        if stage.kind == "probe":
            memory["probe"] = {"factors": live.factors, "router": router}
            return learner.replace(live={}, routers={}, memory=memory)
        own = self.slots(task)
        past = pool.put(learner.past[POOL], own.start, pool.taken(live, 0, len(own)))
        visible = past.owner_LS != EMPTY
        young = router[..., past.slots : past.slots + len(own)]
        closed = dynamic_update_slice_in_dim(router[..., : past.slots], young, own.start, axis=2)
        closed = jnp.where(visible[:, None, :], closed, 0.0)
        memory["routers"] = memory["routers"].at[task].set(closed)
        memory["visible"] = memory["visible"].at[task].set(visible)
        memory["probe"] = jax.tree.map(jnp.zeros_like, memory["probe"])
        return learner.replace(live={}, routers={}, past=learner.past | {POOL: past}, memory=memory)

    def to_archive(self, learner: Learner, task: int) -> dict[str, dict[str, Array]]:
        """A task's experts, its router over the slots there were, what the locator knows of it, the verdict."""
        own, memory = self.slots(task), learner.memory
        expert = pool.taken(learner.past[POOL], own.start, own.stop)
        # Cut on the host: these shapes grow with the task, and each would be a program of its own.
        told = {name: np.asarray(leaf[task]) for name, leaf in memory["verdict"].items()}
        kept = {"router": np.asarray(memory["routers"][task])[..., : own.stop]}
        kept |= {"visible": np.asarray(memory["visible"][task])[..., : own.stop], "expand": told["expand"]}
        kept |= {name: np.concatenate([told[name][:, : own.start], told[name][:, -1:]], axis=1) for name in SEEN}
        kept |= {f"gate/{name}": leaf for name, leaf in self.gate.to_archive(memory["gate"], task).items()}
        return {"experts": trees.flatten(expert.factors) | {"owner": expert.owner_LS}, "shared": {}, "memory": kept}

    def from_archive(self, model: Model, capacity: int, kept: Sequence[dict[str, dict[str, Array]] | None]) -> Learner:
        """The inverse of `to_archive`. Of a task that is None no expert is heard, not by a later task's router either,
        which then shares a token among the experts that are left."""
        learner = self.init(model, capacity)
        past, memory = learner.past[POOL], dict(learner.memory)
        # Filled on the host, as `to_archive` cuts.
        told = jax.tree.map(np.array, {name: memory[name] for name in ("routers", "visible", "verdict")})
        for task, groups in enumerate(kept):
            if groups is None:
                continue
            own, experts = self.slots(task), dict(groups["experts"])
            owner = jnp.asarray(experts.pop("owner"), jnp.int32)
            expert = self._blank(model, len(own)).with_factors(trees.unflatten(experts)).replace(owner_LS=owner)
            past = pool.put(past, own.start, expert)
            stored = groups["memory"]
            told["routers"][task, :, :, : own.stop] = stored["router"]
            told["visible"][task, :, : own.stop] = stored["visible"]
            told["verdict"]["expand"][task] = stored["expand"]
            for name in (name for name in SEEN if name in stored):  # early archives have no mass
                told["verdict"][name][task, :, : own.start] = stored[name][:, :-1]
                told["verdict"][name][task, :, -1] = stored[name][:, -1]
            facts = {name.removeprefix("gate/"): leaf for name, leaf in stored.items() if name.startswith("gate/")}
            memory["gate"] = self.gate.from_archive(memory["gate"], task, facts)
        told["visible"] &= np.asarray(past.owner_LS) != EMPTY
        return learner.replace(past={POOL: past}, memory=memory | jax.tree.map(jnp.asarray, told))

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """Numbers of the tasks that have a router."""
        return tuple(np.flatnonzero(np.asarray(learner.memory["visible"]).any(axis=(1, 2))).tolist())

    def growth_of(self, model: Model, learner: Learner) -> dict[str, Any]:
        """Where experts were added and why, as `summary.growth_of` says."""
        return summary.growth_of(self, model, learner)

    def describe_experts(self) -> str:
        """Where the experts are and what is routed among them, for messages."""
        where = "beside the feed-forward block" if PARALLEL in self.lora.sites else "at linears"
        return f"every token is routed among experts {where} ({', '.join(self.lora.sites)})"

    def narrow_edit(self, learner: Learner, edit: Edit, since: int | None) -> Edit | None:
        """As `Editable`."""
        return edit_pool.narrowed(learner, edit)

    def apply_edit(self, learner: Learner, edit: Edit, since: int | None) -> Learner:
        """As `Editable`."""
        return edit_pool.edited(learner, edit)

    @property
    def rank(self) -> int:
        """Rank of the experts."""
        return self.lora.rank

    def with_rank(self, rank: int) -> Mixture:
        """The method with experts of another rank."""
        return replace(self, lora=replace(self.lora, rank=rank))

    @property
    def probes(self) -> bool:
        """Whether layers are expanded where a probe is chosen often."""
        return self.growth == "probe"

    @property
    def probe_settings(self) -> Probe:
        """How probes are trained and judged."""
        return self.probe

    def with_probe(self, probe: Probe) -> Mixture:
        """The method with other probe settings."""
        return replace(self, probe=probe)

    def probe_result(self, learner: Learner, lesson: int) -> ProbeResult:
        """What the probes of a lesson found."""
        expands = np.asarray(learner.memory["verdict"]["expand"][lesson])
        return ProbeResult(expands, *summary.probed(self, learner, lesson))

    def serve(self, model: Model, learner: Learner) -> Serving:
        """The pool as it is; nothing is folded, for every token may go elsewhere.

        Raises:
          NumericsError: as `check_finite`.
        """
        check_finite(learner.memory)
        return Serving(model, learner.past[POOL], None, learner.memory)

    def decide(self, serving: Serving, seen: FrozenFeatures, named_B: Array | None) -> Decision:
        """One-hot on the task that is named or located (or soft weights); all zero for an input of no known task."""
        learned_N = jnp.any(serving.memory["visible"], axis=(1, 2))
        if named_B is not None:
            weight = jax.nn.one_hot(named_B, len(learned_N))
            return Decision(weight, weight)
        return self.gate.decide(serving.memory["gate"], seen, learned_N)

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """The pool under the located task's router, gathered per sample; with soft weights one voice a task."""
        routers, visible = serving.memory["routers"], serving.memory["visible"].astype(jnp.float32)
        weight_BN = decision.weight_BN
        if self.gate.mixes_tasks:
            gains = [visible[task][:, None] * weight_BN[None, :, task, None] for task in range(len(routers))]
            return tuple(
                Voice(serving.bank, Routing(gain, routers[task][:, None], self.top_k))
                for task, gain in enumerate(gains)
            )
        choice_B, known_B = jnp.argmax(weight_BN, axis=-1), jnp.max(weight_BN, axis=-1) > 0
        gain_LBS = jnp.moveaxis(visible[choice_B] * known_B[:, None, None], 0, 1)
        return (Voice(serving.bank, Routing(gain_LBS, jnp.moveaxis(routers[choice_B], 0, 1), self.top_k)),)

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Numbers beyond the base that answering is expected to need after `tasks` tasks, by kind."""
        layers, part = len(self.layers(model)), 1.0 if self.growth == "uniform" else self.probe.expects
        visible = [layers * (self.first + self.more * part * task) for task in range(tasks)]
        return {
            "experts": round(self.lora.size(model) * (visible or [0])[-1]),
            "routers": round(model.config.width * sum(visible)),
            "locator": tasks * self.gate.size(model),
            "projector": 0,
        }

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Numbers beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` for the last task."""
        return summary.sizes(self, model, learner)
