"""Fused layers below growing ones: HiDe-LLaVA's lower layers (arXiv 2503.12941) under LLaVA-CMoE's pool (2503.21227).

In the lower layers every task trains an expert alone, on the linears, and the experts of all tasks are fused into the
base when it ends; in the layers above, a `Mixture` grows by probes and routes tokens, and its locator finds the task.
Probes are trained and measured with the model as it answers, with the fusion of earlier tasks below them. Later tasks
change that fusion, so here forgetting is not the locator's alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice, all_slots
from hidecmoe_jax.methods.base import Archive, FrozenFeatures, Learner, Loss, Serving, Traits, with_experts_folded
from hidecmoe_jax.methods.capabilities import ProbeResult
from hidecmoe_jax.methods.edit import Edit
from hidecmoe_jax.methods.fusion import FusionRule, own_factors, owning_tasks, slot_of, with_expert
from hidecmoe_jax.methods.growth.probe import Probe
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.mixture_memory import MixtureMemory, mixture_fields
from hidecmoe_jax.methods.mixture_stages import CountUsage, TrainProbe, Tune
from hidecmoe_jax.methods.stages import Stage, WrappedStage
from hidecmoe_jax.methods.wrapper import Wrapper
from hidecmoe_jax.models.llava import Batch, Model
from hidecmoe_jax.models.voices import Tally

LOWER = "lower"
"""Family (a key of `Learner.live` and `Learner.past`) of the lower layers' experts: those of every task and their
fusion. Paths in their archives begin with it."""


class StackedMemory(MixtureMemory):
    """The mixture's memory and one array more.

    Attributes:
      lower: float32 [L, S], gains that make the bank of the lower layers their fusion. The name is a checkpoint path.
    """

    lower: Array | None = None


@dataclass(frozen=True)
class LowerLayers:
    """Settings of the fused layers below the mixture.

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
        """A bank of `slots` EMPTY slots in these layers."""
        return self.lora.blank(model, slots, self.span)

    @property
    def fusion_rule(self) -> FusionRule:
        """The rule `fusion` with its weights `eps`."""
        return FusionRule(self.fusion, self.eps, where="method.below.eps")

    def expert_size(self, model: Model) -> int:
        """Parameters of one task's expert in all these layers."""
        return self.lora.size(model) * self.layers


@dataclass(frozen=True)
class Stacked(Wrapper):
    """A mixture (`above`) with fused layers below it: the wrapper adds the lower layers to the mixture's hooks."""

    kind: ClassVar[str] = "stacked"
    name: str = "stacked"
    below: LowerLayers = field(default_factory=LowerLayers)
    above: Mixture = field(default_factory=Mixture)
    lora: ClassVar[None] = None  # the two parts have shapes of their own

    def __post_init__(self):
        if self.above.lowest not in (0, self.below.layers):
            raise ValueError(
                f"above.lowest is {self.above.lowest}, but `below` ends at {self.below.layers}: leave above.lowest out"
            )

    @property
    def inner(self) -> Mixture:
        """The mixture, in its place above the lower layers."""
        return replace(self.above, lowest=self.below.layers)

    @property
    def traits(self) -> Traits:
        """Traits of the mixture, except that no answer is final: later tasks change the fusion below every router."""
        return replace(self.above.traits, answers_are_final=False)

    def variants(self) -> dict[str, Stacked]:
        """The same experts under each fusion rule, by its name."""
        by_rule = {}
        for rule in surgery.FUSIONS:
            below = replace(self.below, fusion=rule)
            by_rule[rule] = replace(self, below=below)
        return by_rule

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Stages of the mixture, each wrapped so that the lower layers contribute below the pool."""
        stages: list[Stage] = []
        for stage in self.inner.stages(lesson):
            match stage:
                case Tune():
                    stages.append(TuneBoth.around(stage, method=self))
                case TrainProbe() | CountUsage():
                    stages.append(AboveFusion.around(stage, method=self))
                case _:
                    stages.append(stage)
        return tuple(stages)

    def lessons(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """Every task is a lesson; `below.eps` must weigh them all."""
        self.below.fusion_rule.require(tasks)
        return self.inner.lessons(tasks)

    def init(self, model: Model, capacity: int) -> Learner:
        """No experts anywhere, room for `capacity` tasks.

        Raises:
          ConfigError: no layer is left for the mixture.
        """
        layers = model.config.layers
        if self.below.layers >= layers:
            raise ConfigError(
                "no layer is left to grow", where="method.below.layers",
                why=f"{self.below.layers} of a decoder with {layers} layers",
                remedy=f"choose from 1..{layers - 1}, or method.kind=routed",
            )  # fmt: skip
        learner = self.inner.init(model, capacity)
        # One slot more than tasks: slot 0 holds the fusion.
        bank = self.below.blank(model, capacity + 1)
        return self.with_lower(learner, bank)

    def with_lower(self, learner: Learner, bank: Bank) -> Learner:
        """The learner with these lower experts, fused, and the gains of their fusion."""
        layers = tuple(self.below.span)
        rule = self.below.fusion_rule
        bank = rule.fused(bank, layers)
        gain_LS = rule.gains(bank, layers)
        memory = StackedMemory(**mixture_fields(learner.memory), lower=gain_LS)
        past = learner.past | {LOWER: bank}
        return learner.replace(past=past, memory=memory)

    def to_archive(self, learner: Learner, lesson: int) -> Archive:
        """What the mixture archives of a task, and its lower expert."""
        archive = self.inner.to_archive(learner, lesson)
        experts = dict(archive["experts"])
        for path, leaf in own_factors(learner.past[LOWER], lesson).items():
            experts[f"{LOWER}/{path}"] = leaf
        return archive | {"experts": experts}

    def from_archive(self, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
        """The inverse of `to_archive`; the lower expert of a task that is None is not fused."""
        above: list[Archive | None] = []
        bank = self.below.blank(model, capacity + 1)
        empty_slot = self.below.blank(model, 1)
        for task, groups in enumerate(archive):
            if groups is None:
                above.append(None)
                continue
            upper_experts, lower_factors = _split_experts(groups["experts"])
            above.append(groups | {"experts": upper_experts})
            bank = with_expert(bank, empty_slot, task, lower_factors)
        learner = self.inner.from_archive(model, capacity, above)
        return self.with_lower(learner, bank)

    def growth_of(self, model: Model, learner: Learner) -> dict[str, Any]:
        """Where the mixture added experts and why; every task also added a lower expert."""
        growth = self.inner.growth_of(model, learner)
        lower_size = self.below.expert_size(model)
        parameters = []
        for counts in growth["parameters"]:
            experts = counts["experts"] + lower_size
            parameters.append(counts | {"experts": experts})
        return growth | {"parameters": parameters}

    def narrow_edit(self, learner: Learner, edit: Edit, since: int | None) -> Edit | None:
        """As `Editable`: edits are made in the mixture's pool."""
        return self.inner.narrow_edit(learner, edit, since)

    def apply_edit(self, learner: Learner, edit: Edit, since: int | None) -> Learner:
        """As `Editable`: edits are made in the mixture's pool."""
        return self.inner.apply_edit(learner, edit, since)

    @property
    def rank(self) -> int:
        """Rank of the experts; an equal budget chooses the same for both parts."""
        return self.below.lora.rank

    def with_rank(self, rank: int) -> Stacked:
        """The method with experts of another rank, in both parts."""
        lora = replace(self.below.lora, rank=rank)
        below = replace(self.below, lora=lora)
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
        """Frequencies and thresholds of a lesson's probes, and the layers that were expanded."""
        return self.inner.probe_result(learner, lesson)

    def serve(self, model: Model, learner: Learner) -> Serving:
        """The pool above a base into which the fusion is folded.

        Raises:
          NumericsError: as `check_finite`.
        """
        lower_bank = learner.past[LOWER]
        folded = with_experts_folded(model, lower_bank, learner.memory.lower)
        return self.inner.serve(folded, learner)

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Parameters beyond the base that answering is expected to need after `tasks` tasks, by kind."""
        counts = self.inner.stored_after(model, tasks)
        experts = counts["experts"] + self._fusion_size(model, tasks)
        return counts | {"experts": experts}

    def _fusion_size(self, model: Model, tasks: int) -> int:
        """Parameters of the fusion of so many tasks."""
        experts = self.below.fusion_rule.stored(tasks)
        return experts * self.below.expert_size(model)

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Parameters beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` for the largest
        task."""
        tasks = len(owning_tasks(learner.past[LOWER]))
        expert_size = self.below.expert_size(model)
        lower_sizes = {
            "stored": self._fusion_size(model, tasks),
            "archived": expert_size * tasks,
            "trained": expert_size * min(tasks, 1),
        }
        sizes = {}
        for name, counts in self.inner.sizes(model, learner).items():
            experts = counts["experts"] + lower_sizes[name]
            sizes[name] = counts | {"experts": experts}
        return sizes


def _split_experts(stored: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The `experts` group of an archive as that of the mixture and that of the lower expert."""
    upper: dict[str, Array] = {}
    lower: dict[str, Array] = {}
    prefix = f"{LOWER}/"
    for path, leaf in stored.items():
        if path.startswith(prefix):
            inner_path = path.removeprefix(prefix)
            lower[inner_path] = jnp.asarray(leaf)
        else:
            upper[path] = leaf
    return upper, lower


@dataclass(frozen=True, kw_only=True)
class AboveFusion(WrappedStage):
    """A stage of the mixture's probe, with the fusion of earlier tasks in the lower layers."""

    method: Stacked

    def _fusion(self, learner: Learner) -> tuple[Voice]:
        """The lower experts under the gains of their fusion."""
        gain_L1S = learner.memory.lower[:, None]
        routing = Routing(gain_L1S)
        return (Voice(learner.past[LOWER], routing),)

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """The mixture's loss above the fusion."""
        lower_voices = self._fusion(learner)
        return self.inner.loss(model, learner, batch, key, lower_voices)

    def usage(self, model: Model, learner: Learner, batch: Batch) -> Tally:
        """How often every slot of the pool is chosen above the fusion."""
        lower_voices = self._fusion(learner)
        return self.inner.usage(model, learner, batch, lower_voices)


@dataclass(frozen=True, kw_only=True)
class TuneBoth(WrappedStage):
    """The mixture's tuning, with a lower expert that trains along, alone in its layers."""

    method: Stacked

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """What the mixture trains, and a fresh lower expert."""
        ready = self.inner.prepare(model, learner, lesson, key)
        below = self.method.below
        # The mixture uses `key` for its own experts. Should it fold in the same number, the draws still differ, because
        # they depend on the decoder layer too.
        lower_key = jax.random.fold_in(key, below.layers)
        empty_slot = below.blank(model, 1)
        expert = surgery.sprout(empty_slot, 0, lesson, lower_key)
        # Beside the pool's: each family of experts trains in a bank of its own.
        live = ready.live | {LOWER: expert}
        return ready.replace(live=live)

    def loss(self, model: Model, learner: Learner, batch: Batch, key: Array) -> Loss:
        """The mixture's loss above the lower expert that trains."""
        expert = learner.live[LOWER]
        dropout = self.method.below.lora.dropout
        voice = Voice(expert, all_slots(expert), key, dropout=dropout)
        return self.inner.loss(model, learner, batch, key, (voice,))

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """What the mixture does; then the lower expert is planted and the fusion made anew."""
        done = self.inner.finish(model, learner, lesson, result, key)
        expert = learner.live[LOWER]
        bank = surgery.plant(done.past[LOWER], slot_of(lesson), expert, lesson)
        return self.method.with_lower(done, bank)
