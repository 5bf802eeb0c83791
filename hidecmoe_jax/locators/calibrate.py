"""Calibration of a locator's scores: thresholds of unknown inputs, AUROC, and the confusion of tasks.

A locator always has a nearest task, also for an input that belongs to none. The threshold below which an input is
unknown is a quantile of the scores of held-out samples of the task: it rejects a chosen fraction of those.
LLaVA-CMoE (arXiv 2503.21227) has no such rule; its reviewers asked for one. Scores are higher for nearer tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import betaincinv

from hidecmoe_jax.core.errors import DataError, NumericsError
from hidecmoe_jax.locators.standard import LOWEST

# 0.29 * 100 is 28.999999999999996 in floating point; the intended count is 29.
ROUNDING = 1e-9


def _score_vector(values, name: str) -> np.ndarray:
    """A non-empty vector of scores without NaN, float64."""
    scores = np.asarray(values, np.float64)
    shape = scores.shape
    if len(shape) != 1 or not len(scores):
        why = f"got shape {shape}, expected [M] with M >= 1"
        raise DataError(f"{name} scores of the wrong shape", why=why, remedy="pass one best score for every sample")
    is_nan = np.isnan(scores)
    if is_nan.any():
        not_numbers = np.sum(is_nan)
        why = f"{not_numbers} of {len(scores)} are NaN"
        raise NumericsError(f"{name} scores are not numbers", why=why, remedy="check the features they come from")
    return scores


def threshold(held_out_M, false_alarm: float) -> float:
    """The score below which an input is unknown: a fraction `false_alarm` of a task's held-out samples lies below it.

    Args:
      held_out_M: for every held-out sample of the task, its best score over the learned tasks.
      false_alarm: fraction of them in [0, 1) that may be called unknown. `floor(false_alarm * M)` lie strictly below
        the threshold, fewer if scores are tied; with 0 it is the lowest score.

    Raises:
      DataError, NumericsError: not a vector of numbers.
    """
    if not 0 <= false_alarm < 1:
        raise ValueError(f"false_alarm {false_alarm} must be in [0, 1)")
    scores = _score_vector(held_out_M, "held-out")
    ascending = np.sort(scores)
    rejected = false_alarm * len(ascending)
    below = int(rejected + ROUNDING)
    return float(ascending[below])


def unknown(scores_BN: Array, thresholds: Array | float) -> Array:
    """Whether each sample's best score lies below the threshold of the task it would go to, bool [B].

    Args:
      thresholds: one number, one for every task [N], or one for every sample and task [B, N]; with NaN (a task without
        threshold) all inputs of the task are unknown.

    A sample whose scores are not finite, or for which no task is learned, is always unknown.
    """
    chex.assert_rank(scores_BN, 2)
    best_B = jnp.max(scores_BN, axis=-1)
    limits = jnp.asarray(thresholds, jnp.float32)
    limits_BN = jnp.broadcast_to(limits, scores_BN.shape)
    nearest_B = jnp.argmax(scores_BN, axis=-1)
    nearest_B1 = nearest_B[..., None]
    limit_B1 = jnp.take_along_axis(limits_BN, nearest_B1, axis=-1)
    limit_B = limit_B1[..., 0]
    # Negated "known" instead of "below": a comparison with NaN is false, and must end as unknown.
    reaches_limit_B = best_B >= limit_B
    is_real_B = best_B > LOWEST
    is_known_B = reaches_limit_B & is_real_B
    return ~is_known_B


def auroc(known_M, unknown_M) -> float:
    """Probability that a known sample scores above an unknown one, ties counting half (area under the ROC curve).

    Raises:
      DataError, NumericsError: one of the two is not a vector of numbers; infinities are allowed.
    """
    known = _score_vector(known_M, "known")
    others = _score_vector(unknown_M, "unknown")
    others = np.sort(others)
    # Integers, so that the order of samples cannot change the result.
    below_M = np.searchsorted(others, known, side="left")
    below = below_M.sum(dtype=np.int64)
    up_to_M = np.searchsorted(others, known, side="right")
    up_to = up_to_M.sum(dtype=np.int64)
    pairs = len(known) * len(others)
    # Each pair in order counts 2, each tie 1.
    counted = float(below + up_to)
    return counted / (2 * pairs)


def confusion(choice_M, truth_M, tasks: int) -> np.ndarray:
    """How many samples of each task (row) went to each task (column), int64 [tasks, tasks].

    Raises:
      DataError: the two differ in length, or a number is no task; nothing is left out of the count.
    """
    choice = np.asarray(choice_M)
    truth = np.asarray(truth_M)
    if choice.shape != truth.shape or choice.ndim != 1:
        why = f"choices have shape {choice.shape}, true tasks {truth.shape}"
        raise DataError("choices and true tasks do not match", why=why, remedy="pass one of each for every sample")
    named = {"choice": choice, "true task": truth}
    for name, value in named.items():
        if not len(value):
            continue
        is_integer = value.dtype.kind in "iu"
        lowest = value.min()
        highest = value.max()
        in_range = lowest >= 0 and highest < tasks
        if not (is_integer and in_range):
            dtype = value.dtype
            last = tasks - 1
            why = f"values {lowest} to {highest} ({dtype}), expected integers in 0 to {last}"
            remedy = "count unknown inputs separately, they belong to no task"
            raise DataError(f"a {name} is no task", why=why, remedy=remedy)
    counts = np.zeros((tasks, tasks), np.int64)
    rows = truth.astype(np.int64)
    columns = choice.astype(np.int64)
    cells = (rows, columns)
    # Not `counts[cells] += 1`, which counts a repeated cell once.
    np.add.at(counts, cells, 1)
    return counts


@dataclass(frozen=True)
class Carried:
    """What a threshold from a number of held-out records can promise.

    Attributes:
      records: number of them.
      promised: share of a task's own inputs that was asked to be lost.
      expected: share that the threshold loses on average over such samples of records.
      low, high: interval that holds the lost share with 90 %.
    """

    records: int
    promised: float
    expected: float
    low: float
    high: float

    @property
    def is_carried(self) -> bool:
        """Whether the records are enough for what was promised."""
        return self.records > 0 and self.expected <= 2 * self.promised

    def __str__(self) -> str:
        interval = f"90 % interval {_percent(self.low)} to {_percent(self.high)}"
        if not self.records:
            return "no held-out records, so every such input is unknown"
        if self.is_carried:
            return f"{self.records} records, loses {_percent(self.expected)} of its own ({interval})"
        needed = math.ceil(1 / self.promised) - 1 if self.promised else 0
        enough = f"; {needed} records would" if needed else ""
        return (
            f"{self.records} records cannot carry {_percent(self.promised)}: their lowest score loses "
            f"{_percent(self.expected)} on average ({interval}){enough}"
        )


def carried(records: int, false_alarm: float) -> Carried:
    """What `threshold` of so many records promises, whatever the distribution of the scores.

    The share of inputs below the k-th lowest of n scores is distributed as Beta(k, n - k + 1).
    """
    if records < 1:
        return Carried(0, false_alarm, 1.0, 0.0, 1.0)
    place = int(false_alarm * records + ROUNDING) + 1
    above = records - place + 1
    low = float(betaincinv(place, above, 0.05))
    high = float(betaincinv(place, above, 0.95))
    return Carried(records, false_alarm, place / (records + 1), low, high)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
