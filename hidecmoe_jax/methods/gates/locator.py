"""How a method finds the task of an input: which locator, hard or soft, and when it says that it knows none.

Locators look at a state of the frozen base (or at CLIP's features, for anchors); this part hands them what they need,
keeps a few of every task's records apart to learn what scores its own inputs get, and turns scores into weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.locators.anchors import ClipAnchors
from hidecmoe_jax.locators.gaussian import ClassGaussian, NearestMean, SharedGaussian
from hidecmoe_jax.locators.neighbours import Neighbours
from hidecmoe_jax.locators.vae import Vae
from hidecmoe_jax.methods.base import Decision, FrozenFeatures
from hidecmoe_jax.methods.gates.anchors import clip_widths, stored
from hidecmoe_jax.methods.gates.unknown import blank_thresholds, fit_apart, limits_of, match_of
from hidecmoe_jax.models.llava import Model, Reading

FIXED = ("mean_D", "std_D")  # a locator's standardisation: taken from the first task, the same for all


Locator = Vae | NearestMean | SharedGaussian | ClassGaussian | Neighbours | ClipAnchors


@dataclass(frozen=True)
class LocatorGate:
    """A locator and what is made of its scores.

    Attributes:
      by: the locator.
      state: what it reads of the frozen base (anchors read CLIP instead).
      soft: weigh all tasks by a softmax of their scores over `temperature`, instead of choosing one (CMoE-D26).
      foreign: part of a task's own inputs that may be taken for unknown; None never calls anything unknown.
      kept_apart: part of a task's records that the locator does not learn from and the threshold is read from.
      tie: two tasks are nearly tied where the best score is less than this above the second; None never looks.
      tied: who then answers: a `blend` of the tasks as with `soft`, the `best` all the same, or the `base` alone.
    """

    kind: ClassVar[str] = "locator"
    by: Locator = Vae()
    state: Reading = Reading()
    soft: bool = False
    temperature: float = 1.0
    foreign: float | None = None
    kept_apart: float = 0.1
    tie: float | None = None
    tied: Literal["blend", "best", "base"] = "blend"

    def __post_init__(self):
        if self.temperature <= 0 or not 0 <= self.kept_apart < 1:
            raise ValueError("temperature must be above 0 and kept_apart in [0, 1)")
        if self.foreign is not None and (not 0 <= self.foreign < 1 or self.kept_apart == 0):
            raise ValueError("foreign must be in [0, 1) and needs kept_apart above 0")
        if self.tie is not None and not self.tie > 0:
            raise ValueError(f"tie {self.tie} must be above 0, or None")

    @property
    def mixes_tasks(self) -> bool:
        """Whether several tasks may be heard at once."""
        return self.soft or (self.tie is not None and self.tied == "blend")

    @property
    def reads(self) -> Reading | None:
        """The state of the base that is looked at; anchors look at CLIP."""
        return None if self.by.kind == ClipAnchors.kind else self.state

    @property
    def stores(self) -> str:
        """What is stored of every task: an autoencoder (`vae`) or `prototypes`; exports name a file by it."""
        return "vae" if self.by.kind == Vae.kind else "prototypes"

    @property
    def unknown_settings(self) -> dict[str, float | None]:
        """Settings of unknown-input detection, for exports."""
        return {"foreign": self.foreign, "kept_apart": self.kept_apart}

    def _shown(self, seen: FrozenFeatures) -> Any:
        return seen.pooled if self.reads is None else seen.state_BD

    def _width(self, model: Model) -> Any:
        return clip_widths(model) if self.reads is None else model.config.width

    def blank(self, capacity: int, model: Model) -> dict[str, Array]:
        """What is known of no task."""
        room = self.by.blank(capacity, self._width(model))
        # One-sided thresholds only where something is refused: archives of other runs keep their bytes.
        return room | blank_thresholds(capacity, sides=self.foreign is not None)

    def fit(self, memory: dict[str, Array], task: int, seen: FrozenFeatures, *, key: Array) -> dict[str, Array]:
        """Learns a task from what was seen of its records, and the score below which an input is foreign to it."""
        return fit_apart(
            self.by, memory, task, self._shown(seen),
            pooled=seen.pooled, foreign=self.foreign, share=self.kept_apart, key=key,
        )  # fmt: skip

    def scores(self, memory: dict[str, Array], seen: FrozenFeatures, learned_N: Array) -> Array:
        """How near every task is, float32 [B, N]; -inf for tasks that are not learned."""
        return self.by.scores(memory, self._shown(seen), learned_N)

    def _typical(self, memory: dict[str, Array], seen: FrozenFeatures, score_BN: Array) -> Array:
        """How near every task would be if nothing else were learned, float32 [B, N]: what thresholds are read from.

        A covariance in common tells tasks apart, but is too wide or too narrow for each of them; by its own one, what
        is like none of them is found far better (docs/unknown.md).
        """
        if not isinstance(self.by, SharedGaussian):
            return score_BN
        tasks = jnp.arange(score_BN.shape[-1])
        return jax.lax.map(lambda task: self.scores(memory, seen, tasks == task)[:, task], tasks).T

    def decide(self, memory: dict[str, Array], seen: FrozenFeatures, learned_N: Array) -> Decision:
        """One-hot on the nearest task, or soft weights; all zero where the nearest is too far to be believed."""
        score_BN = self.scores(memory, seen, learned_N)
        limits = None
        typical = None
        if self.foreign is not None:
            limits = limits_of(memory, seen.pooled)
            typical = self._typical(memory, seen, score_BN)
        tie = self.tie or 0.0
        sure = match_of(score_BN, learned_N, typical_BN=typical, limits=limits, unknown_share=self.foreign, tie=tie)
        hard = jax.nn.one_hot(jnp.argmax(score_BN, axis=-1), score_BN.shape[-1])
        weight = soft = jax.nn.softmax(jnp.where(learned_N[None], score_BN / self.temperature, -jnp.inf), axis=-1)
        if not self.soft:
            weight = hard
        if self.tie is not None:
            instead = {"blend": soft, "best": hard, "base": jnp.zeros_like(hard)}[self.tied]
            weight = jnp.where(sure.is_tied_B[:, None], instead, weight)
        weight = jnp.where(jnp.any(learned_N) & ~sure.is_unknown_B[:, None], weight, 0.0)
        return Decision(weight, jnp.where(learned_N[None], score_BN, 0.0), sure)

    def to_archive(self, memory: dict[str, Array], task: int) -> dict[str, Array]:
        """What is known of one task, with the standardisation that all tasks share."""
        return {name: leaf if name in FIXED else leaf[task] for name, leaf in memory.items()}

    def from_archive(self, memory: dict[str, Array], task: int, kept: dict[str, Array]) -> dict[str, Array]:
        """The inverse of `to_archive`."""
        return {
            name: jnp.asarray(kept[name]) if name in FIXED else leaf.at[task].set(stored(kept, name))
            for name, leaf in memory.items()
        }

    def size(self, model: Model) -> int:
        """Numbers stored per task."""
        return self.by.size(self._width(model))
