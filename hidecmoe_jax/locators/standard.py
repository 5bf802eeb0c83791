"""Standardised features: the input space that locators share, and checks of what they store and return.

A locator takes one float32 feature vector per sample and scores every learned task; the best score names the task.
Features are standardised with the mean and standard deviation per dimension of the first fitted task, and those never
change: statistics per task would give each task its own metric, and common ones would have to be recomputed from data
that is no longer available.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core.errors import DataError, NumericsError

# Accelerators shorten float32 products by default; scores of near tasks differ by less than that loses.
EXACT = jax.lax.Precision.HIGHEST
# Score of a learned task where the sample's feature or the task's memory is not finite: below every real score, but not
# -inf, so that the largest score still belongs to a learned task.
LOWEST = float(jnp.finfo(jnp.float32).min)
# A dimension that is nearly constant within the first task would turn rounding noise into large numbers.
NARROWEST = 1e-3
SMALLEST_STD = 1e-6


class TaskLocator(Protocol):
    """What a gate calls on a locator. Every member is required; `Standardised` has four of them.

    Attributes:
      kind: name of the locator in configs.
      shared_leaves: arrays of the memory that belong to all tasks together; every other array has a row per task.
      fewest: samples that `fit` takes at least.
    """

    kind: ClassVar[str]
    shared_leaves: ClassVar[tuple[str, ...]]
    fewest: ClassVar[int]

    def blank(self, capacity: int, width: Any) -> dict[str, Array]:
        """Memory with room for `capacity` tasks; `width` is that of the features, for anchors a pair of widths."""

    def fit(self, memory: dict[str, Array], task: int, features: Any, *, key: Array) -> dict[str, Array]:
        """The memory with the task's row written from features [N, D]; no other row changes."""

    def scores(self, memory: dict[str, Array], features: Any, learned_N: Array) -> Array:
        """How well features [B, D] fit every task, float32 [B, N], higher is nearer; -inf for tasks not learned."""

    def typical_scores(self, memory: dict[str, Array], features: Any, scores_BN: Array) -> Array:
        """Scores that thresholds of unknown inputs are fitted on, float32 [B, N]."""

    def size(self, width: Any) -> int:
        """Parameters stored per task."""

    def flops(self, stored: int, *, width: int, tasks: int) -> int:
        """Operations of scoring one query against `tasks`, for which `stored` numbers are stored."""


class Standardised:
    """Defaults of a locator whose features are standardised; memory: {name: array}, one row per task where not shared.

    Attributes:
      shared_leaves: arrays of the memory that belong to all tasks together; every other array has a row per task.
      fewest: samples that `fit` takes at least.
    """

    shared_leaves: ClassVar[tuple[str, ...]] = ("mean_D", "std_D")
    fewest: ClassVar[int] = 1

    def typical_scores(self, memory: dict[str, Array], features_BD: Array, scores_BN: Array) -> Array:
        """Scores that thresholds of unknown inputs are fitted on, float32 [B, N]: the ordinary ones.

        Args:
          scores_BN: what `scores` returned for these features.
        """
        del memory, features_BD
        return scores_BN

    def flops(self, stored: int, *, width: int, tasks: int) -> int:
        """Operations of scoring one query against `tasks`: a multiply and an add for each of the `stored` numbers."""
        del width, tasks
        return 2 * stored


def blank_standard(width: int) -> dict[str, Array]:
    """The fixed standardisation of a new memory; `std_D` is 0 until a task has been fitted."""
    return {"mean_D": jnp.zeros(width), "std_D": jnp.zeros(width)}


def checked_features(features_ND, memory: dict[str, Array], task: int, *, capacity: int, least: int = 1) -> np.ndarray:
    """The features a task is fitted on, as float32 on the host.

    Raises:
      DataError: `task` is outside the memory, the features are not a matrix of its width, or fewer than `least`.
      NumericsError: a feature is NaN or infinite.
    """
    features = np.asarray(features_ND, np.float32)
    mean_D = memory["mean_D"]
    width = mean_D.shape[0]
    where = f"task {task}"
    if not 0 <= task < capacity:
        last = capacity - 1
        why = f"the locator has room for tasks 0 to {last}"
        raise DataError("no room for this task", where=where, why=why, remedy="make a blank memory of more capacity")
    shape = features.shape
    if len(shape) != 2 or shape[1] != width:
        why = f"got shape {shape}, expected [N, {width}]"
        raise DataError(
            "features of the wrong shape", where=where, why=why, remedy="use the features of one base model"
        )
    samples = len(features)
    if samples < least:
        why = f"{samples} samples, at least {least} are needed"
        raise DataError("too few samples for a locator", where=where, why=why, remedy="add samples to the task")
    is_finite_ND = np.isfinite(features)
    is_finite_N = is_finite_ND.all(axis=1)
    if not is_finite_N.all():
        # argmin of a bool vector is the place of its first False.
        first = np.argmin(is_finite_N)
        not_finite = np.sum(~is_finite_N)
        why = f"{not_finite} of {samples} samples, the first is number {first}"
        raise NumericsError(
            "features are not finite", where=where, why=why, remedy="check that sample and the base model"
        )
    return features


def with_standard(memory: dict[str, Array], features_ND: np.ndarray) -> dict[str, Array]:
    """The memory with the fixed standardisation (CMoE-D22), computed from these features if there is none yet.

    Standard deviations are at least `NARROWEST` times their median, so that a constant dimension stays harmless.
    """
    # Deviations of a fitted memory are never 0.
    if np.any(memory["std_D"]):
        return memory
    # Sums in float64: at 4096 dimensions and many samples float32 sums lose digits.
    mean_D = np.mean(features_ND, axis=0, dtype=np.float64).astype(np.float32)
    deviation_ND = features_ND - mean_D
    squared_ND = np.square(deviation_ND)
    variance_D = np.mean(squared_ND, axis=0, dtype=np.float64)
    std_D = np.sqrt(variance_D)
    typical = float(np.median(std_D))
    narrowest = NARROWEST * typical
    least = max(narrowest, SMALLEST_STD)
    std_D = np.maximum(std_D, least)
    fitted = dict(memory)
    fitted["mean_D"] = jnp.asarray(mean_D)
    fitted["std_D"] = jnp.asarray(std_D, jnp.float32)
    return fitted


def standardised(memory: dict[str, Array], features_BD: Array | np.ndarray, clip: float) -> Array:
    """`(features - mean) / std`, clipped to +-`clip`, float32 [B, D]; values that are not finite become NaN.

    Raises:
      DataError: the features do not have the memory's width.
    """
    mean_D = memory["mean_D"]
    std_D = memory["std_D"]
    features_BD = jnp.asarray(features_BD)
    features_BD = features_BD.astype(jnp.float32)
    shape = features_BD.shape
    if len(shape) != 2 or shape[1:] != mean_D.shape:
        width = mean_D.shape[0]
        why = f"got shape {shape}, expected [B, {width}]"
        raise DataError("features of the wrong shape", why=why, remedy="use the features the locator was fitted with")
    # A memory to which no task was fitted has deviations of 0.
    is_fitted_D = std_D > 0
    divisor_D = jnp.where(is_fitted_D, std_D, 1.0)
    # Clipping alone would turn an infinite feature into an ordinary large one.
    is_finite_BD = jnp.isfinite(features_BD)
    finite_BD = jnp.where(is_finite_BD, features_BD, jnp.nan)
    deviation_BD = finite_BD - mean_D
    scaled_BD = deviation_BD / divisor_D
    return jnp.clip(scaled_BD, -clip, clip)


def masked_scores(scores_BN: Array, learned_N: Array) -> Array:
    """Scores as a locator returns them: -inf for tasks not learned, `LOWEST` where they are not finite."""
    chex.assert_rank(scores_BN, 2)
    tasks = scores_BN.shape[1]
    chex.assert_shape(learned_N, (tasks,), custom_message="`learned` has one entry per row of the memory")
    chex.assert_type(learned_N, bool, custom_message="`learned` is a mask over tasks")
    is_finite_BN = jnp.isfinite(scores_BN)
    finite_BN = jnp.where(is_finite_BN, scores_BN, LOWEST)
    learned_1N = learned_N[None]
    return jnp.where(learned_1N, finite_BN, -jnp.inf)


def with_row(memory: dict[str, Array], task: int, row: dict[str, Array]) -> dict[str, Array]:
    """The memory with row `task` of the named arrays replaced.

    Raises:
      NumericsError: a value of the row is NaN or infinite.
    """
    for name, value in row.items():
        is_finite = jnp.isfinite(value)
        if not bool(jnp.all(is_finite)):
            why = f"{name} holds values that are not finite"
            remedy = "look at the features' range, or raise the locator's shrinkage or lower its rate"
            raise NumericsError("the locator could not be fitted", where=f"task {task}", why=why, remedy=remedy)
    return set_rows(memory, task, row)


def set_rows(memory: dict[str, Array], task: int, rows: dict[str, Array]) -> dict[str, Array]:
    """The memory with row `task` of the named arrays replaced; the values are not checked."""
    arrays = {name: memory[name] for name in rows}
    changed = _rows_set(arrays, task, rows)
    # A program returns dictionaries sorted; archives list a memory's arrays in the order of the memory.
    return memory | {name: changed[name] for name in rows}


# One program for all arrays: array by array, indexing costs more than the copying.
@jax.jit
def _rows_set(arrays: dict[str, Array], task: Array, rows: dict[str, Array]) -> dict[str, Array]:
    """The arrays with their row `task` replaced."""
    changed = {}
    for name, value in rows.items():
        row_of_task = arrays[name].at[task]
        changed[name] = row_of_task.set(value)
    return changed
