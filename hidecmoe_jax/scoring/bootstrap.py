"""Uncertainty of scores: bootstrap intervals of cells and summaries, and paired tests between two runs.

Test questions are drawn with replacement. A task's questions are drawn once for all rows of its column, since every row
answers the same questions. Intervals hold for these questions; how much another seed or another order of tasks would
change is a spread over runs and no part of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hidecmoe_jax.scoring.marks import Marks
from hidecmoe_jax.scoring.matrix import METRICS, summary

RESAMPLES = 1000
CONFIDENCE = 0.95
_ELEMENTS = 2_000_000  # of the largest array at a time

Interval = tuple[float, float]


def cell_values(rows: Mapping[int, Marks], *, resamples: int, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Scores of one task's cells under resampled questions.

    Args:
      rows: marks by row of the matrix, all over the same questions.

    Returns:
      float64 [resamples] by row; at one place the questions are the same in all rows.
    """
    count = len(next(iter(rows.values())).per_item)
    tables = {}
    for row, marks in rows.items():
        per_item_N1 = np.array(marks.per_item)[:, None]
        tables[row] = np.array(marks.sums) if marks.sums else per_item_N1
    values: dict[int, list[float]] = {row: [] for row in rows}
    for weight_BN in _weights(count, resamples, rng):
        for row, marks in rows.items():
            sum_BK = weight_BN @ tables[row]
            if marks.sums:
                values[row] += [marks.of_sums(sum_K) for sum_K in sum_BK.tolist()]
            else:
                values[row] += (sum_BK[:, 0] / count).tolist()
    return {row: np.array(numbers) for row, numbers in values.items()}


def _weights(count: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each of `count` items is drawn: float64 [B, count], with `resamples` rows in all."""
    at_once = max(1, _ELEMENTS // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        draws_BN = rng.integers(0, count, (rows, count))
        # One count for all rows: row b has the numbers from b * count on.
        places_BN = draws_BN + count * np.arange(rows)[:, None]
        yield np.bincount(places_BN.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def interval_of(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The central interval of resampled numbers."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def summary_intervals(
    matrix: Sequence[Sequence[float | None]], values: Mapping[tuple[int, int], np.ndarray], resamples: int
) -> dict[str, Interval | None]:
    """Intervals of every metric of a matrix; None where the metric is.

    Args:
      matrix: scores, None where nothing was measured.
      values: of `cell_values`, by (row, column).
    """
    metrics = summary(matrix)
    measured = [name for name in METRICS if metrics[name] is not None]
    drawn: dict[str, list[float]] = {name: [] for name in measured}
    lists = {place: numbers.tolist() for place, numbers in values.items()}
    for draw in range(resamples if measured else 0):
        table = [list(row) for row in matrix]
        for (row, column), numbers in lists.items():
            table[row][column] = numbers[draw]
        resampled = summary(table)
        for name in measured:
            drawn[name].append(resampled[name])
    intervals: dict[str, Interval | None] = dict.fromkeys(METRICS)
    for name, numbers in drawn.items():
        intervals[name] = interval_of(np.array(numbers))
    return intervals


@dataclass(frozen=True)
class Paired:
    """Difference of two runs over the same questions, in points.

    Attributes:
      difference: mean over tasks of the mean difference over questions, left minus right.
      interval: bootstrap over questions, within tasks.
      p: two-sided, of a permutation test that swaps the two runs question by question.
      items: number of questions.
    """

    difference: float
    interval: Interval
    p: float
    items: int


def paired(
    differences: Sequence[np.ndarray], *, resamples: int, rng: np.random.Generator, permutations: int = 0
) -> Paired:
    """Tests whether two runs differ.

    Args:
      differences: left minus right by question, float64 [questions], one array a task.
      permutations: of the test, where there are to be more than `resamples`; the smallest p value is 1 in so many.
    """
    drawn = np.zeros(resamples)
    swapped = np.zeros(resamples)
    observed = 0.0
    for difference_N in differences:
        count = len(difference_N)
        share = 1 / (count * len(differences))
        observed += share * difference_N.sum()
        done = 0
        for weight_BN in _weights(count, resamples, rng):
            rows = len(weight_BN)
            sign_BN = 2.0 * rng.integers(0, 2, (rows, count)) - 1
            drawn[done : done + rows] += share * (weight_BN @ difference_N)
            swapped[done : done + rows] += share * (sign_BN @ difference_N)
            done += rows
    swapped = np.concatenate([swapped, _swapped(differences, permutations - resamples, rng)])
    # The observed assignment is one of the permutations; sums of equal numbers differ in their last bits.
    extreme = int(np.sum(np.abs(swapped) >= abs(observed) - 1e-9))
    p = (extreme + 1) / (len(swapped) + 1)
    items = sum(map(len, differences))
    return Paired(float(observed), interval_of(drawn), p, items)


def _swapped(differences: Sequence[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """Differences of the two runs after `count` swaps of them, question by question; none for a count below 1."""
    swapped = np.zeros(max(count, 0))
    for difference_N in differences:
        # Questions that both runs answer alike change nothing.
        unequal_N = difference_N[difference_N != 0]
        share = 1 / (len(difference_N) * len(differences))
        at_once = max(1, _ELEMENTS // max(1, len(unequal_N)))
        for start in range(0, len(swapped), at_once):
            rows = min(at_once, len(swapped) - start)
            is_swapped_BN = rng.integers(0, 2, (rows, len(unequal_N)), np.int8)
            swapped[start : start + rows] += share * (unequal_N.sum() - 2 * (is_swapped_BN @ unequal_N))
    return swapped


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values corrected for the number of tests (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        # A corrected value is at least that of every smaller one.
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
