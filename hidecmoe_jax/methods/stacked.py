"""Fused layers below growing ones: HiDe-LLaVA's lower layers (arXiv 2503.12941) under LLaVA-CMoE's pool (2503.21227).

In the lower layers every task trains an expert alone, on the linears, and the experts of all tasks are fused into the
base when it ends; in the layers above, a `Mixture` grows by probes and routes tokens, and its locator finds the task.
What probes are asked with is the model as it answers: the fusion of earlier tasks speaks below them. Later tasks change
that fusion, so here forgetting is not the locator's alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice, everyone
from hidecmoe_jax.methods.base import (
    Decision,
    FrozenFeatures,
    Learner,
    Loss,
    Method,
    Serving,
    Stage,
    Traits,
    with_experts_folded,
)
from hidecmoe_jax.methods.capabilities import ProbeResult
from hidecmoe_jax.methods.edit import Edit
from hidecmoe_jax.methods.fusion import FusionRule, archived, owners, planted
from hidecmoe_jax.methods.gates.anchors import AnchorGate, NamedGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.growth.probe import Probe
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.models.llama import Tally
from hidecmoe_jax.models.llava import Batch, Model

LOWER = "lower"  # the family name of the fused experts in a learner
TUNE = "tune"


@dataclass(frozen=True)
class Lower:
    """The lower layers.

    Attributes:
      layers: how many, from the lowest on.
      lora: shape of one expert; its sites are linears.
      fusion, eps: how experts become one, as in `Routed`.
    """

    layers: int = 1
    lora: Lora = Lora()
    fusion: surgery.Fusion = "factor_sum"
    eps: tuple[float, ...] = ()

    def __post_init__(self):
        if self.layers < 1:
            raise ValueError(f"layers {self.layers} must be at least 1")
        self.lora.require_linears()

    @property
    def span(self) -> range:
        """Numbers of the layers."""
        return range(self.layers)

    def blank(self, model: Model, slots: int) -> Bank:
        """A bank of `slots` experts in these layers, nobody's."""
        return self.lora.blank(model, slots, self.span)

    @property
    def fusing(self) -> FusionRule:
        """How experts become one."""
        return FusionRule(self.fusion, self.eps, where="method.below.eps")


@dataclass(frozen=True)
class Stacked(Method):
    """A method as a choice of two: what the lower layers do, and the mixture in all layers above them."""

    kind: ClassVar[str] = "stacked"
    name: str = "stacked"
    below: Lower = field(default_factory=Lower)
    above: Mixture = field(default_factory=Mixture)

    def __post_init__(self):
        if self.above.lowest not in (0, self.below.layers):
            raise ValueError(
                f"above.lowest is {self.above.lowest}, but `below` ends at {self.below.layers}: leave above.lowest out"
            )

    @property
    def grown(self) -> Mixture:
        """The mixture, in its place above the lower layers."""
        return replace(self.above, lowest=self.below.layers)

    @property
    def gate(self) -> LocatorGate | AnchorGate | NamedGate:
        """How an input finds its router."""
        return self.above.gate

    @property
    def traits(self) -> Traits:
        """Those of the mixture, but no answer is final: later tasks change the fusion below every router."""
        return replace(self.above.traits, answers_are_final=False)

    def variants(self) -> dict[str, Stacked]:
        """The same experts under each fusion rule, by its name."""
        return {rule: replace(self, below=replace(self.below, fusion=rule)) for rule in surgery.FUSIONS}

    def stages(self, task: int) -> tuple[Stage, ...]:
        """Those of the mixture; the lower expert trains along while it tunes."""
        return self.above.stages(task)

    def part(self, stage: Stage, count: int, seed: int) -> np.ndarray | None:
        """Records that probes are trained and measured on."""
        return self.above.part(stage, count, seed)

    def init(self, model: Model, capacity: int) -> Learner:
        """No experts anywhere, room for `capacity` tasks.

        Raises:
          ConfigError: no layer is left for the mixture.
        """
        if self.below.layers >= model.config.layers:
            raise ConfigError(
                "no layer is left to grow", where="method.below.layers",
                why=f"{self.below.layers} of a decoder with {model.config.layers} layers",
                remedy=f"choose from 1..{model.config.layers - 1}, or method.kind=routed",
            )  # fmt: skip
        return self._with(self.grown.init(model, capacity), self.below.blank(model, capacity + 1))

    def _with(self, learner: Learner, bank: Bank) -> Learner:
        """The learner with these lower experts, fused, and the gains with which the fusion speaks."""
        layers = tuple(self.below.span)
        bank = self.below.fusing.fused(bank, layers)
        gains = {LOWER: self.below.fusing.gains(bank, layers)}
        return learner.replace(past=learner.past | {LOWER: bank}, memory=learner.memory | gains)

    def before(self, model: Model, learner: Learner, stage: Stage, task: int, key: Array) -> Learner:
        """What the mixture trains, and while it tunes a fresh lower expert."""
        ready = self.grown.before(model, learner, stage, task, key)
        if stage.kind != TUNE:
            return ready
        young = surgery.sprout(self.below.blank(model, 1), 0, task, jax.random.fold_in(key, self.below.layers))
        return ready.replace(live=ready.live | {LOWER: young})

    def _heard_below(self, learner: Learner, key: Array | None) -> tuple[Voice]:
        """The lower expert that trains, alone (HiDe-D16); where none trains, the fusion of what was learned."""
        if LOWER in learner.live:
            young = learner.live[LOWER]
            return (Voice(young, everyone(young), key, dropout=self.below.lora.dropout),)
        return (Voice(learner.past[LOWER], Routing(learner.memory[LOWER][:, None])),)

    def loss(self, model: Model, learner: Learner, stage: Stage, batch: Batch, key: Array) -> Loss:
        """The mixture's loss above what is heard in the lower layers."""
        return self.grown.loss(model, learner, stage, batch, key, self._heard_below(learner, key))

    def usage(self, model: Model, learner: Learner, stage: Stage, batch: Batch) -> Tally:
        """What every slot of the pool is picked for."""
        return self.grown.usage(model, learner, stage, batch, self._heard_below(learner, None))

    def fit(self, model: Model, learner: Learner, stage: Stage, task: int, seen: FrozenFeatures, key: Array) -> Learner:
        """The probes' verdict, or the task's part of the locator."""
        return self.grown.fit(model, learner, stage, task, seen, key)

    def after(self, model: Model, learner: Learner, stage: Stage, task: int) -> Learner:
        """What the mixture does; after tuning the lower expert is planted and the fusion made anew."""
        done = self.grown.after(model, learner, stage, task)
        if stage.kind != TUNE:
            return done
        return self._with(done, surgery.plant(done.past[LOWER], 1 + task, learner.live[LOWER], task))

    def to_archive(self, learner: Learner, task: int) -> dict[str, dict[str, Array]]:
        """What the mixture keeps of a task, and its lower expert."""
        kept = self.grown.to_archive(learner, task)
        lower = {f"{LOWER}/{path}": leaf for path, leaf in archived(learner.past[LOWER], task).items()}
        return kept | {"experts": kept["experts"] | lower}

    def from_archive(self, model: Model, capacity: int, kept: Sequence[dict[str, dict[str, Array]] | None]) -> Learner:
        """The inverse of `to_archive`; the lower expert of a task that is None is not fused."""
        above: list[dict[str, dict[str, Array]] | None] = []
        bank, bare = self.below.blank(model, capacity + 1), self.below.blank(model, 1)
        for task, groups in enumerate(kept):
            if groups is None:
                above.append(None)
                continue
            experts, lower = dict(groups["experts"]), {}
            for path in [path for path in experts if path.startswith(f"{LOWER}/")]:
                lower[path.removeprefix(f"{LOWER}/")] = jnp.asarray(experts.pop(path))
            above.append(groups | {"experts": experts})
            bank = planted(bank, bare, task, lower)
        return self._with(self.grown.from_archive(model, capacity, above), bank)

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """Numbers of the tasks that have a router."""
        return self.grown.learned(learner)

    def growth_of(self, model: Model, learner: Learner) -> dict[str, Any]:
        """Where the mixture added experts and why."""
        found = self.grown.growth_of(model, learner)
        lower = self.below.lora.size(model) * self.below.layers
        parameters = [parts | {"experts": parts["experts"] + lower} for parts in found["parameters"]]
        return found | {"parameters": parameters}

    def describe_experts(self) -> str:
        """Where the mixture's experts are and what is routed among them, for messages."""
        return self.grown.describe_experts()

    def narrow_edit(self, learner: Learner, edit: Edit, since: int | None) -> Edit | None:
        """As `Editable`: edits are made in the mixture's pool."""
        return self.grown.narrow_edit(learner, edit, since)

    def apply_edit(self, learner: Learner, edit: Edit, since: int | None) -> Learner:
        """As `Editable`: edits are made in the mixture's pool."""
        return self.grown.apply_edit(learner, edit, since)

    @property
    def rank(self) -> int:
        """Rank of the experts; an equal budget chooses the same for both parts."""
        return self.below.lora.rank

    def with_rank(self, rank: int) -> Stacked:
        """The method with experts of another rank, in both parts."""
        below = replace(self.below, lora=replace(self.below.lora, rank=rank))
        return replace(self, below=below, above=self.above.with_rank(rank))

    @property
    def probes(self) -> bool:
        """Whether the mixture probes."""
        return self.above.probes

    @property
    def probe_settings(self) -> Probe:
        """How the mixture's probes are trained and judged."""
        return self.above.probe

    def with_probe(self, probe: Probe) -> Stacked:
        """The method with other probe settings."""
        return replace(self, above=self.above.with_probe(probe))

    def probe_result(self, learner: Learner, lesson: int) -> ProbeResult:
        """What the probes of a lesson found."""
        return self.grown.probe_result(learner, lesson)

    def serve(self, model: Model, learner: Learner) -> Serving:
        """The pool above a base into which the fusion is folded.

        Raises:
          NumericsError: as `check_finite`.
        """
        return self.grown.serve(with_experts_folded(model, learner.past[LOWER], learner.memory[LOWER]), learner)

    def decide(self, serving: Serving, seen: FrozenFeatures, named_B: Array | None) -> Decision:
        """What the mixture decides."""
        return self.grown.decide(serving, seen, named_B)

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """What the mixture lets speak."""
        return self.grown.voices(serving, decision)

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Numbers beyond the base that answering is expected to need after `tasks` tasks, by kind."""
        parts = self.grown.stored_after(model, tasks)
        return parts | {"experts": parts["experts"] + self._lower_size(model, tasks)}

    def _lower_size(self, model: Model, tasks: int) -> int:
        """Numbers of the fusion of so many tasks."""
        return self.below.lora.size(model) * self.below.layers * self.below.fusing.stored(tasks)

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Numbers beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` for the last task."""
        found, tasks = self.grown.sizes(model, learner), len(owners(learner.past[LOWER]))
        one = self.below.lora.size(model) * self.below.layers
        more = {"stored": self._lower_size(model, tasks), "archived": one * tasks, "trained": one * min(tasks, 1)}
        return {name: parts | {"experts": parts["experts"] + more[name]} for name, parts in found.items()}
