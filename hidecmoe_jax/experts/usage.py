"""Use of experts: how evenly tokens are spread over a layer's experts, and which experts have no effect.

Routers tend to send everything to the same experts, which then learn alone (arXiv 1701.06538, section 4). A layer with
no more experts than the `top_k` that each token uses is even by necessity, so it is left out. An expert is dead if
training left its update at zero, or if no token chose it.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from hidecmoe_jax.experts.bank import Bank

UNAVAILABLE = -1  # the count of a slot that could not be chosen
NEGLIGIBLE = 1e-6  # an update's norm below this part of the largest one is rounding


class Load(struct.PyTreeNode):
    """Choices of tokens.

    Attributes:
      count_LS: int32, tokens per slot; UNAVAILABLE where no token could choose it.
      top_k: experts each token uses.
    """

    count_LS: Array
    top_k: int = struct.field(pytree_node=False)


def sum_loads(loads: Load) -> Load:
    """The sum of loads that are stacked on a leading axis."""
    is_unavailable_LS = loads.count_LS[0] == UNAVAILABLE
    total_LS = jnp.sum(loads.count_LS, axis=0)
    # UNAVAILABLE is a mark, not a number to add up.
    count_LS = jnp.where(is_unavailable_LS, UNAVAILABLE, total_LS)
    return loads.replace(count_LS=count_LS)


def evenness(load: Load) -> tuple[float, float] | None:
    """The largest share and the smallest entropy over all layers with a choice; None where there is no such layer.

    The share is the part of a layer's choices that go to its `top_k` most chosen experts, 1 in a collapse. The entropy
    of the choices is shifted and scaled so that a collapse is 0 and an even load 1. With `top_k` 1 they are the largest
    share of an expert, and the entropy divided by log E for a layer of E experts.
    """
    shares = []
    entropies = []
    top_k = load.top_k
    for count_S in np.asarray(load.count_LS, np.int64):
        is_available_S = count_S != UNAVAILABLE
        ascending = np.sort(count_S[is_available_S])
        counts = ascending[::-1]
        choices = counts.sum()
        if len(counts) <= top_k or not choices:
            continue
        fraction = counts / choices
        most_chosen = fraction[:top_k]
        shares.append(most_chosen.sum())
        # 0 log 0 is 0: the bound keeps the logarithm finite.
        bounded = np.maximum(fraction, 1e-300)
        log_fraction = np.log(bounded)
        entropy = -np.sum(fraction * log_fraction)
        least = np.log(top_k)
        most = np.log(len(counts))
        above_least = entropy - least
        scaled = above_least / (most - least)
        entropies.append(max(0.0, scaled))  # rounding may go below
    if not shares:
        return None
    largest_share = max(shares)
    least_entropy = min(entropies)
    return float(largest_share), float(least_entropy)


def update_norms(bank: Bank) -> np.ndarray:
    """The norm of every slot's update, scale * |A B| over all sites, float64 [L, S]."""
    total = 0.0
    for site, a in bank.a.items():
        a_LDSR = np.asarray(a, np.float64)
        b_LSRF = np.asarray(bank.b[site], np.float64)
        # |A B|^2 = trace(A^T A B B^T): two small matrices instead of one as large as the weight.
        inner = np.einsum("ldsr,ldsq->lsrq", a_LDSR, a_LDSR, optimize=True)
        outer = np.einsum("lsrf,lsqf->lsrq", b_LSRF, b_LSRF, optimize=True)
        square_LS = np.einsum("lsrq,lsrq->ls", inner, outer)
        total = total + square_LS
    # Rounding can make a zero norm slightly negative.
    bounded_LS = np.maximum(total, 0.0)
    norm_LS = np.sqrt(bounded_LS)
    return abs(bank.scale) * norm_LS


def dead_experts(norm_LE: np.ndarray, chosen_LE: np.ndarray | None = None) -> list[tuple[int, int, str]]:
    """(layer, expert, reason) of experts without effect; E counts the experts that are compared.

    Args:
      norm_LE: norm of every expert's update, such as the columns of `update_norms` for a task's slots. The caller sets
        NaN where a layer lacks the expert.
      chosen_LE: tokens that chose each, where tokens choose.
    """
    largest = np.nanmax(norm_LE, initial=0.0)
    without_effect = []
    negligible = NEGLIGIBLE * largest
    is_expert_LE = ~np.isnan(norm_LE)
    for layer, expert in np.argwhere(is_expert_LE).tolist():
        if norm_LE[layer, expert] <= negligible:
            without_effect.append((layer, expert, "its update is zero"))
        elif chosen_LE is not None and chosen_LE[layer, expert] == 0:
            without_effect.append((layer, expert, "no token chose it"))
    return without_effect
