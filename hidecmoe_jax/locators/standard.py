"""The feature space that locators share, and how they write and present.

A locator looks at one float32 feature vector per sample and scores every learned task; the best score names the task.
Features are standardised with the mean and standard deviation per dimension of the first task that was fitted, for
ever: statistics per task would give each of them its own metric, and common ones would have to be recomputed from data
that is gone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core.errors import DataError, NumericsError

EXACT = jax.lax.Precision.HIGHEST
# What a sample scores with a learned task if its feature or the task's memory is not finite: below everything real, but
# not -inf, so that the largest score still belongs to a learned task.
LOWEST = float(jnp.finfo(jnp.float32).min)
# A dimension that hardly moved within the first task would turn rounding noise into large numbers.
NARROWEST = 1e-3
SMALLEST_STD = 1e-6


def standard_room(width: int) -> dict[str, Array]:
    """The part of a memory that holds the fixed standardisation; `std_D` is 0 until a task has been fitted."""
    return {"mean_D": jnp.zeros(width), "std_D": jnp.zeros(width)}


def checked(features_ND, memory: dict[str, Array], task: int, *, capacity: int, least: int = 1) -> np.ndarray:
    """The features a task is fitted with, as float32 on the host.

    Raises:
      DataError: `task` is outside the memory, the features are not a matrix of its width, or fewer than `least`.
      NumericsError: a feature is NaN or infinite.
    """
    features = np.asarray(features_ND, np.float32)
    width = memory["mean_D"].shape[0]
    where = f"task {task}"
    if not 0 <= task < capacity:
        why = f"the locator has room for tasks 0 to {capacity - 1}"
        raise DataError("no room for this task", where=where, why=why, remedy="make a blank memory of more capacity")
    if features.ndim != 2 or features.shape[1] != width:
        why = f"got shape {features.shape}, expected [N, {width}]"
        raise DataError(
            "features of the wrong shape", where=where, why=why, remedy="use the features of one base model"
        )
    if len(features) < least:
        why = f"{len(features)} samples, at least {least} are needed"
        raise DataError("too few samples for a locator", where=where, why=why, remedy="add samples to the task")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        why = f"{np.sum(~finite)} of {len(features)} samples, the first is number {np.argmin(finite)}"
        raise NumericsError(
            "features are not finite", where=where, why=why, remedy="check that sample and the base model"
        )
    return features


def with_standard(memory: dict[str, Array], features_ND: np.ndarray) -> dict[str, Array]:
    """The memory with the fixed standardisation (LLaVA-CMoE decision D22): taken from these features if there is none.

    Standard deviations are raised to `NARROWEST` times their median, so that a constant dimension stays harmless.
    """
    if np.any(memory["std_D"]):
        return memory
    mean = np.mean(features_ND, axis=0, dtype=np.float64).astype(np.float32)
    std = np.sqrt(np.mean(np.square(features_ND - mean), axis=0, dtype=np.float64))
    std = np.maximum(std, max(NARROWEST * float(np.median(std)), SMALLEST_STD))
    return memory | {"mean_D": jnp.asarray(mean), "std_D": jnp.asarray(std, jnp.float32)}


def standardised(memory: dict[str, Array], features_BD: Array, clip: float) -> Array:
    """`(features - mean) / std`, clipped to +-`clip`, float32 [B, D]; what is not finite becomes NaN.

    Raises:
      DataError: the features do not have the memory's width.
    """
    features = jnp.asarray(features_BD).astype(jnp.float32)
    if features.ndim != 2 or features.shape[1:] != memory["mean_D"].shape:
        why = f"got shape {features.shape}, expected [B, {memory['mean_D'].shape[0]}]"
        raise DataError("features of the wrong shape", why=why, remedy="use the features the locator was fitted with")
    std = jnp.where(memory["std_D"] > 0, memory["std_D"], 1.0)
    # Clipping alone would make an infinite feature look like an ordinary large one.
    finite = jnp.where(jnp.isfinite(features), features, jnp.nan)
    return jnp.clip((finite - memory["mean_D"]) / std, -clip, clip)


def presented(scores_BN: Array, learned_N: Array) -> Array:
    """Scores as a locator returns them: -inf for tasks not learned, `LOWEST` where they are not finite."""
    finite = jnp.where(jnp.isfinite(scores_BN), scores_BN, LOWEST)
    return jnp.where(learned_N[None], finite, -jnp.inf)


def written(memory: dict[str, Array], task: int, row: dict[str, Array]) -> dict[str, Array]:
    """The memory with row `task` of the named arrays replaced.

    Raises:
      NumericsError: a value of the row is NaN or infinite.
    """
    for name, value in row.items():
        if not bool(jnp.all(jnp.isfinite(value))):
            why = f"{name} holds values that are not finite"
            remedy = "look at the features' range, or raise the locator's shrinkage or lower its rate"
            raise NumericsError("the locator could not be fitted", where=f"task {task}", why=why, remedy=remedy)
    return memory | {name: memory[name].at[task].set(value) for name, value in row.items()}
