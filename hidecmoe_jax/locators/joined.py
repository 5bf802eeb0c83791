"""Task locator of several parts of a prompt, each scored by a locator of its own: picture, text, and words alone.

A question may be worded as no training question was, while its picture is an ordinary one of its task. A sum of
Gaussian log-densities would let the far part decide alone, for its squared distance grows without end. Every part is
therefore scored with a Student tail, `-D log(1 + d^2 / D)` in place of `-d^2 / 2`: it agrees with the Gaussian up to a
factor near the mean and grows with the logarithm far away, so that a part which finds an input far from every task
loses its weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.locators.gaussian import SharedGaussian
from hidecmoe_jax.locators.standard import checked_features, masked_scores
from hidecmoe_jax.models.reading import PARTS

# Parts by which an input is judged typical of its nearest task.
JUDGES = {"lower": ("image", "text"), "text": ("text",), "sum": PARTS}
# Arrays of a part that have no row for each task.
_SHARED = ("mean_D", "std_D")


def _shared_leaves() -> tuple[str, ...]:
    names = []
    for part in PARTS:
        for name in _SHARED:
            names.append(f"{part}_{name}")
    return tuple(names)


@dataclass(frozen=True)
class JoinedGaussians:
    """One Gaussian a task for each part of a prompt (`models.reading.PARTS`), and their scores added up.

    A part that an input lacks (its state is zero) adds nothing. Of a task whose records all lacked a part that an input
    has, the part counts like that of the farthest other task.

    Attributes:
      part: the locator of every part.
      tail: `student`, or `gaussian` for the plain sum of log-densities.
      judge: what says how typical an input is of a task: the `lower` of image and text, which lets other wordings pass;
        the `text` alone; or the `sum` of all parts, which detects other tasks best and refuses most other wordings.
    """

    part: SharedGaussian = SharedGaussian(directions=16)
    tail: Literal["student", "gaussian"] = "student"
    judge: Literal["lower", "text", "sum"] = "lower"
    kind: ClassVar[str] = "joined_gaussians"
    fewest: ClassVar[int] = 1
    shared_leaves: ClassVar[tuple[str, ...]] = _shared_leaves()

    def blank(self, capacity: int, width: int) -> dict[str, Array]:
        """Memory with room for `capacity` tasks: that of `part` for every part, names prefixed by it.

        Raises:
          ConfigError: the features have no parts.
        """
        part_width, rest = divmod(width, len(PARTS))
        if rest:
            raise ConfigError(
                "this locator scores parts of a prompt", where="method.gate.state.over",
                why=f"the features have {width} numbers, which are not {len(PARTS)} equal parts",
                remedy="set it to parts",
            )  # fmt: skip
        memory: dict[str, Array] = {}
        for name in PARTS:
            of_part = self.part.blank(capacity, part_width)
            memory |= _named(name, of_part)
        return memory

    def fit(self, memory: dict[str, Array], task: int, features_ND, *, key: Array) -> dict[str, Array]:
        """Writes row `task` from features [N, D]; nothing is random. Raises as `checked_features`, `with_row`."""
        first = _part_memory(memory, PARTS[0])
        width = len(PARTS) * first["mean_D"].shape[0]
        wide = {"mean_D": jnp.zeros(width)}
        features = checked_features(features_ND, wide, task, capacity=len(first["count_N"]))
        for name, rows_ND in zip(PARTS, np.split(features, len(PARTS), axis=1), strict=True):
            # Records that lack the part say nothing about it.
            present_MD = rows_ND[rows_ND.any(axis=1)]
            if len(present_MD):
                of_part = self.part.fit(_part_memory(memory, name), task, present_MD, key=key)
                memory = memory | _named(name, of_part)
        return memory

    def scores(self, memory: dict[str, Array], features_BD: Array, learned_N: Array) -> Array:
        """Sum of the parts' scores, float32 [B, capacity]; -inf where not `learned_N` (bool)."""
        total_BN = jnp.zeros((features_BD.shape[0], learned_N.shape[0]), jnp.float32)
        for name, part_BD in _split(features_BD):
            of_part = _part_memory(memory, name)
            has_N = learned_N & (of_part["count_N"] > 0)
            score_BN = self._tailed(self.part.scores(of_part, part_BD, has_N), part_BD)
            farthest_B1 = jnp.min(jnp.where(has_N, score_BN, jnp.inf), axis=1, keepdims=True)
            # Where no task has the part, it says nothing.
            farthest_B1 = jnp.where(jnp.any(has_N), farthest_B1, 0.0)
            score_BN = jnp.where(has_N, score_BN, farthest_B1)
            total_BN = total_BN + jnp.where(_is_present(part_BD), score_BN, 0.0)
        return masked_scores(total_BN, learned_N)

    def typical_scores(self, memory: dict[str, Array], features_BD: Array, scores_BN: Array) -> Array:
        """How typical an input is of every task, by the task's own covariances, float32 [B, N]."""
        judged = []
        for name, part_BD in _split(features_BD):
            if name not in JUDGES[self.judge]:
                continue
            of_part = _part_memory(memory, name)
            has_N = of_part["count_N"] > 0
            score_BN = self._tailed(self.part.typical_scores(of_part, part_BD, scores_BN), part_BD)
            # A part that the input or all records of the task lack does not judge.
            neutral = 0.0 if self.judge == "sum" else jnp.inf
            judged.append(jnp.where(_is_present(part_BD) & has_N, score_BN, neutral))
        if self.judge == "sum":
            return sum(judged[1:], start=judged[0])
        lowest_BN = jnp.min(jnp.stack(judged), axis=0)
        # An input without any part that could judge is typical of nothing.
        return jnp.where(jnp.isposinf(lowest_BN), scores_BN, lowest_BN)

    def _tailed(self, score_BN: Array, part_BD: Array) -> Array:
        """Log-densities `-d^2 / 2` with the tail of this locator."""
        if self.tail == "gaussian":
            return score_BN
        width = part_BD.shape[1]
        return -width * jnp.log1p(-2.0 * score_BN / width)

    def size(self, width: int) -> int:
        """Numbers stored per task."""
        return len(PARTS) * self.part.size(width // len(PARTS))

    def flops(self, stored: int, *, width: int, tasks: int) -> int:
        """Those of the parts; each factors a covariance of its own width."""
        parts = len(PARTS)
        return parts * self.part.flops(stored // parts, width=width // parts, tasks=tasks)


def _named(part: str, memory: dict[str, Array]) -> dict[str, Array]:
    """A part's memory under its names in the joined one."""
    return {f"{part}_{name}": leaf for name, leaf in memory.items()}


def _part_memory(memory: dict[str, Array], part: str) -> dict[str, Array]:
    """The memory of one part under the names of its locator."""
    prefix = f"{part}_"
    return {name.removeprefix(prefix): leaf for name, leaf in memory.items() if name.startswith(prefix)}


def _split(features_BD: Array) -> list[tuple[str, Array]]:
    """Names and features [B, D / 3] of the parts."""
    features_BD = jnp.asarray(features_BD)
    return list(zip(PARTS, jnp.split(features_BD, len(PARTS), axis=1), strict=True))


def _is_present(part_BD: Array) -> Array:
    """Whether a sample has the part, bool [B, 1]; a mean of real states is never zero in every dimension."""
    return jnp.any(part_BD != 0, axis=1, keepdims=True)
