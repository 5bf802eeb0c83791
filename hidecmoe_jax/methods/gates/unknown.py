"""Unknown-input detection: each task holds out a share of its records; a quantile of their scores is its threshold.

An input that scores below the threshold of its nearest task belongs to no known task. Inputs with only an image or only
text have thresholds of their own: scores of one modality alone are on another level, and the common threshold would
refuse or accept nearly all of them. A gate that scores CLIP's features calibrates these on the held-out records with
one modality hidden; one that scores a state of the base, which cannot be hidden in parts, on the held-out records that
lack one. Where no held-out record is of a kind, every input of that kind is unknown.
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

UNREACHED = -LOWEST
"""A threshold that no score reaches: an input for which nothing could be calibrated is unknown."""

# Names of the thresholds in a gate's memory: of inputs with both modalities, with an image alone, with text alone.
BOTH = "threshold_N"
SEEN_ALONE = "threshold_seen_N"
READ_ALONE = "threshold_read_N"
THRESHOLDS = (BOTH, SEEN_ALONE, READ_ALONE)


RETIRED = "retired_N"
"""Mask in a gate's memory of the tasks whose experts were retired: an input nearest to one of them is unknown."""

CALIBRATED = "calibrated_N"
"""Mask in a gate's memory of the tasks whose thresholds were set after learning; with it thresholds decide."""

# What edits of a run put into a gate's memory; archives of lessons never hold it.
EDITED = (RETIRED, CALIBRATED)


def with_retired(memory: dict[str, Array], task: int, count: int) -> dict[str, Array]:
    """The memory of `count` tasks with one of them retired; what is stored of it stays and recognises its inputs."""
    retired_N = memory.get(RETIRED, jnp.zeros(count, bool))
    return memory | {RETIRED: retired_N.at[task].set(True)}


def placed_tasks(memory: dict[str, Array], learned_N: Array) -> Array:
    """Tasks that an input may be nearest to: those that are learned, and those that were and are retired."""
    return learned_N | memory[RETIRED] if RETIRED in memory else learned_N


def refusing_retired(memory: dict[str, Array], match: Match) -> Match:
    """The match with inputs of retired tasks unknown."""
    if RETIRED not in memory:
        return match
    is_retired_B = memory[RETIRED][match.nearest_B]
    return match.replace(is_unknown_B=match.is_unknown_B | is_retired_B)


def calibrated(memory: dict[str, Array], limits: dict[int, dict[str, float]]) -> dict[str, Array]:
    """The memory with other thresholds of some tasks, by number and name of the threshold; they decide from now on."""
    # Every gate has an array with a number for each task.
    count = next(len(leaf) for name, leaf in memory.items() if name.endswith("_N"))
    is_calibrated_N = memory.get(CALIBRATED, jnp.zeros(count, bool))
    # A gate that called nothing unknown may lack thresholds: those of other tasks are such as every score reaches.
    lacking = [name for name in THRESHOLDS if name not in memory]
    memory = {name: jnp.full(count, LOWEST) for name in lacking} | memory
    for task, of_task in limits.items():
        # No record was of a kind that sets no threshold.
        unreached = dict.fromkeys(lacking, UNREACHED)
        memory = with_thresholds(memory, task, unreached | of_task)
        is_calibrated_N = is_calibrated_N.at[task].set(True)
    return memory | {CALIBRATED: is_calibrated_N}


def blank_thresholds(capacity: int, *, sides: bool) -> dict[str, Array]:
    """Thresholds of no task; `sides` with those for inputs that lack an image or text."""
    names = THRESHOLDS if sides else (BOTH,)
    shape = (capacity,)
    return {name: jnp.full(shape, LOWEST) for name in names}


def fit_apart(
    by: Any,
    memory: dict[str, Array],
    task: int,
    features: Any,
    *,
    pooled: Pooled | None,
    foreign: float | None,
    share: float,
    key: Array,
) -> dict[str, Array]:
    """Fits locator `by` to a task without a share of its records, and writes the task's thresholds from these.

    Args:
      features: what the locator scores, a row per record.
      pooled: CLIP's features of the same records, for the modalities they have; `features` itself where the gate scores
        these.
      foreign: part of the held-out records that may lie below the thresholds; None as 0.
      share: part of the records that is held out.
    """
    fit_key, order = _keys(features, key)
    apart = held_out_of(len(order), share)
    fitted = by.fit(memory, task, _take(features, order[apart:]), key=fit_key)
    if not apart:
        return fitted
    held_scores = _held_scores(by, fitted, task, features, pooled, order[:apart])
    return with_thresholds(fitted, task, quantiles_of(held_scores, foreign or 0.0))


def fit_by_folds(
    by: Any,
    memory: dict[str, Array],
    task: int,
    features: Any,
    *,
    pooled: Pooled | None,
    foreign: float | None,
    folds: int,
    key: Array,
) -> dict[str, Array]:
    """Fits locator `by` to all records of a task, and writes thresholds from held-out scores of all of them.

    Every record is scored by a locator that was fitted to the other folds; these locators are dropped. So all records
    carry the threshold and all are fitted to, where `fit_apart` has to divide them.

    Args: as `fit_apart`, with the number of folds.
    """
    fit_key, order = _keys(features, key)
    fitted = by.fit(memory, task, features, key=fit_key)
    folds = min(folds, len(order))
    if folds < 2:
        return fitted
    collected: dict[str, list[np.ndarray]] = {}
    for number in range(folds):
        is_held = np.arange(len(order)) % folds == number
        without = by.fit(memory, task, _take(features, order[~is_held]), key=jax.random.fold_in(fit_key, number))
        for name, scores in _held_scores(by, without, task, features, pooled, order[is_held]).items():
            collected.setdefault(name, []).append(scores)
    held_scores = {name: np.concatenate(scores) for name, scores in collected.items()}
    return with_thresholds(fitted, task, quantiles_of(held_scores, foreign or 0.0))


def _keys(features: Any, key: Array) -> tuple[Array, np.ndarray]:
    """Key of the fit, and the records of a task in random order, int [M]."""
    fit_key, order_key = jax.random.split(key)
    count = _rows(features)
    return fit_key, np.asarray(jax.random.permutation(order_key, count))


def _take(features: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(itemgetter(rows), features)


def _held_scores(
    by: Any, fitted: dict[str, Array], task: int, features: Any, pooled: Pooled | None, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """How typical of the task held-out records are, float [M], by the name of the threshold that they set."""
    held = _take(features, rows)
    held_pooled = held if features is pooled else _take(pooled, rows)
    # Scored as if the task were the only one, so that a threshold does not depend on the order of tasks.
    only_task_N = jnp.arange(len(fitted[BOTH])) == task
    held_scores = {}
    for name, view in _views(fitted, held, held_pooled).items():
        held_scores[name] = np.zeros(0)
        if _rows(view):
            score_BN = by.scores(fitted, view, only_task_N)
            typical_BN = np.asarray(by.typical_scores(fitted, view, score_BN))
            held_scores[name] = typical_BN[:, task]
    return held_scores


def quantiles_of(held_scores: dict[str, np.ndarray], foreign: float) -> dict[str, float]:
    """A task's thresholds from held-out scores by the name of the threshold; without scores one that none reaches."""
    limits = {}
    for name, scores in held_scores.items():
        limits[name] = threshold(scores, foreign) if len(scores) else UNREACHED
    return limits


def with_thresholds(memory: dict[str, Array], task: int, limits: dict[str, float]) -> dict[str, Array]:
    """The memory with other thresholds of a task."""
    changed = {name: memory[name].at[task].set(limit) for name, limit in limits.items()}
    return memory | changed


def threshold_records(gate: Any, records: int) -> int:
    """How many of so many records of a task set its threshold in a gate; 0 where the gate does not say."""
    count = getattr(gate, "held_out", None)
    return 0 if count is None else count(records)


def _rows(features: Any) -> int:
    """Number of records of features."""
    return jax.tree.leaves(features)[0].shape[0]


def _views(memory: dict[str, Array], held: Any, pooled: Pooled | None) -> dict[str, Any]:
    """Features of held-out records by the threshold that they set."""
    if SEEN_ALONE not in memory:
        return {BOTH: held}
    if held is pooled:
        return {BOTH: held} | _one_modality_hidden(held)
    return _by_modality(held, pooled)


def held_out_of(count: int, share: float) -> int:
    """Number of records, of `count`, that are held out: whatever the share, one is left to fit on."""
    return min(round(share * count), count - 1)


def _one_modality_hidden(held: Pooled) -> dict[str, Pooled]:
    """The held-out records that have an image without their text, and those that have text without their image."""
    has_image = np.asarray(held.has_image_B)
    has_text = np.asarray(held.has_text_B)
    images = jax.tree.map(itemgetter(has_image), held)
    texts = jax.tree.map(itemgetter(has_text), held)
    no_text_B = jnp.zeros(int(has_image.sum()), bool)
    no_image_B = jnp.zeros(int(has_text.sum()), bool)
    return {
        SEEN_ALONE: images.replace(has_text_B=no_text_B),
        READ_ALONE: texts.replace(has_image_B=no_image_B),
    }


def _by_modality(held: Array, pooled: Pooled) -> dict[str, Array]:
    """The held-out records by the modalities they have."""
    return {name: held[mask] for name, mask in modality_masks(pooled).items()}


def modality_masks(pooled: Pooled) -> dict[str, np.ndarray]:
    """Which records set which threshold, by the modalities they have: bool [B] by the threshold's name."""
    has_image = np.asarray(pooled.has_image_B)
    has_text = np.asarray(pooled.has_text_B)
    return {BOTH: has_image & has_text, SEEN_ALONE: has_image & ~has_text, READ_ALONE: has_text & ~has_image}


def limits_of(memory: dict[str, Array], pooled: Pooled) -> Array:
    """The threshold that every sample has to reach for every task, float32, [N] or [B, N].

    A sample with neither image nor text reaches none, where the gate has thresholds for one modality.
    """
    if SEEN_ALONE not in memory:
        return memory[BOTH]
    has_image_B1 = pooled.has_image_B[:, None]
    has_text_B1 = pooled.has_text_B[:, None]
    text_alone_BN = jnp.where(has_text_B1, memory[READ_ALONE], UNREACHED)
    one_modality_BN = jnp.where(has_image_B1, memory[SEEN_ALONE], text_alone_BN)
    has_both_B1 = has_image_B1 & has_text_B1
    return jnp.where(has_both_B1, memory[BOTH], one_modality_BN)


def match_of(
    score_BN: Array,
    learned_N: Array,
    *,
    typical_BN: Array | None = None,
    limits: Array | None = None,
    unknown_share: float | None = None,
    tie: float = 0.0,
) -> Match:
    """The nearest task of each sample and how reliable it is. While nothing is learned, nothing is unknown.

    Args:
      typical_BN: scores that are compared with the limits, where those are not `score_BN`.
      limits: as from `limits_of`; None calls nothing unknown.
      unknown_share: part of a task's own inputs that the limits were calibrated to call unknown.
      tie: the best score is nearly tied with the second best where it is less than this above it.
    """
    among_BN = jnp.where(learned_N[None], score_BN, -jnp.inf)
    nearest_B = jnp.argmax(among_BN, axis=-1).astype(jnp.int32)
    nearest_B1 = nearest_B[:, None]
    best_B = jnp.max(among_BN, axis=-1)
    tasks = jnp.arange(among_BN.shape[-1])
    is_nearest_BN = tasks == nearest_B1
    others_BN = jnp.where(is_nearest_BN, -jnp.inf, among_BN)
    second_B = jnp.max(others_BN, axis=-1)
    has_second = jnp.sum(learned_N) > 1
    # With one task there is no second best: the difference would be infinite or NaN.
    margin_B = jnp.where(has_second, best_B - second_B, jnp.inf)
    if typical_BN is not None:
        # An input has to be typical of its nearest task; that it is typical of another one does not count.
        is_candidate_BN = is_nearest_BN & learned_N[None]
        among_BN = jnp.where(is_candidate_BN, typical_BN, -jnp.inf)
        best_B = jnp.max(among_BN, axis=-1)
    if limits is None:
        threshold_B = jnp.full_like(best_B, -jnp.inf)
        is_unknown_B = jnp.zeros_like(best_B, bool)
    else:
        limits_BN = jnp.broadcast_to(limits, among_BN.shape)
        threshold_B1 = jnp.take_along_axis(limits_BN, nearest_B1, axis=-1)
        threshold_B = threshold_B1[:, 0]
        is_unknown_B = jnp.any(learned_N) & unknown(among_BN, limits)
    is_tied_B = margin_B < tie
    return Match(nearest_B, best_B, threshold_B, margin_B, is_unknown_B, is_tied_B, unknown_share)
