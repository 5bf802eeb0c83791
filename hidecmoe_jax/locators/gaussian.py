"""Gaussian task locators, the cheap baselines of LLaVA-CMoE's autoencoders.

A task's memory is statistics of its own samples alone, so learning a task never changes another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular

from hidecmoe_jax.locators.standard import (
    EXACT,
    Standardised,
    blank_standard,
    checked_features,
    masked_scores,
    standardised,
    with_row,
    with_standard,
)

# Variance added to every standardised dimension, so that samples which are all equal still have a density.
RIDGE = 1e-6


def _moments(rows_ND: Array) -> tuple[Array, Array]:
    """Mean [D] and scatter [D, D], the sum of outer products of the deviations from it."""
    mean_D = jnp.mean(rows_ND, axis=0)
    deviation_ND = rows_ND - mean_D
    scatter_DD = jnp.matmul(deviation_ND.T, deviation_ND, precision=EXACT)
    return mean_D, scatter_DD


def _widest(scatter_DD: Array, directions: int) -> tuple[Array, Array]:
    """F [K, D] and rest with `F' F + rest I` nearest to the scatter: widest directions, and the mean of the others."""
    eigenvalue_D, axes_DD = jnp.linalg.eigh(scatter_DD)  # ascending
    others = eigenvalue_D[:-directions]
    mean_of_others = jnp.mean(others)
    # Rounding can make the eigenvalues of a scatter slightly negative.
    rest = jnp.maximum(mean_of_others, 0.0)
    widest_K = eigenvalue_D[-directions:]
    excess_K = widest_K - rest
    excess_K = jnp.maximum(excess_K, 0.0)
    length_K = jnp.sqrt(excess_K)
    length_K1 = length_K[:, None]
    axes_DK = axes_DD[:, -directions:]
    factor_KD = length_K1 * axes_DK.T
    return factor_KD, rest


def _whitening(covariance_DD: Array, shrinkage: float) -> tuple[Array, Array]:
    """W with `|W x|^2 = x' C^-1 x`, and log det C, for `C = (1 - a) S + a (trace S / D) I + RIDGE I`."""
    width = covariance_DD.shape[0]
    trace = jnp.trace(covariance_DD)
    isotropic = shrinkage * trace / width + RIDGE
    identity = jnp.eye(width)
    scaled_DD = (1 - shrinkage) * covariance_DD
    isotropic_DD = isotropic * identity
    shrunk_DD = scaled_DD + isotropic_DD
    lower = jnp.linalg.cholesky(shrunk_DD)
    whitening = solve_triangular(lower, identity, lower=True)
    # The determinant of L L' is the squared product of L's diagonal.
    diagonal_D = jnp.diagonal(lower)
    log_diagonal_D = jnp.log(diagonal_D)
    log_determinant = 2 * jnp.sum(log_diagonal_D)
    return whitening, log_determinant


def _deviations(rows_BD: Array, memory: dict[str, Array]) -> Array:
    """Difference of every row from every task's mean, [B, N, D]."""
    rows_B1D = rows_BD[:, None]
    center_1ND = memory["center_ND"][None]
    return rows_B1D - center_1ND


def _check_fields(clip: float, shrinkage: float = 1.0) -> None:
    if clip <= 0:
        raise ValueError(f"clip {clip} must be above 0")
    if not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage {shrinkage} must be in (0, 1]; without any, a covariance cannot be inverted")


@dataclass(frozen=True)
class NearestMean(Standardised):
    """Nearest class mean: a task's score is minus the squared distance to the mean of its standardised features.

    Attributes:
      clip: standardised features are cut off at +-clip.
    """

    clip: float = 5.0
    kind: ClassVar[str] = "nearest_mean"

    def __post_init__(self):
        _check_fields(self.clip)

    def blank(self, capacity: int, width: int) -> dict[str, Array]:
        """Memory with room for `capacity` tasks: `center_ND`, and the standardisation."""
        memory = blank_standard(width)
        memory["center_ND"] = jnp.zeros((capacity, width))
        return memory

    def fit(self, memory: dict[str, Array], task: int, features_ND, *, key: Array) -> dict[str, Array]:
        """Writes row `task` from features [N, D]; nothing is random. Raises as `checked_features`, `with_row`."""
        del key
        capacity = len(memory["center_ND"])
        features = checked_features(features_ND, memory, task, capacity=capacity)
        memory = with_standard(memory, features)
        rows_ND = standardised(memory, features, self.clip)
        center_D = jnp.mean(rows_ND, axis=0)
        return with_row(memory, task, {"center_ND": center_D})

    def scores(self, memory: dict[str, Array], features_BD: Array, learned_N: Array) -> Array:
        """`-|x - mean|^2`, float32 [B, capacity]; -inf where not `learned_N` (bool)."""
        rows_BD = standardised(memory, features_BD, self.clip)
        deviation_BND = _deviations(rows_BD, memory)
        squared_BND = jnp.square(deviation_BND)
        distance_BN = jnp.sum(squared_BND, axis=-1)
        return masked_scores(-distance_BN, learned_N)

    def size(self, width: int) -> int:
        """Numbers stored per task."""
        return width


@dataclass(frozen=True)
class SharedGaussian(Standardised):
    """One Gaussian per task with a shared covariance: linear discriminant analysis with equal priors.

    A task's memory is its mean, count and scatter S_t; the covariance is pooled at scoring, over the tasks that are
    learned then: `S = sum S_t / (sum n_t - number of tasks)`, `C = (1 - a) S + a (trace S / D) I + RIDGE I`. So a new
    task shifts the boundaries between old ones, but changes nothing that is stored of them.

    A scatter has D * D numbers: 16.8 million a task at LLaVA-1.5-7B, more than its experts. With `directions` K, only
    the K widest directions of a scatter are stored and the others are taken as equal, `S_t = F' F + rest I`.

    Attributes:
      shrinkage: a, in (0, 1].
      clip: standardised features are cut off at +-clip.
      directions: K; 0, and anything from D on, stores the whole scatter.
    """

    shrinkage: float = 0.1
    clip: float = 5.0
    directions: int = 0
    kind: ClassVar[str] = "shared_gaussian"

    def __post_init__(self):
        _check_fields(self.clip, self.shrinkage)
        if self.directions < 0:
            raise ValueError(f"directions {self.directions} must be at least 1, or 0 for the whole scatter")

    def _is_low_rank(self, width: int) -> bool:
        return 0 < self.directions < width

    def blank(self, capacity: int, width: int) -> dict[str, Array]:
        """Memory with room for `capacity` tasks: `center_ND`, `count_N` (int32), and `scatter_NDD` or its directions
        `factor_NKD` with `rest_N`."""
        memory = blank_standard(width)
        memory["center_ND"] = jnp.zeros((capacity, width))
        memory["count_N"] = jnp.zeros(capacity, jnp.int32)
        if self._is_low_rank(width):
            memory["factor_NKD"] = jnp.zeros((capacity, self.directions, width))
            memory["rest_N"] = jnp.zeros(capacity)
        else:
            memory["scatter_NDD"] = jnp.zeros((capacity, width, width))
        return memory

    def fit(self, memory: dict[str, Array], task: int, features_ND, *, key: Array) -> dict[str, Array]:
        """Writes row `task` from features [N, D]; nothing is random. Raises as `checked_features`, `with_row`."""
        del key
        capacity = len(memory["center_ND"])
        features = checked_features(features_ND, memory, task, capacity=capacity)
        memory = with_standard(memory, features)
        rows_ND = standardised(memory, features, self.clip)
        center_D, scatter_DD = _moments(rows_ND)
        count = jnp.asarray(len(features), jnp.int32)
        row = {"center_ND": center_D, "count_N": count}
        if self._is_low_rank(len(scatter_DD)):
            factor_KD, rest = _widest(scatter_DD, self.directions)
            row |= {"factor_NKD": factor_KD, "rest_N": rest}
        else:
            row["scatter_NDD"] = scatter_DD
        return with_row(memory, task, row)

    def scores(self, memory: dict[str, Array], features_BD: Array, learned_N: Array) -> Array:
        """Minus half the squared Mahalanobis distance, float32 [B, capacity]; -inf where not `learned_N` (bool).

        Every call factors a D x D matrix, so large batches are cheaper than many small ones.
        """
        rows_BD = standardised(memory, features_BD, self.clip)
        scatter_DD = self._pooled(memory, learned_N)
        # Every learned task's mean costs a degree of freedom.
        freedom_N = memory["count_N"] - 1
        freedom_N = jnp.where(learned_N, freedom_N, 0)
        freedom = jnp.sum(freedom_N)
        divisor = jnp.maximum(freedom, 1)
        divisor = divisor.astype(jnp.float32)
        covariance_DD = scatter_DD / divisor
        # The log-determinant is dropped: all tasks share it, so it changes no comparison between them.
        whitening_DD, _ = _whitening(covariance_DD, self.shrinkage)
        deviation_BND = _deviations(rows_BD, memory)
        white_BND = jnp.einsum("bnd,ed->bne", deviation_BND, whitening_DD, precision=EXACT)
        squared_BND = jnp.square(white_BND)
        distance_BN = jnp.sum(squared_BND, axis=-1)
        log_density_BN = -0.5 * distance_BN
        return masked_scores(log_density_BN, learned_N)

    def _pooled(self, memory: dict[str, Array], learned_N: Array) -> Array:
        """Scatters of all learned tasks together, [D, D]."""
        learned_N11 = learned_N[:, None, None]
        if "scatter_NDD" in memory:
            scatter_NDD = jnp.where(learned_N11, memory["scatter_NDD"], 0.0)
            return jnp.sum(scatter_NDD, axis=0)
        factor_NKD = jnp.where(learned_N11, memory["factor_NKD"], 0.0)
        rest_N = jnp.where(learned_N, memory["rest_N"], 0.0)
        rest = jnp.sum(rest_N)
        pooled_DD = jnp.einsum("nkd,nke->de", factor_NKD, factor_NKD, precision=EXACT)
        width = factor_NKD.shape[-1]
        rest_DD = rest * jnp.eye(width)
        return pooled_DD + rest_DD

    def typical_scores(self, memory: dict[str, Array], features_BD: Array, scores_BN: Array) -> Array:
        """Scores as if each task were the only one learned, float32 [B, N].

        A pooled covariance separates tasks, but is too wide or too narrow for each of them: unknown inputs are detected
        far better under a task's own (docs/unknown.md).
        """
        count = scores_BN.shape[-1]
        tasks = jnp.arange(count)

        def score_alone(task: Array) -> Array:
            is_task_N = tasks == task
            alone_BN = self.scores(memory, features_BD, is_task_N)
            return alone_BN[:, task]

        # A loop, not vmap: each task factors a D x D matrix.
        scores_NB = jax.lax.map(score_alone, tasks)
        return scores_NB.T

    def flops(self, stored: int, *, width: int, tasks: int) -> int:
        """As by default; and per call, which a batch shares, the covariance is factored and inverted, and whitens every
        task's deviation."""
        factor_and_invert = 4 * width**3 // 3
        whiten = 2 * tasks * width**2
        score = 2 * stored
        return score + factor_and_invert + whiten

    def size(self, width: int) -> int:
        """Numbers stored per task: mean, count, and the scatter or its directions and rest."""
        scatter = width * width
        if self._is_low_rank(width):
            scatter = self.directions * width + 1
        return width + 1 + scatter


@dataclass(frozen=True)
class ClassGaussian(Standardised):
    """One Gaussian per task, each with its covariance: quadratic discriminant analysis with equal priors.

    `C_t = (1 - a) S_t + a (trace S_t / D) I + RIDGE I` with S_t the unbiased covariance of the task's standardised
    features: shrunk towards the identity, scaled to keep the mean variance. The score is the log-density, determinant
    included, since without it the widest task would win everywhere. Stored is the inverse of C_t's Cholesky factor.

    Attributes:
      shrinkage: a, in (0, 1].
      clip: standardised features are cut off at +-clip.
    """

    shrinkage: float = 0.1
    clip: float = 5.0
    kind: ClassVar[str] = "class_gaussian"

    def __post_init__(self):
        _check_fields(self.clip, self.shrinkage)

    def blank(self, capacity: int, width: int) -> dict[str, Array]:
        """Memory with room for `capacity` tasks: `center_ND`, `whitening_NDD`, `log_determinant_N`."""
        memory = blank_standard(width)
        memory["center_ND"] = jnp.zeros((capacity, width))
        memory["whitening_NDD"] = jnp.zeros((capacity, width, width))
        memory["log_determinant_N"] = jnp.zeros(capacity)
        return memory

    def fit(self, memory: dict[str, Array], task: int, features_ND, *, key: Array) -> dict[str, Array]:
        """Writes row `task` from features [N, D], N >= 2; nothing is random. Raises as in `NearestMean`."""
        del key
        capacity = len(memory["center_ND"])
        features = checked_features(features_ND, memory, task, capacity=capacity, least=2)
        memory = with_standard(memory, features)
        rows_ND = standardised(memory, features, self.clip)
        center_D, scatter_DD = _moments(rows_ND)
        # The mean is estimated from the same samples, hence one degree of freedom less.
        freedom = len(features) - 1
        covariance_DD = scatter_DD / freedom
        whitening_DD, log_determinant = _whitening(covariance_DD, self.shrinkage)
        row = {"center_ND": center_D, "whitening_NDD": whitening_DD, "log_determinant_N": log_determinant}
        return with_row(memory, task, row)

    def scores(self, memory: dict[str, Array], features_BD: Array, learned_N: Array) -> Array:
        """Log-density under every task's Gaussian, float32 [B, capacity]; -inf where not `learned_N` (bool)."""
        rows_BD = standardised(memory, features_BD, self.clip)
        deviation_BND = _deviations(rows_BD, memory)
        white_BND = jnp.einsum("bnd,ned->bne", deviation_BND, memory["whitening_NDD"], precision=EXACT)
        log_2pi = float(np.log(2 * np.pi))
        width = rows_BD.shape[1]
        constant_N = memory["log_determinant_N"] + width * log_2pi
        squared_BND = jnp.square(white_BND)
        distance_BN = jnp.sum(squared_BND, axis=-1)
        total_BN = distance_BN + constant_N[None]
        log_density_BN = -0.5 * total_BN
        return masked_scores(log_density_BN, learned_N)

    def size(self, width: int) -> int:
        """Numbers stored per task: mean, whitening matrix, log-determinant."""
        return width + width * width + 1
