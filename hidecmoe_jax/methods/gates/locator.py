"""Gate by a locator: scores of the tasks, turned into hard or soft weights, and unknown-input detection.

A locator scores a state of the frozen base (or CLIP's features, for anchors). The gate selects those features, holds
out a share of every task's records to calibrate its thresholds, and turns scores into weights.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core import plugins
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.core.strict import YOUNGER
from hidecmoe_jax.data.rewording import FitWording
from hidecmoe_jax.locators.anchors import ClipAnchors
from hidecmoe_jax.locators.gaussian import ClassGaussian, NearestMean, SharedGaussian
from hidecmoe_jax.locators.joined import JoinedGaussians
from hidecmoe_jax.locators.neighbours import Neighbours
from hidecmoe_jax.locators.standard import set_rows
from hidecmoe_jax.locators.vae import Vae
from hidecmoe_jax.methods.base import Decision, FrozenFeatures, Match
from hidecmoe_jax.methods.gates.anchors import clip_widths, stored
from hidecmoe_jax.methods.gates.unknown import (
    CALIBRATED,
    EDITED,
    blank_thresholds,
    fit_apart,
    fit_by_folds,
    held_out_of,
    limits_of,
    match_of,
    placed_tasks,
    refusing_retired,
)
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.models.reading import Reading

Locator = Vae | NearestMean | SharedGaussian | ClassGaussian | Neighbours | ClipAnchors | JoinedGaussians


@dataclass(frozen=True)
class LocatorGate:
    """A locator and the rule that turns its scores into weights.

    Attributes:
      by: the locator, of this package or an entry point `hidecmoe_jax.locators` of an installed one.
      state: the state of the frozen base that it scores (anchors score CLIP's features instead).
      soft: weigh all tasks by a softmax of their scores over `temperature`, instead of choosing one (CMoE-D26).
      foreign: part of a task's own inputs that may be taken for unknown; None calls nothing unknown.
      kept_apart: share of a task's records that is held out, to calibrate its threshold.
      tie: two tasks are nearly tied where the best score is less than this above the second; None for no ties.
      tied: the answer to a tied input: by a `blend` of the tasks as with `soft`, by the `best` one, or by the `base`.
      folds: calibrate thresholds by held-out scores of all records, in so many folds; 0 holds out `kept_apart` instead.
      wording: of the training prompts that it is fitted to (`data/rewording.py`).
    """

    kind: ClassVar[str] = "locator"
    by: Annotated[Locator, plugins.LOCATORS] = Vae()
    state: Reading = Reading()
    soft: bool = False
    temperature: float = 1.0
    foreign: float | None = None
    kept_apart: float = 0.1
    tie: float | None = None
    tied: Literal["blend", "best", "base"] = "blend"
    folds: int = field(default=0, metadata=YOUNGER)
    wording: FitWording = field(default="as_given", metadata=YOUNGER)

    def __post_init__(self):
        if self.temperature <= 0 or not 0 <= self.kept_apart < 1:
            raise ValueError("temperature must be above 0 and kept_apart in [0, 1)")
        if self.foreign is not None and (not 0 <= self.foreign < 1 or self.kept_apart == 0):
            raise ValueError("foreign must be in [0, 1) and needs kept_apart above 0")
        if self.tie is not None and not self.tie > 0:
            raise ValueError(f"tie {self.tie} must be above 0, or null")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds {self.folds} must be at least 2, or 0 for none")
        if self.by.kind == JoinedGaussians.kind and (self.state.over != "parts" or not self.folds):
            raise ValueError("joined_gaussians scores parts of a prompt: set state.over to parts, and folds to 5")

    @property
    def mixes_tasks(self) -> bool:
        """Whether one sample may get weights of several tasks."""
        return self.soft or (self.tie is not None and self.tied == "blend")

    @property
    def reads(self) -> Reading | None:
        """The state of the base that is scored; None for anchors, which score CLIP's features."""
        if self.by.kind == ClipAnchors.kind:
            return None
        return self.state

    @property
    def stores(self) -> str:
        """What is stored of every task: an autoencoder (`vae`) or `prototypes`; exports name a file by it."""
        return "vae" if self.by.kind == Vae.kind else "prototypes"

    @property
    def unknown_settings(self) -> dict[str, float | None]:
        """Settings of unknown-input detection, for exports."""
        return {"foreign": self.foreign, "kept_apart": self.kept_apart}

    def held_out(self, records: int) -> int:
        """How many of a task's records set its threshold."""
        return records if self.folds else held_out_of(records, self.kept_apart)

    def _scored(self, features: FrozenFeatures) -> Any:
        """What the locator scores: the state of the base, or CLIP's features."""
        if self.reads is None:
            return features.pooled
        return features.state_BD

    def _width(self, model: Model) -> Any:
        """Width of what the locator scores; of CLIP's features the two widths."""
        if self.reads is None:
            return clip_widths(model)
        return self.state.width(model.config.width)

    def blank(self, capacity: int, model: Model) -> dict[str, Array]:
        """Memory with room for `capacity` tasks.

        Raises:
          ConfigError: the decoder has fewer layers than `state.layer`, or the base lacks what anchors score.
        """
        layers = model.config.layers
        if self.state.depth(layers) > layers:
            raise ConfigError(
                "cannot read this layer", where="method.gate.state.layer",
                why=f"{self.state.layer} of a decoder with {layers} layers",
                remedy=f"choose from 0..{layers}, or -1 for all of them and the final norm",
            )  # fmt: skip
        width = self._width(model)
        room = self.by.blank(capacity, width)
        # One-sided thresholds only where something is refused: archives of other runs keep their bytes.
        has_sides = self.foreign is not None
        return room | blank_thresholds(capacity, sides=has_sides)

    def require(self, count: int) -> None:
        """Refuses a task that leaves the locator less than it can be fitted on.

        Raises:
          DataError: names the number of records, what is held out of them, and the least number.
        """
        fewest = self.by.fewest

        def fitted_on(records: int) -> int:
            return records if self.folds else records - held_out_of(records, self.kept_apart)

        if fitted_on(count) >= fewest:
            return
        needed = next(records for records in itertools.count(count) if fitted_on(records) >= fewest)
        raise DataError(
            "too few records for the locator",
            why=f"{count} training records, of which {fitted_on(count)} are fitted on (kept_apart {self.kept_apart}); "
            f"a locator '{self.by.kind}' takes at least {fewest}, so at least {needed} records are needed",
            remedy="add records to the task, or choose a locator in the gate's `by` that takes fewer, such as "
            "nearest_mean",
        )

    def fit(self, memory: dict[str, Array], task: int, features: FrozenFeatures, *, key: Array) -> dict[str, Array]:
        """Fits the locator to a task, and the score below which an input is unknown to the task."""
        scored = self._scored(features)
        if self.folds:
            return fit_by_folds(
                self.by, memory, task, scored,
                pooled=features.pooled, foreign=self.foreign, folds=self.folds, key=key,
            )  # fmt: skip
        return fit_apart(
            self.by, memory, task, scored,
            pooled=features.pooled, foreign=self.foreign, share=self.kept_apart, key=key,
        )  # fmt: skip

    def scores(self, memory: dict[str, Array], features: FrozenFeatures, learned_N: Array) -> Array:
        """The locator's scores, float32 [B, N]; -inf for tasks that are not learned."""
        scored = self._scored(features)
        return self.by.scores(memory, scored, learned_N)

    def decide(self, memory: dict[str, Array], features: FrozenFeatures, learned_N: Array) -> Decision:
        """One-hot on the nearest task, or soft weights; all zero for an unknown input."""
        placed_N = placed_tasks(memory, learned_N)
        score_BN = self.scores(memory, features, placed_N)
        limits = None
        typical_BN = None
        if self.foreign is not None or CALIBRATED in memory:
            limits = limits_of(memory, features.pooled)
            scored = self._scored(features)
            typical_BN = self.by.typical_scores(memory, scored, score_BN)
        match = match_of(
            score_BN, placed_N, typical_BN=typical_BN, limits=limits, unknown_share=self.foreign, tie=self.tie or 0.0
        )
        match = refusing_retired(memory, match)
        weight_BN = self._weights(score_BN, learned_N, match)
        # Before the first task the softmax is over nothing (NaN): no weight may come from it.
        is_known_B1 = jnp.any(learned_N) & ~match.is_unknown_B[:, None]
        weight_BN = jnp.where(is_known_B1, weight_BN, 0.0)
        # Scores are reported: 0 in place of -inf for tasks that are not learned.
        finite_BN = jnp.where(placed_N[None], score_BN, 0.0)
        return Decision(weight_BN, finite_BN, match)

    def _weights(self, score_BN: Array, learned_N: Array, match: Match) -> Array:
        """Weights of the tasks as if every input were known, float32 [B, N]."""
        nearest_B = jnp.argmax(score_BN, axis=-1)
        hard_BN = jax.nn.one_hot(nearest_B, score_BN.shape[-1])
        logit_BN = score_BN / self.temperature
        masked_BN = jnp.where(learned_N[None], logit_BN, -jnp.inf)
        soft_BN = jax.nn.softmax(masked_BN, axis=-1)
        weight_BN = soft_BN if self.soft else hard_BN
        if self.tie is None:
            return weight_BN
        none_BN = jnp.zeros_like(hard_BN)
        by_answer = {"blend": soft_BN, "best": hard_BN, "base": none_BN}
        tied_BN = by_answer[self.tied]
        is_tied_B1 = match.is_tied_B[:, None]
        return jnp.where(is_tied_B1, tied_BN, weight_BN)

    def to_archive(self, memory: dict[str, Array], task: int) -> dict[str, Array]:
        """Rows of one task, with the standardisation that all tasks share."""
        archive = {}
        for name, leaf in memory.items():
            if name in EDITED:
                continue
            is_shared = name in self.by.shared_leaves
            archive[name] = leaf if is_shared else leaf[task]
        return archive

    def from_archive(self, memory: dict[str, Array], task: int, archive: dict[str, Array]) -> dict[str, Array]:
        """The inverse of `to_archive`."""
        shared = {}
        rows = {}
        for name in memory:
            if name in self.by.shared_leaves:
                shared[name] = jnp.asarray(archive[name])
            else:
                rows[name] = stored(archive, name)
        return set_rows(memory, task, rows) | shared

    def size(self, model: Model) -> int:
        """Numbers stored per task."""
        width = self._width(model)
        return self.by.size(width)

    def flops(self, stored: int, *, model: Model, tasks: int) -> int:
        """Operations of deciding one query among `tasks`, for which `stored` numbers are stored."""
        width = model.config.width if self.reads is None else self.state.width(model.config.width)
        return self.by.flops(stored, width=width, tasks=tasks)
