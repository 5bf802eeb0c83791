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
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Stream
from hidecmoe_jax.experts import pool, surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice, everyone
from hidecmoe_jax.experts.slots import clear
from hidecmoe_jax.methods.gates import AnchorGate, NamedGate
from hidecmoe_jax.methods.learner import Decision, Learner, Seen, Serving, Stage, check_finite, dressed
from hidecmoe_jax.methods.locating import Locating
from hidecmoe_jax.methods.lora import PARALLEL, Lora
from hidecmoe_jax.models.llama import Tally
from hidecmoe_jax.models.llava import Batch, Model, Reading, answer_loss

FAMILY = "linears"
FUSED_SLOT = 0  # tasks start at slot 1, so that widening never moves the fusion
TUNE, LOCATE = Stage("tune"), Stage("locate", source="features")


@dataclass(frozen=True)
class Routed:
    """A method as a choice of parts.

    Attributes:
      growth: an expert per task, one shared by all, or none (the base as it is).
      expand: layers that keep one expert per task: `last`, `all`, `none`, or decoder layer numbers.
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
    expand: Literal["last", "all", "none"] | tuple[int, ...] = "last"
    fusion: Literal["factor_sum", "product_sum", "product_mean"] = "factor_sum"
    eps: tuple[float, ...] = ()
    gate: AnchorGate | NamedGate | Locating = AnchorGate()
    train_projector: bool = True
    union: bool = False

    def __post_init__(self):
        if PARALLEL in self.lora.sites:
            raise ValueError(f"lora.sites: an expert at {PARALLEL!r} has no weight to be folded into; use linears")

    @property
    def needs_name(self) -> bool:
        """Whether answering needs the task's name."""
        return self.growth == "per_task" and self.gate.kind == "named"

    @property
    def isolates(self) -> bool:
        """Whether earlier experts keep every byte: always, but for one shared expert."""
        return self.growth == "per_task"

    @property
    def reading(self) -> Reading | None:
        """The state of the base that the gate looks at."""
        return self.gate.reading if self.gated else None

    @property
    def gated(self) -> bool:
        """Whether there is anything to choose from."""
        return self.growth == "per_task"

    def variants(self) -> dict[str, Routed]:
        """The same experts under each fusion rule, by its name; empty where nothing is fused."""
        if self.growth != "per_task" or self.expand == "all":
            return {}
        return {rule: replace(self, fusion=rule) for rule in surgery.FUSIONS}

    def expanded(self, layers: int) -> tuple[int, ...]:
        """Numbers of the expanded layers of a decoder with `layers` layers."""
        named = {"last": (layers - 1,), "all": tuple(range(layers)), "none": ()}
        chosen = named[self.expand] if isinstance(self.expand, str) else tuple(sorted(set(self.expand)))
        if self.growth != "per_task":
            return ()
        wrong = [layer for layer in chosen if not 0 <= layer < layers]
        if wrong:
            raise ConfigError(
                "cannot expand these layers", where="method.expand", why=f"{wrong} of a decoder with {layers} layers",
                remedy=f"choose from 0..{layers - 1}, or last, all, none",
            )  # fmt: skip
        return chosen

    def fused(self, layers: int) -> tuple[int, ...]:
        """Numbers of the layers whose experts are fused."""
        kept = set(self.expanded(layers))
        return tuple(layer for layer in range(layers) if layer not in kept)

    def birth(self, model: Model, capacity: int) -> Learner:
        """No experts and an ignorant gate, room for `capacity` tasks."""
        if self.growth == "none":
            return Learner({}, {}, {}, {}, {})
        past = self.lora.blank(model, 1 if self.growth == "shared" else capacity + 1)
        memory = {"gate": self.gate.blank(capacity, model)} if self.gated else {}
        return Learner({}, {}, {FAMILY: past}, {}, memory)

    def stages(self, task: int) -> tuple[Stage, ...]:
        """Tuning, then one look at the features where the gate learns from them."""
        if self.growth == "none":
            return ()
        return (TUNE, LOCATE) if self.gated and self.gate.kind != "named" else (TUNE,)

    def lessons(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """Each task a lesson, all tasks one lesson (joint training), or nothing to learn."""
        if self.growth == "none":
            return ()
        return (tuple(range(tasks)),) if self.union else tuple((task,) for task in range(tasks))

    def records(self, stream: Stream, lesson: tuple[int, ...]) -> tuple[Record, ...]:
        """The training records of the lesson's tasks."""
        return tuple(record for task in lesson for record in stream.tasks[task].train)

    def before(self, model: Model, learner: Learner, stage: Stage, task: int, key: Array) -> Learner:
        """Puts a fresh expert (or the shared one) into `live`, and the projector into `tuned`."""
        if not stage.trains:
            return learner
        if self.growth == "shared" and self.learned(learner):
            young = surgery.extract(learner.past[FAMILY], 0)
        else:
            young = surgery.sprout(self.lora.blank(model, 1), 0, task, key)
        tuned = {}
        if self.train_projector:
            # Float32 whatever the base is stored in: a step of 2e-5 would be lost in bfloat16.
            own = trees.flatten(model.params["projector"])
            base = {f"projector/{path}": leaf.astype(jnp.float32) for path, leaf in own.items()}
            tuned = base | {path: learner.shared[path] for path in base if path in learner.shared}
        return learner.replace(live={FAMILY: young}, tuned=tuned)

    def loss(self, model: Model, learner: Learner, stage: Stage, batch: Batch, key: Array) -> tuple[Array, Array, None]:
        """Answer loss with the live expert alone: HiDe trains every expert as if it were the only one (HiDe-D16)."""
        live = learner.live[FAMILY]
        voice = Voice(live, everyone(live), key, dropout=self.lora.dropout)
        total, count, _ = answer_loss(dressed(model, learner.shared | learner.tuned), batch, (voice,))
        return total, count, None

    def part(self, stage: Stage, count: int, seed: int) -> Array | None:
        """Every stage reads every record."""
        return None

    def usage(self, model: Model, learner: Learner, stage: Stage, batch: Batch) -> Tally:
        """There is no such stage."""
        raise NotImplementedError(stage.kind)

    def observe(self, model: Model, learner: Learner, stage: Stage, task: int, seen: Seen, key: Array) -> Learner:
        """What the gate learns of the task."""
        gate = self.gate.fit(learner.memory["gate"], task, seen, key=key)
        return learner.replace(memory=learner.memory | {"gate": gate})

    def after(self, model: Model, learner: Learner, stage: Stage, task: int) -> Learner:
        """Plants the trained expert, fuses the layers that are not expanded, and hands the projector on."""
        if not stage.trains:
            return learner
        past, young = learner.past[FAMILY], learner.live[FAMILY]
        if self.growth == "shared":
            past = surgery.plant(self.lora.blank(model, 1), 0, young, 0)
        else:
            past = self.fused_again(surgery.plant(past, 1 + task, young, task))
        return learner.replace(live={}, tuned={}, past={FAMILY: past}, shared=learner.shared | learner.tuned)

    def keep(self, learner: Learner, task: int) -> dict[str, dict[str, Array]]:
        """What the ledger archives of a task: its own expert, the shared leaves as it left them, the gate's part."""
        bank = learner.past[FAMILY]
        slot = 0 if self.growth == "shared" else 1 + task
        own = pool.taken(bank, slot, slot + 1)  # by place: a retired task owns nothing
        memory = self.gate.kept(learner.memory["gate"], task) if self.gated else {}
        return {"experts": trees.flatten(own.factors), "shared": dict(learner.shared), "memory": memory}

    def recall(self, model: Model, capacity: int, kept: Sequence[dict[str, dict[str, Array]] | None]) -> Learner:
        """The learner after the tasks that `kept` archived, in order: the inverse of `keep`. A task that is None is
        not fused, and the gate passes over it."""
        learner = self.birth(model, capacity)
        there = {task: groups for task, groups in enumerate(kept) if groups is not None}
        if not there:
            return learner
        young, last = self.lora.blank(model, 1), max(there)
        own = {task: young.with_factors(trees.unflatten(groups["experts"])) for task, groups in there.items()}
        own = {task: bank.replace(owner_LS=jnp.full_like(bank.owner_LS, task)) for task, bank in own.items()}
        shared = {path: jnp.asarray(leaf) for path, leaf in there[last]["shared"].items()}
        if self.growth == "shared":
            return learner.replace(past={FAMILY: surgery.plant(young, 0, own[last], 0)}, shared=shared)
        past, memory = learner.past[FAMILY], dict(learner.memory)
        for task, expert in own.items():
            past = surgery.plant(past, 1 + task, expert, task)
        for task, groups in there.items():
            memory["gate"] = self.gate.recalled(memory["gate"], task, groups["memory"])
        return Learner({}, {}, {FAMILY: self.fused_again(past)}, shared, memory)

    def fused_again(self, past: Bank) -> Bank:
        """The bank with its fusion made anew from the experts of all tasks that own one."""
        layers, tasks = self.fused(past.layers), _owners(past)
        if not layers:
            return past
        if not tasks:
            return clear(past, np.asarray(layers), np.full(len(layers), FUSED_SLOT))
        return surgery.fuse(past, tasks, mode=self.fusion, slot=FUSED_SLOT, layers=layers, eps=self._eps(tasks))

    def _eps(self, tasks: tuple[int, ...]) -> tuple[float, ...]:
        if self.eps and len(self.eps) <= max(tasks):
            raise ConfigError(
                "a fusion weight is missing", where="method.eps",
                why=f"{len(self.eps)} weights for {max(tasks) + 1} tasks",
                remedy="give one weight per task, or leave it empty for 1.0 each",
            )  # fmt: skip
        return tuple(self.eps[task] for task in tasks) if self.eps else (1.0,) * len(tasks)

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """Numbers of the tasks that have an expert."""
        return _owners(learner.past[FAMILY]) if FAMILY in learner.past else ()

    def fused_gains(self, bank: Bank, tasks: tuple[int, ...]) -> np.ndarray:
        """Constant gains [L, S] of the layers that are not expanded; zero elsewhere."""
        if self.growth == "shared":
            return np.ones(bank.owner_LS.shape, np.float32)
        layers = self.fused(bank.layers)
        gains = surgery.fusion_gains(bank, tasks, mode=self.fusion, layers=layers, eps=self._eps(tasks))
        return np.asarray(gains)

    def growth_of(self, model: Model, learner: Learner) -> dict:
        """Every task has the same expert everywhere."""
        return {}

    def serve(self, model: Model, learner: Learner) -> Serving:
        """Folds the constant layers into the base weights; expanded layers keep their slots.

        Raises:
          NumericsError: as `check_finite`.
        """
        check_finite(learner.memory)
        dressed_model, tasks = dressed(model, learner.shared), self.learned(learner)
        if not tasks:
            return Serving(dressed_model, None, None, learner.memory)
        bank = learner.past[FAMILY]
        decoder = dict(dressed_model.params["decoder"])
        decoder["layers"] = surgery.merge_into_base(decoder["layers"], bank, self.fused_gains(bank, tasks))
        folded = dressed_model.replace(params={**dressed_model.params, "decoder": decoder})
        expanded = self.expanded(bank.layers)
        if not expanded:
            return Serving(folded, None, None, learner.memory)
        first, last = expanded[0], expanded[-1] + 1
        owner = np.asarray(bank.owner_LS)[first:last]
        kept = np.isin(np.arange(first, last), expanded)[:, None]
        room = bank.slots - 1
        slot_LN = np.stack(
            [np.where((owner == task).any(1), (owner == task).argmax(1), -1) for task in range(room)], axis=1
        )
        slot_LN = np.where(kept, slot_LN, -1).astype(np.int32)
        return Serving(folded, surgery.cut(bank, first, last), jnp.asarray(slot_LN), learner.memory)

    def decide(self, serving: Serving, seen: Seen, named_B: Array | None) -> Decision:
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

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Numbers beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` in one stage.

        Layers fused by `factor_sum` need one expert; product sums keep the rank of all their tasks.
        """
        none = {"experts": 0, "routers": 0, "locator": 0, "projector": 0}
        tasks = len(self.learned(learner))
        if not tasks:
            return {"stored": none, "archived": none, "trained": none}
        bank = learner.past[FAMILY]
        layer = self.lora.size(model)
        projector = trees.count(model.params["projector"]) if self.train_projector else 0
        expanded = len(self.expanded(bank.layers))
        per_fused = tasks if self.growth == "per_task" and self.fusion != "factor_sum" else 1
        stored = layer * (expanded * tasks + (bank.layers - expanded) * per_fused)
        located = tasks * self.gate.size(model) if self.gated else 0
        return {
            "stored": none | {"experts": stored, "locator": located, "projector": projector},
            "archived": none
            | {"experts": layer * bank.layers * tasks, "locator": located, "projector": projector * tasks},
            "trained": none | {"experts": layer * bank.layers, "projector": projector},
        }


def _owners(bank: Bank) -> tuple[int, ...]:
    return tuple(int(task) for task in np.unique(np.asarray(bank.owner_LS)) if task >= 0)
