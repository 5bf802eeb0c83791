"""Merging experts into one: what several low-rank experts become when only one slot is left for them.

The modes carry the names that PEFT gives them in `add_weighted_adapter(combination_type=...)`. Factor modes
(`linear`, `ties`, `dare_linear`, `dare_ties`) treat all a and all b as two separate sets of tensors, weighted by
sqrt(weight) each: cheap, but the product of two sums has cross terms a_i b_j that no task has trained. SVD modes
(`svd`, `ties_svd`, `dare_linear_svd`, `dare_ties_svd`) treat the updates a_i b_i themselves and compress the
result to the best product of low rank; what is lost is then only what the rank cannot hold. `cat` is no mode here,
because it makes an expert as wide as all its sources together, which no slot of the bank can hold: its update is
what `svd` starts from (and returns whole when `rank` is large enough), or the gains of
`surgery.fusion_gains(mode="product_sum")` without any merging.

With T_i the tensors of expert i (all of its a and, apart from them, all of its b, with u_i = sqrt(weight_i);
or in an SVD mode its update a_i b_i, with u_i = weight_i), every layer and site by itself:

- `linear`: sum_i u_i T_i. Two copies of an expert with weights (0.25, 0.25) are the expert itself, (0.5, 0.5) double
  it: the weights of a factor mode sum their roots, as PEFT's do. `svd` sums the weights themselves.
- `ties` (TIES-Merging, arXiv 2306.01708, section 3): trim every T_i to its `density` of largest magnitudes,
  elect each entry's sign by the larger total magnitude over the experts, and take the mean of u_i T_i over the
  experts that agree with it. Weights of 1 are the paper's mean.
- `dare_linear` (DARE, arXiv 2311.03099, section 3.2): drop every entry with probability 1 - `density`, divide
  the rest by `density`, and sum as in `linear`; the expectation over `key` is the one of `linear`.
- `dare_ties`: drop and divide as in DARE, then elect and take the mean as in TIES.
- `svd`: the best update of the given rank, in Frobenius norm, for sum_i weight_i a_i b_i (Eckart and Young,
  1936), by rank-space factorisations that never form [D, F].
- `ties_svd`, `dare_linear_svd`, `dare_ties_svd`: those rules on the dense updates, then the best of the rank.
  They hold [len(slots), D, F] of one layer and site at a time in float32, and decompose [D, F] in full: minutes
  per layer on a CPU at the widths of a 7B model.

An SVD mode splits each singular value into its root on either factor. The scale stays the bank's whatever the
rank, so scale * a b approximates the sum of what the sources add. All sums are float32, cast once to the bank's
dtypes. A source that is EMPTY in a layer is zeros there: it neither votes nor counts in the mean.

`distance` and `cosine` measure how far one expert is from another, a merged one from its source for example.
As in surgery, owners are read on the host: none of this is for use inside `jit`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core.errors import nearest
from hidecmoe_jax.experts.bank import EMPTY, FUSED, Bank
from hidecmoe_jax.experts.programs import pad
from hidecmoe_jax.experts.slots import check_slot

FACTOR_MODES = ("linear", "ties", "dare_linear", "dare_ties")
SVD_MODES = ("svd", "ties_svd", "dare_linear_svd", "dare_ties_svd")
MODES = FACTOR_MODES + SVD_MODES
# Only a plain sum of updates can subtract one: a factor has no square root of -1, and an elected sign no opposite.
SIGNED_MODES = ("svd", "dare_linear_svd")

# Accelerators shorten float32 products by default; what a merge loses should be its rank's doing alone.
_EXACT = jax.lax.Precision.HIGHEST


def combine(
    bank: Bank,
    slots: tuple[int, ...],
    *,
    mode: str,
    weights: tuple[float, ...],
    density: float = 0.5,
    rank: int | None = None,
    key: Array | None = None,
) -> Bank:
    """The experts of `slots` merged into a bank of one slot, to be planted with `surgery.plant(..., task=FUSED)`.

    Args:
      bank: a[site] is [L, D, S, R], b[site] is [L, S, R, F].
      slots: the sources; one may be named twice.
      mode: one of `MODES`, defined at the top of this module.
      weights: one for each of `slots`. Negative ones subtract, in `svd` and `dare_linear_svd` alone.
      density: share of entries kept by trimming and dropping, in (0, 1]; at least one entry stays of each tensor
        trimmed, and all those as large as the smallest that stays. `linear` and `svd` keep all.
      rank: of the result, None for the bank's; another one in SVD modes alone, and no slot of `bank` takes it.
      key: for DARE; the draw of a site and layer depends on it, the site's name, the decoder layer and the number
        of slots, not on the other sites or where the bank begins.

    Returns:
      A bank with a[site] [L, D, 1, rank] and b[site] [L, 1, rank, F], the sites, layers, scale and dtypes of
      `bank`, and owner FUSED; EMPTY and zeros in layers where none of the sources has an expert.

    Raises:
      ValueError: an unknown mode, a slot out of range or EMPTY in every layer, weights of another number, negative
        or not finite ones, a density outside (0, 1], a rank below 1 or in a factor mode, or DARE without a key.
    """
    _check_mode(mode, weights, density, key=key)
    _check_sources(bank, slots, weights)
    merged_rank = _checked_rank(bank, rank, mode)
    merge = partial(_merged, mode=mode, density=float(density), rank=merged_rank)
    slots_N = np.asarray(slots)
    drop_key = key if "dare" in mode else None
    a, b = _merged_sites(bank, slots_N, weights, merge=merge, key=drop_key)
    owner_LS = np.asarray(bank.owner_LS)
    is_source_LN = owner_LS[:, slots_N] != EMPTY
    has_source_L = is_source_LN.any(axis=1)
    owner_L = np.where(has_source_L, FUSED, EMPTY)
    owner_L1 = owner_L[:, None]
    return bank.replace(a=a, b=b, owner_LS=jnp.asarray(owner_L1, jnp.int32))


def _merged_sites(
    bank: Bank, slots_N: np.ndarray, weights: tuple[float, ...], *, merge: Callable[..., Any], key: Array | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Merged factors of every site, a [L, D, 1, rank] and b [L, 1, rank, F]; `key` is None where nothing is drawn."""
    weight_N = jnp.asarray(weights, jnp.float32)
    first = bank.first_layer
    end = first + bank.layers
    layer_L = jnp.arange(first, end, dtype=jnp.int32)
    a = {}
    b = {}
    for site in bank.sites:
        site_key = None
        if key is not None:
            # crc32, not hash(): Python salts strings, and the draw must be the same in every process.
            site_number = zlib.crc32(site.encode())
            site_key = jax.random.fold_in(key, site_number)
        a_LDNR = bank.a[site][:, :, slots_N]
        a_LNDR = jnp.moveaxis(a_LDNR, 2, 1)
        b_LNRF = bank.b[site][:, slots_N]
        a_LDR, b_LRF = merge(a_LNDR, b_LNRF, layer_L, weight_N, site_key)
        a[site] = a_LDR[:, :, None]
        b[site] = b_LRF[:, None]
    return a, b


def distance(bank: Bank, one: int, other: int) -> dict[str, np.ndarray]:
    """How far the update of slot `other` is from that of slot `one`: ||E_one - E_other||_F / ||E_one||_F.

    Inner products of updates come from Gram matrices [R, R], <E, E'> = sum((a^T a') * (b b'^T)), in float64 on the
    host: a difference of squares in float32 would see nothing below 1e-4.

    Returns:
      site -> float64 [L], one number for every row; 0 for equal bytes and where both are zero, infinity where only
      `one` is.

    Raises:
      ValueError: a slot is out of range.
    """
    distances = {}
    for site, products in _products(bank, one, other).items():
        square_L, other_square_L, inner_L = products
        squares_L = square_L + other_square_L
        difference_square_L = squares_L - 2 * inner_L
        # Rounding can make the square of a small difference negative.
        difference_square_L = np.maximum(difference_square_L, 0)
        difference_L = np.sqrt(difference_square_L)
        norm_L = np.sqrt(square_L)
        has_norm_L = norm_L > 0
        other_has_norm_L = other_square_L > 0
        from_zero_L = np.where(other_has_norm_L, np.inf, 0.0)
        ratio_L = from_zero_L.copy()
        np.divide(difference_L, norm_L, where=has_norm_L, out=ratio_L)
        distances[site] = np.where(has_norm_L, ratio_L, from_zero_L)
    return distances


def cosine(bank: Bank, one: int, other: int) -> dict[str, np.ndarray]:
    """Cosine of the angle between the updates of two slots, by Gram matrices as in `distance`.

    Returns:
      site -> float64 [L] in [-1, 1], one number for every row; NaN where one of the two is zero.

    Raises:
      ValueError: a slot is out of range.
    """
    cosines = {}
    for site, products in _products(bank, one, other).items():
        square_L, other_square_L, inner_L = products
        norm_L = np.sqrt(square_L)
        other_norm_L = np.sqrt(other_square_L)
        norms_L = norm_L * other_norm_L
        has_angle_L = norms_L > 0
        ratio_L = np.full_like(norms_L, np.nan)
        np.divide(inner_L, norms_L, where=has_angle_L, out=ratio_L)
        # Rounding may take the ratio of equal updates above 1.
        cosines[site] = np.clip(ratio_L, -1.0, 1.0)
    return cosines


def closeness(bank: Bank, one: int, other: int) -> np.ndarray:
    """Cosine of two experts' updates by row, the mean over sites, float64 [L]; NaN where one of them is zero."""
    cosines = cosine(bank, one, other)
    cosine_site_L = np.stack(list(cosines.values()))
    # The mean is over those sites alone at which both updates are not zero.
    is_defined = ~np.isnan(cosine_site_L)
    defined_cosines = np.where(is_defined, cosine_site_L, 0.0)
    total_L = defined_cosines.sum(axis=0)
    sites_L = is_defined.sum(axis=0)
    mean_L = total_L / np.maximum(sites_L, 1)
    has_site_L = is_defined.any(axis=0)
    return np.where(has_site_L, mean_L, np.nan)


def _products(bank: Bank, one: int, other: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """site -> squared norms of both updates and their inner product, float64 [L] each, without the scale."""
    check_slot(bank, one)
    check_slot(bank, other)
    products = {}
    for site in bank.sites:
        expert = _float64_factors(bank, site, one)
        other_expert = _float64_factors(bank, site, other)
        square_L = _inner_product(expert, expert)
        other_square_L = _inner_product(other_expert, other_expert)
        inner_L = _inner_product(expert, other_expert)
        products[site] = (square_L, other_square_L, inner_L)
    return products


def _float64_factors(bank: Bank, site: str, slot: int) -> tuple[np.ndarray, np.ndarray]:
    a_LDR = np.asarray(bank.a[site][:, :, slot], np.float64)
    b_LRF = np.asarray(bank.b[site][:, slot], np.float64)
    return a_LDR, b_LRF


def _inner_product(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """<a b, a' b'> of every row, from two [R, R] matrices instead of two [D, F] ones; float64 [L]."""
    a_LDR, b_LRF = left
    a2_LDR, b2_LRF = right
    a_LRD = a_LDR.transpose(0, 2, 1)
    b2_LFR = b2_LRF.transpose(0, 2, 1)
    gram_a_LRR = a_LRD @ a2_LDR
    gram_b_LRR = b_LRF @ b2_LFR
    products_LRR = gram_a_LRR * gram_b_LRR
    return products_LRR.sum(axis=(1, 2))


@partial(jax.jit, static_argnames=("mode", "density", "rank"))
def _merged(
    a_LNDR: Array,
    b_LNRF: Array,
    layer_L: Array,
    weight_N: Array,
    key: Array | None,
    *,
    mode: str,
    density: float,
    rank: int,
) -> tuple[Array, Array]:
    """a [L, D, rank] and b [L, rank, F] of one site; layer by layer, so memory holds one layer's dense updates."""
    rule = mode.removesuffix("_svd")
    blend = partial(_blend, rule=rule, density=density)

    def merge_layer(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        a_NDR, b_NRF, layer = inputs
        layer_key = None
        if key is not None:
            layer_key = jax.random.fold_in(key, layer)
        a_NDR = a_NDR.astype(jnp.float32)
        b_NRF = b_NRF.astype(jnp.float32)
        if mode in FACTOR_MODES:
            a_DR, b_RF = _blended_factors(a_NDR, b_NRF, weight_N, blend=blend, key=layer_key)
        elif mode == "svd":
            # The product is linear in b, so the weights enter there, once.
            weight_N11 = weight_N[:, None, None]
            weighted_b_NRF = b_NRF * weight_N11
            a_DR, b_RF = _best_of_products(a_NDR, weighted_b_NRF, rank)
        else:
            delta_NDF = jnp.einsum("ndr,nrf->ndf", a_NDR, b_NRF, precision=_EXACT)
            merged_DF = blend(delta_NDF, weight_N, key=layer_key)
            a_DR, b_RF = _best(merged_DF, rank)
        a_DR = a_DR.astype(a_LNDR.dtype)
        b_RF = b_RF.astype(b_LNRF.dtype)
        return a_DR, b_RF

    layers = (a_LNDR, b_LNRF, layer_L)
    return jax.lax.map(merge_layer, layers)


def _blended_factors(
    a_NDR: Array, b_NRF: Array, weight_N: Array, *, blend: Callable[..., Array], key: Array | None
) -> tuple[Array, Array]:
    """Both factors merged apart from each other, each with the root of the weights."""
    key_a = None
    key_b = None
    if key is not None:
        key_a, key_b = jax.random.split(key)
    root_N = jnp.sqrt(weight_N)
    a_DR = blend(a_NDR, root_N, key=key_a)
    b_RF = blend(b_NRF, root_N, key=key_b)
    return a_DR, b_RF


def _blend(tensors_NXY: Array, weight_N: Array, *, rule: str, density: float, key: Array | None) -> Array:
    """One tensor [X, Y] out of N of them by `linear`, `ties`, `dare_linear` or `dare_ties`."""
    if rule == "ties":
        trim = partial(_trimmed, density=density)
        tensors_NXY = jax.lax.map(trim, tensors_NXY)
    if rule in ("dare_linear", "dare_ties"):
        assert key is not None, "DARE draws which entries stay"
        stays_NXY = jax.random.bernoulli(key, density, tensors_NXY.shape)
        # Divided by the chance to stay, so that the expectation is the tensor itself.
        enlarged_NXY = tensors_NXY / density
        tensors_NXY = jnp.where(stays_NXY, enlarged_NXY, 0.0)
    weight_N11 = weight_N[:, None, None]
    weighted_NXY = tensors_NXY * weight_N11
    if rule in ("ties", "dare_ties"):
        # The sign of the sum is the sign with the larger mass; a sum of exactly zero counts as positive.
        sum_XY = tensors_NXY.sum(axis=0)
        is_positive_XY = sum_XY >= 0
        elected_XY = jnp.where(is_positive_XY, 1.0, -1.0)
        sign_NXY = jnp.sign(tensors_NXY)
        agrees_NXY = sign_NXY == elected_XY
        count_XY = agrees_NXY.sum(axis=0, dtype=jnp.float32)
        agreeing_NXY = jnp.where(agrees_NXY, weighted_NXY, 0.0)
        total_XY = agreeing_NXY.sum(axis=0)
        # At least 1, where no expert agrees and the total is zero.
        return total_XY / jnp.maximum(count_XY, 1.0)
    return weighted_NXY.sum(axis=0)


def _trimmed(tensor_XY: Array, *, density: float) -> Array:
    """Zeros in place of all but the `density` of largest magnitudes; entries equal to the smallest of them stay."""
    count = max(1, int(density * tensor_XY.size))
    magnitude_XY = jnp.abs(tensor_XY)
    ascending = jnp.sort(magnitude_XY.ravel())
    smallest = ascending[-count]
    is_large_XY = magnitude_XY >= smallest
    return jnp.where(is_large_XY, tensor_XY, 0.0)


def _best(delta_DF: Array, rank: int) -> tuple[Array, Array]:
    """Factors [D, rank] and [rank, F] of the nearest matrix of `rank`; zeros beyond the rank that [D, F] can have."""
    left_DK, singular_K, right_KF = jnp.linalg.svd(delta_DF, full_matrices=False)
    count = min(rank, singular_K.shape[0])
    missing = rank - count
    largest_K = singular_K[:count]
    # Each factor gets the root of a singular value, so that both have entries of the same size.
    root_K = jnp.sqrt(largest_K)
    a_DK = left_DK[:, :count] * root_K
    root_K1 = root_K[:, None]
    b_KF = root_K1 * right_KF[:count]
    a_DR = pad(a_DK, 1, missing)
    b_RF = pad(b_KF, 0, missing)
    return a_DR, b_RF


def _best_of_products(a_NDR: Array, b_NRF: Array, rank: int) -> tuple[Array, Array]:
    """`_best` of sum_n a_n b_n, by a QR of either side: the SVD is then of a matrix as small as all ranks together."""
    count, width, inner = a_NDR.shape
    # Side by side: the sum of products is then one product [D, N * R] [N * R, F].
    ranks = count * inner
    a_DNR = jnp.moveaxis(a_NDR, 0, 1)
    all_a = a_DNR.reshape(width, ranks)
    all_b = b_NRF.reshape(ranks, -1)
    base_DK, core_a = jnp.linalg.qr(all_a)
    base_FK, core_b = jnp.linalg.qr(all_b.T)
    core = jnp.matmul(core_a, core_b.T, precision=_EXACT)
    left, right = _best(core, rank)
    a_DR = jnp.matmul(base_DK, left, precision=_EXACT)
    b_RF = jnp.matmul(right, base_FK.T, precision=_EXACT)
    return a_DR, b_RF


def _check_mode(mode: str, weights: tuple[float, ...], density: float, *, key: Array | None) -> None:
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r} of combining; {nearest(mode, MODES)}")
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"weights must be finite, got {list(weights)}")
    smallest = min(weights, default=0.0)
    if smallest < 0 and mode not in SIGNED_MODES:
        known = ", ".join(SIGNED_MODES)
        raise ValueError(f"mode {mode!r} takes no negative weight, got {list(weights)}; to subtract use: {known}")
    if not 0 < density <= 1:
        raise ValueError(f"density is the share of entries kept, in (0, 1], got {density}")
    if "dare" in mode and key is None:
        raise ValueError(f"mode {mode!r} drops entries at random; give key=jax.random.key(...), got None")


def _checked_rank(bank: Bank, rank: int | None, mode: str) -> int:
    """The rank of the result, by default the bank's; ValueError for another one in a factor mode, or below 1."""
    if rank is None:
        return bank.rank
    is_allowed = rank == bank.rank or mode in SVD_MODES
    if rank < 1 or not is_allowed:
        known = ", ".join(SVD_MODES)
        raise ValueError(f"rank {rank} for mode {mode!r}, the bank has {bank.rank}; another one >= 1 needs: {known}")
    return int(rank)


def _check_sources(bank: Bank, slots: tuple[int, ...], weights: tuple[float, ...]) -> None:
    if len(slots) == 0:
        raise ValueError("combining needs at least one slot, got 0")
    if len(weights) != len(slots):
        raise ValueError(f"combining {len(slots)} slots needs as many weights, got {len(weights)}")
    owner_LS = np.asarray(bank.owner_LS)
    for slot in slots:
        check_slot(bank, slot)
        is_empty_L = owner_LS[:, slot] == EMPTY
        if is_empty_L.all():
            raise ValueError(f"slot {slot} is EMPTY in all {bank.layers} layers, nothing to combine")
