"""Gate by a locator: scores of the tasks, turned into hard or soft weights, and unknown-input detection.

A locator scores a state of the frozen base (or CLIP's features, for anchors). The gate selects those features, holds
out a share of every task's records to calibrate its thresholds, and turns scores into weights.
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

Locator = Vae | NearestMean | SharedGaussian | ClassGaussian | Neighbours | ClipAnchors


@dataclass(frozen=True)
class LocatorGate:
    """A locator and the rule that turns its scores into weights.

    Attributes:
      by: the locator.
      state: the state of the frozen base that it scores (anchors score CLIP's features instead).
      soft: weigh all tasks by a softmax of their scores over `temperature`, instead of choosing one (CMoE-D26).
      foreign: part of a task's own inputs that may be taken for unknown; None calls nothing unknown.
      kept_apart: share of a task's records that is held out, to calibrate its threshold.
      tie: two tasks are nearly tied where the best score is less than this above the second; None for no ties.
      tied: the answer to a tied input: by a `blend` of the tasks as with `soft`, by the `best` one, or by the `base`.
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
        """Whether one sample may get weights of several tasks."""
        return self.soft or (self.tie is not None and self.tied == "blend")

    @property
    def reads(self) -> Reading | None:
        """The state of the base that is scored; None for anchors, which score CLIP's features."""
        return None if self.by.kind == ClipAnchors.kind else self.state

    @property
    def stores(self) -> str:
        """What is stored of every task: an autoencoder (`vae`) or `prototypes`; exports name a file by it."""
        return "vae" if self.by.kind == Vae.kind else "prototypes"

    @property
    def unknown_settings(self) -> dict[str, float | None]:
        """Settings of unknown-input detection, for exports."""
        return {"foreign": self.foreign, "kept_apart": self.kept_apart}

    def _scored(self, features: FrozenFeatures) -> Any:
        return features.pooled if self.reads is None else features.state_BD

    def _width(self, model: Model) -> Any:
        return clip_widths(model) if self.reads is None else model.config.width

    def blank(self, capacity: int, model: Model) -> dict[str, Array]:
        """Memory with room for `capacity` tasks."""
        room = self.by.blank(capacity, self._width(model))
        # One-sided thresholds only where something is refused: archives of other runs keep their bytes.
        return room | blank_thresholds(capacity, sides=self.foreign is not None)

    def fit(self, memory: dict[str, Array], task: int, features: FrozenFeatures, *, key: Array) -> dict[str, Array]:
        """Fits the locator to a task, and the score below which an input is unknown to the task."""
        return fit_apart(
            self.by, memory, task, self._scored(features),
            pooled=features.pooled, foreign=self.foreign, share=self.kept_apart, key=key,
        )  # fmt: skip

    def scores(self, memory: dict[str, Array], features: FrozenFeatures, learned_N: Array) -> Array:
        """The locator's scores, float32 [B, N]; -inf for tasks that are not learned."""
        return self.by.scores(memory, self._scored(features), learned_N)

    def decide(self, memory: dict[str, Array], features: FrozenFeatures, learned_N: Array) -> Decision:
        """One-hot on the nearest task, or soft weights; all zero for an unknown input."""
        score_BN = self.scores(memory, features, learned_N)
        limits = None
        typical_BN = None
        if self.foreign is not None:
            limits = limits_of(memory, features.pooled)
            typical_BN = self.by.typical_scores(memory, self._scored(features), score_BN)
        match = match_of(
            score_BN, learned_N, typical_BN=typical_BN, limits=limits, unknown_share=self.foreign, tie=self.tie or 0.0
        )
        hard_BN = jax.nn.one_hot(jnp.argmax(score_BN, axis=-1), score_BN.shape[-1])
        soft_BN = jax.nn.softmax(jnp.where(learned_N[None], score_BN / self.temperature, -jnp.inf), axis=-1)
        weight_BN = soft_BN if self.soft else hard_BN
        if self.tie is not None:
            by_answer = {"blend": soft_BN, "best": hard_BN, "base": jnp.zeros_like(hard_BN)}
            weight_BN = jnp.where(match.is_tied_B[:, None], by_answer[self.tied], weight_BN)
        # Before the first task the softmax is over nothing (NaN): no weight may come from it.
        is_known_B1 = jnp.any(learned_N) & ~match.is_unknown_B[:, None]
        weight_BN = jnp.where(is_known_B1, weight_BN, 0.0)
        # Scores are reported: 0 in place of -inf for tasks that are not learned.
        finite_BN = jnp.where(learned_N[None], score_BN, 0.0)
        return Decision(weight_BN, finite_BN, match)

    def to_archive(self, memory: dict[str, Array], task: int) -> dict[str, Array]:
        """Rows of one task, with the standardisation that all tasks share."""
        archive = {}
        for name, leaf in memory.items():
            archive[name] = leaf if name in self.by.shared_leaves else leaf[task]
        return archive

    def from_archive(self, memory: dict[str, Array], task: int, archive: dict[str, Array]) -> dict[str, Array]:
        """The inverse of `to_archive`."""
        restored = {}
        for name, leaf in memory.items():
            if name in self.by.shared_leaves:
                restored[name] = jnp.asarray(archive[name])
            else:
                restored[name] = leaf.at[task].set(stored(archive, name))
        return restored

    def size(self, model: Model) -> int:
        """Numbers stored per task."""
        return self.by.size(self._width(model))

    def flops(self, stored: int, *, model: Model, tasks: int) -> int:
        """Operations of deciding one query among `tasks`, for which `stored` numbers are stored."""
        return self.by.flops(stored, width=model.config.width, tasks=tasks)
