"""When not to believe a gate: thresholds from records it did not learn from, and how far the best task is ahead.

Every gate has a nearest task, also for an input of none. A part of every task's records is kept apart from learning;
what these score tells below which score an input is unknown. There are two more thresholds for inputs that have only a
picture or only a text: scores of one modality alone have another level, and the common threshold would refuse or accept
nearly all of them. A gate that looks at CLIP's features reads them from the same records with one of the two hidden;
one that looks at a state of the base, which cannot be hidden in parts, from those records that lack one. What no
record of a task was like is unknown to it.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.locators.calibrate import threshold, unknown
from hidecmoe_jax.locators.standard import LOWEST
from hidecmoe_jax.methods.base import Match

# A threshold that no score reaches: an input for which nothing could be calibrated is unknown, never near.
UNREACHED = -LOWEST
BOTH = "threshold_N"
SEEN_ALONE = "threshold_seen_N"
READ_ALONE = "threshold_read_N"
THRESHOLDS = (BOTH, SEEN_ALONE, READ_ALONE)


def blank_thresholds(capacity: int, *, sides: bool) -> dict[str, Array]:
    """Thresholds of no task; `sides` with those for inputs that lack a picture or a text."""
    return {name: jnp.full((capacity,), LOWEST) for name in (THRESHOLDS if sides else (BOTH,))}


def fit_apart(
    by: Any,
    memory: dict[str, Array],
    task: int,
    shown: Any,
    *,
    pooled: Pooled | None,
    foreign: float | None,
    share: float,
    key: Array,
) -> dict[str, Array]:
    """Fits locator `by` to a task and writes the task's thresholds.

    Args:
      shown: what the locator looks at, a row per record.
      pooled: of the same records, for what they have; the very `shown` of a gate that looks at it.
      foreign: part of the held records that may lie below the thresholds; None as 0.
      share: part of the records that are held: not learned from, and scored.
    """
    own_key, order_key = jax.random.split(key)
    count = jax.tree.leaves(shown)[0].shape[0]
    order = np.asarray(jax.random.permutation(order_key, count))
    apart = min(round(share * count), count - 1)
    held, kept = (jax.tree.map(itemgetter(rows), shown) for rows in (order[:apart], order[apart:]))
    fitted = by.fit(memory, task, kept, key=own_key)
    if not apart:
        return fitted
    alone = jnp.arange(len(fitted[BOTH])) == task
    views = {BOTH: held}
    if SEEN_ALONE in fitted and shown is pooled:
        views |= _sides(held)
    elif SEEN_ALONE in fitted:
        views = _kinds(held, jax.tree.map(itemgetter(order[:apart]), pooled))
    limits = {name: UNREACHED for name in views}
    for name, view in views.items():
        if jax.tree.leaves(view)[0].shape[0]:
            limits[name] = threshold(np.asarray(by.scores(fitted, view, alone))[:, task], foreign or 0.0)
    return fitted | {name: fitted[name].at[task].set(limit) for name, limit in limits.items()}


def _sides(held: Pooled) -> dict[str, Pooled]:
    """The held records that have a picture without their text, and those that have a text without their picture."""
    seen = np.asarray(held.has_image_B)
    read = np.asarray(held.has_text_B)
    blind = {"has_image_B": jnp.zeros(int(read.sum()), bool)}
    deaf = {"has_text_B": jnp.zeros(int(seen.sum()), bool)}
    return {
        SEEN_ALONE: jax.tree.map(itemgetter(seen), held).replace(**deaf),
        READ_ALONE: jax.tree.map(itemgetter(read), held).replace(**blind),
    }


def _kinds(held: Array, pooled: Pooled) -> dict[str, Array]:
    """The held records by what they have."""
    seen = np.asarray(pooled.has_image_B)
    read = np.asarray(pooled.has_text_B)
    return {BOTH: held[seen & read], SEEN_ALONE: held[seen & ~read], READ_ALONE: held[read & ~seen]}


def limits_of(memory: dict[str, Array], pooled: Pooled) -> Array:
    """The threshold that every sample has to reach for every task, float32, [N] or [B, N].

    A sample with neither picture nor text reaches none, where a gate looks at these.
    """
    if SEEN_ALONE not in memory:
        return memory[BOTH]
    seen_B1 = pooled.has_image_B[:, None]
    read_B1 = pooled.has_text_B[:, None]
    alone = jnp.where(seen_B1, memory[SEEN_ALONE], jnp.where(read_B1, memory[READ_ALONE], UNREACHED))
    return jnp.where(seen_B1 & read_B1, memory[BOTH], alone)


def certainty(
    score_BN: Array,
    learned_N: Array,
    *,
    typical_BN: Array | None = None,
    limits: Array | None = None,
    foreign: float | None = None,
    tie: float = 0.0,
) -> Match:
    """How sure scores are; with nothing learned nothing is unknown, for there is nothing to be unlike to.

    Args:
      typical_BN: what is held against the limits, where that is not the score which tells tasks apart.
      limits: as from `limits_of`; None calls nothing unknown.
      tie: the best score must be so far above the second best.
    """
    among = jnp.where(learned_N[None], score_BN, -jnp.inf)
    nearest_B = jnp.argmax(among, axis=-1).astype(jnp.int32)
    best_B = jnp.max(among, axis=-1)
    chosen_BN = jnp.arange(among.shape[-1]) == nearest_B[:, None]
    second_B = jnp.max(jnp.where(chosen_BN, -jnp.inf, among), axis=-1)
    ahead_B = jnp.where(jnp.sum(learned_N) > 1, best_B - second_B, jnp.inf)
    if typical_BN is not None:
        among = jnp.where(chosen_BN & learned_N[None], typical_BN, -jnp.inf)
        best_B = jnp.max(among, axis=-1)
    if limits is None:
        limit_B = jnp.full_like(best_B, -jnp.inf)
        unknown_B = jnp.zeros_like(best_B, bool)
    else:
        limit_B = jnp.take_along_axis(jnp.broadcast_to(limits, among.shape), nearest_B[:, None], axis=-1)[:, 0]
        unknown_B = jnp.any(learned_N) & unknown(among, limits)
    return Match(nearest_B, best_B, limit_B, ahead_B, unknown_B, ahead_B < tie, foreign)
