"""Token-routed mixtures that grow with the stream: LLaVA-CMoE (arXiv 2503.21227) and its relatives.

All tasks share one pool of experts beside the feed-forward block; every task has its own light token router, which
reaches the experts that existed when its task ended and never a later one. A task gets new experts only in layers where
a probe shows that they are needed (`growth: probe`), or in all of them (`uniform`). At inference a locator picks the
router, so with the right router an old task is answered by the very bytes it was answered by before: all forgetting is
the locator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.methods import edit_pool, mixture_archive, mixture_stages
from hidecmoe_jax.methods.base import (
    Archive,
    Decision,
    FrozenFeatures,
    Learner,
    Method,
    Serving,
    Traits,
    check_finite,
    no_parameters,
)
from hidecmoe_jax.methods.capabilities import ProbeResult
from hidecmoe_jax.methods.edit import Edit
from hidecmoe_jax.methods.gates.anchors import AnchorGate, NamedGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.gates.newest import NewestGate
from hidecmoe_jax.methods.growth import worth
from hidecmoe_jax.methods.growth.probe import Probe, tokens_per_slot
from hidecmoe_jax.methods.growth.summary import PoolSummary, active_slots, probe_frequencies
from hidecmoe_jax.methods.lora import PARALLEL, Lora
from hidecmoe_jax.methods.mixture_memory import MixtureMemory, ProbeState, Verdict
from hidecmoe_jax.methods.mixture_voices import serving_voices
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.models.voices import KINDS


@dataclass(frozen=True)
class Mixture(Method):
    """A growing mixture as a choice of parts.

    Attributes:
      lora: shape of one expert; its sites are the whole feed-forward block, its three linears, or any of the seven of a
        decoder layer. The token router decides for each part of the layer, from what that part reads.
      first, more: experts a layer gets for the first task, and for a later one where it is expanded (CMoE-D4, D16).
      top_k: experts a token is sent to (CMoE-D5).
      balance: weight of the load-balancing loss in the first task; later tasks train without it (CMoE-D7).
      growth: `probe` expands the layers in which a probe shows a need (`probe.rule`), `uniform` all.
      start: initial weights of a new expert: a copy of the most used old one (CMoE-D17), the trained probe, or a blank.
      gate: how an input finds its router.
      lowest: the lowest decoder layer that has experts.
      token_gate: `closed`, one softmax over old and new experts (published), or `open`, where a task's own experts are
        always on with weight 1 and old ones are behind its router with a null expert.
      null: logit of the null expert of an open gate: before any training `top_k` old experts share
        top_k / (top_k + e^null) of the softmax.
      columns: of a closed gate, what new experts' router columns begin as: the `mean` of the old ones (CMoE-D10), which
        gets fewer tokens the more experts there are, or `fair`, all columns drawn anew with one small spread.
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
    gate: LocatorGate | AnchorGate | NamedGate | NewestGate = LocatorGate()
    lowest: int = 0
    token_gate: Literal["closed", "open"] = field(default="closed", metadata=strict.YOUNGER)
    null: float = field(default=3.0, metadata=strict.YOUNGER)
    columns: Literal["mean", "fair"] = field(default="mean", metadata=strict.YOUNGER)

    def __post_init__(self):
        if min(self.first, self.more, self.top_k) < 1:
            raise ValueError("first, more and top_k must be at least 1")
        if self.lowest < 0:
            raise ValueError(f"lowest {self.lowest} must not be negative")
        counts = self.growth == "probe" and not self.probe.by_gain
        if counts and self.is_open:
            raise ValueError(
                "token_gate 'open' has the probe on for every token, so how often it is chosen shows nothing: set "
                "probe.rule to 'gain', or growth to 'uniform' and start to 'blank'"
            )
        if not -30 <= self.null <= 30:
            raise ValueError(f"null {self.null} must be in [-30, 30]: it is the logit of a softmax")
        if counts and self.first < self.top_k:
            raise ValueError(
                f"first {self.first} is below top_k {self.top_k}: every token would choose every probe, which shows "
                "nothing"
            )
        if self.growth == "uniform" and self.start != "blank":
            raise ValueError("uniform growth does not probe, so new experts start blank: set start to 'blank'")

    @property
    def traits(self) -> Traits:
        """What callers may rely on. A router never reaches a later expert, so with a hard gate answers are final."""
        mixes = self.gate.mixes_tasks
        return Traits(
            needs_task_name=self.gate.kind == "named",
            keeps_old_experts=True,
            mixes_tasks=mixes,
            answers_are_final=not mixes,
            reads=self.gate.reads,
        )

    @property
    def is_open(self) -> bool:
        """Whether a task's own experts are on for every token."""
        return self.token_gate == "open"

    @property
    def probes(self) -> bool:
        """Whether layers are expanded where a probe shows a need."""
        return self.growth == "probe"

    def slots(self, task: int) -> range:
        """Slots of a task's experts in every layer that has them."""
        if task == 0:
            return range(self.first)
        start = self.first + (task - 1) * self.more
        return range(start, start + self.more)

    def layers(self, model: Model) -> range:
        """The decoder layers that have experts."""
        return range(self.lowest, model.config.layers)

    def blank_bank(self, model: Model, slots: int) -> Bank:
        """A bank of `slots` EMPTY slots in the layers that have experts."""
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
        layers = len(self.layers(model))
        width = model.config.width
        probe_bank = self.blank_bank(model, 1)
        probe = ProbeState(probe_bank.factors, jnp.zeros((layers, width, slots + 1)))
        verdict = Verdict(
            expand=jnp.zeros((capacity, layers), bool),
            count=jnp.zeros((capacity, layers, slots + 1, KINDS), jnp.int32),
            mass=jnp.zeros((capacity, layers, slots + 1, KINDS)),
        )
        if self.probes and self.probe.by_gain:
            blank_NL = jnp.zeros((capacity, layers))
            verdict = verdict.replace(gain=blank_NL, control=blank_NL)
        memory = MixtureMemory(
            routers=jnp.zeros((capacity, layers, width, slots)),
            visible=jnp.zeros((capacity, layers, slots), bool),
            gate=self.gate.blank(capacity, model),
            probe=probe,
            verdict=verdict,
            always=jnp.zeros((capacity, layers, slots), bool) if self.is_open else None,
        )
        past = {POOL: self.blank_bank(model, slots)}
        return Learner({}, {}, past, {}, memory)

    def stages(self, lesson: int) -> tuple[Stage, ...]:
        """Probe, count, tune, fit the gate; the first task has nothing to compare a probe with."""
        return mixture_stages.stages_of(self, lesson)

    def to_archive(self, learner: Learner, lesson: int) -> Archive:
        """A task's experts, its router over the slots of its time, the gate's part of it, and the verdict."""
        return mixture_archive.to_archive(self, learner, lesson)

    def from_archive(self, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
        """The inverse of `to_archive`. Experts of a lesson that is None do not contribute, not under a later task's
        router either, which then shares a token among the experts that are left."""
        return mixture_archive.from_archive(self, model, capacity, archive)

    def learned(self, learner: Learner) -> tuple[int, ...]:
        """Numbers of the tasks whose router reaches an expert."""
        visible_NLS = np.asarray(learner.memory.visible)
        reaches_N = visible_NLS.any(axis=(1, 2))
        return tuple(np.flatnonzero(reaches_N).tolist())

    def summary(self, model: Model, learner: Learner) -> PoolSummary:
        """The pool as plain values, from which sizes and growth are reported."""
        verdict = learner.memory.verdict
        tasks = max(self.learned(learner), default=-1) + 1
        return PoolSummary(
            bank=learner.past[POOL],
            chosen_NLS=self._chosen(learner),
            count_NLSK=np.asarray(verdict.count, np.int64),
            mass_NLSK=np.asarray(verdict.mass, np.float64),
            gain_NL=_values(verdict.gain),
            control_NL=_values(verdict.control),
            counts_probes=not self.is_open,
            learned=self.learned(learner),
            slots=tuple(self.slots(task) for task in range(tasks)),
            lowest=self.lowest,
            top_k=self.top_k,
            probe=self.probe,
            copies=self.start == "copy",
            expert_size=self.lora.size(model),
            router_width=model.config.width,
            gate_size=self.gate.size(model),
        )

    def _chosen(self, learner: Learner) -> np.ndarray:
        """Slots that every task's router chooses from, bool [N, L, S]."""
        visible_NLS = np.asarray(learner.memory.visible)
        if learner.memory.always is None:
            return visible_NLS
        return visible_NLS & ~np.asarray(learner.memory.always)

    def growth_of(self, model: Model, learner: Learner) -> dict[str, Any]:
        """Where experts were added and why, as `PoolSummary.growth`."""
        return self.summary(model, learner).growth()

    def describe_experts(self) -> str:
        """Where the experts are and what is routed among them, for messages."""
        where = "beside the feed-forward block" if PARALLEL in self.lora.sites else "at linears"
        sites = ", ".join(self.lora.sites)
        which = "old experts" if self.is_open else "experts"
        return f"every token is routed among {which} {where} ({sites})"

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
    def probe_settings(self) -> Probe:
        """How probes are trained and judged."""
        return self.probe

    def with_probe(self, probe: Probe) -> Mixture:
        """The method with other probe settings."""
        return replace(self, probe=probe)

    def probe_result(self, learner: Learner, lesson: int) -> ProbeResult:
        """What a lesson's probes showed, and the layers that were expanded."""
        verdict = learner.memory.verdict
        owner_LS = np.asarray(learner.past[POOL].owner_LS)
        count_LSK = np.asarray(verdict.count[lesson])
        count_LS = tokens_per_slot(count_LSK, self.probe)
        active_LS = active_slots(owner_LS, self.slots(lesson).start)
        frequency_L, threshold_L = probe_frequencies(count_LS, active_LS, self.probe, self.top_k)
        expand_L = np.asarray(verdict.expand[lesson])
        if verdict.gain is None:
            return ProbeResult(expand_L, frequency_L, threshold_L)
        gain_L = np.asarray(verdict.gain[lesson], np.float64)
        control_L = worth.strictest(verdict.control[:lesson])
        return ProbeResult(expand_L, frequency_L, threshold_L, gain_L, control_L)

    def serve(self, model: Model, learner: Learner) -> Serving:
        """The pool as it is; nothing is folded, for every token may go elsewhere.

        Raises:
          NumericsError: as `check_finite`.
        """
        check_finite(learner.memory)
        return Serving(model, learner.past[POOL], None, learner.memory)

    def decide(self, serving: Serving, features: FrozenFeatures, named_B: Array | None) -> Decision:
        """One-hot on the task that is named or located (or soft weights); all zero for an input of no known task."""
        learned_N = jnp.any(serving.memory.visible, axis=(1, 2))
        if named_B is not None:
            chex.assert_rank(named_B, 1)
            weight_BN = jax.nn.one_hot(named_B, len(learned_N))
            return Decision(weight_BN, weight_BN)
        return self.gate.decide(serving.memory.gate, features, learned_N)

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """As `mixture_voices.serving_voices`."""
        return serving_voices(self, serving, decision)

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Parameters beyond the base that answering is expected to need after `tasks` tasks, by kind."""
        layers = len(self.layers(model))
        expanded_share = 1.0 if self.growth == "uniform" else self.probe.expects
        more_a_task = self.more * expanded_share
        # Slots that every task's router reaches: its own and those of the tasks before.
        visible = [layers * (self.first + more_a_task * task) for task in range(tasks)]
        owned = visible[-1] if visible else 0
        # What is on for every token of its task, no router has a column for there.
        columns = sum(visible) - owned if self.is_open else sum(visible)
        return no_parameters() | {
            "experts": round(self.lora.size(model) * owned),
            "routers": round(model.config.width * columns),
            "locator": tasks * self.gate.size(model),
        }

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """Parameters beyond the base by kind: `stored` to serve, `archived` in the ledger, `trained` for the largest
        task."""
        return self.summary(model, learner).sizes()


def _values(leaf: Array | None) -> np.ndarray | None:
    """As float64; None stays."""
    return None if leaf is None else np.asarray(leaf, np.float64)
