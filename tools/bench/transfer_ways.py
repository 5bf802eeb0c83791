"""Ways in which a new task's expert can use the frozen experts of earlier tasks, as pure functions on banks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.experts.bank import Bank

FEWEST = 6  # experts that a damped mean is taken over at least; those that are lacking count as nothing


@dataclass(frozen=True)
class Way:
    """How a new expert uses the earlier ones.

    Attributes:
      start: what it begins with: nothing (`blank`), the best update of its rank for their `mean`, the `nearest` one, or
        the `directions` that the nearest one reads (its factor a, with b = 0).
      volume: factor of that update.
      beside: earlier experts that stay on beside it, frozen: none; their `mean`; each at a sixth, or at their mean
        where there are more than six (`damped`); or each with a `gain` of every layer that is trained along.
      gain: first gain of the nearest one; the others begin with 0.
    """

    start: Literal["blank", "mean", "nearest", "directions"] = "blank"
    volume: float = 1.0
    beside: Literal["none", "mean", "damped", "gain"] = "none"
    gain: float = 0.0

    @property
    def picks(self) -> bool:
        """Whether the nearest earlier expert is asked for."""
        return self.start in ("nearest", "directions") or self.gain > 0


WAYS = {
    "isolated": Way(),
    "mean-start": Way(start="mean"),
    "mean-beside": Way(beside="mean"),
    "damped-beside": Way(beside="damped"),
    "gains": Way(beside="gain"),
    "nearest-gain": Way(beside="gain", gain=1.0),
    "nearest-start": Way(start="nearest"),
    "nearest-quarter": Way(start="nearest", volume=0.25),
    "nearest-directions": Way(start="directions"),
}
ISOLATED = "isolated"
JOINT = "joint"


def first_gains(way: Way, bank: Bank, count: int, nearest: int | None) -> np.ndarray:
    """Gains [L, S] of `count` earlier experts before training."""
    gain_LS = np.zeros(bank.owner_LS.shape, np.float32)
    if way.beside == "mean" and count:
        gain_LS[:, :count] = 1 / count
    if way.beside == "damped" and count:
        gain_LS[:, :count] = 1 / max(count, FEWEST)
    if nearest is not None and way.gain:
        gain_LS[:, nearest] = way.gain
    return gain_LS


def started(way: Way, fresh: Bank, earlier: Sequence[Bank], nearest: int | None) -> Bank:
    """The expert that training begins with: `fresh` where there is none to begin from."""
    if way.start == "blank" or not earlier:
        return fresh
    if way.start == "mean":
        return mean_of(earlier, way.volume)
    source = earlier[nearest]
    if way.start == "directions":
        return fresh.replace(a=source.a)
    # Each factor takes the root, so the update has the volume.
    root = np.float32(np.sqrt(way.volume))
    return source.with_factors(jax.tree.map(lambda leaf: leaf * root, source.factors))


def mean_of(experts: Sequence[Bank], volume: float = 1.0) -> Bank:
    """The best update of one expert's rank for the mean of several, its factors equally large."""
    one = experts[0]
    a = {}
    b = {}
    for site in one.sites:
        updates = []
        for expert in experts:
            update_LDF = np.einsum("ldsr,lsrf->ldf", np.asarray(expert.a[site]), np.asarray(expert.b[site]))
            updates.append(update_LDF)
        mean_LDF = volume * np.mean(updates, axis=0)
        left_LDK, size_LK, right_LKF = np.linalg.svd(mean_LDF, full_matrices=False)
        root_LR = np.sqrt(size_LK[:, : one.rank])
        a_LDR = left_LDK[:, :, : one.rank] * root_LR[:, None]
        b_LRF = right_LKF[:, : one.rank] * root_LR[:, :, None]
        a[site] = jnp.asarray(a_LDR[:, :, None])
        b[site] = jnp.asarray(b_LRF[:, None])
    return one.replace(a=a, b=b)
