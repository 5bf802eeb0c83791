"""Continual-learning metrics of a score matrix: final accuracy, average, forgetting, transfer.

R[k,i] is the test score on task i after the first k tasks were learned (k and i from 1 to T); row 0, R[0,i], is the
model before any task. In Python the matrix is a list of T + 1 rows with T cells, `matrix[k][i - 1]` = R[k,i], None (or
NaN) where nothing was measured. Each metric lists the cells it needs; if one is absent, the metric is None and
`missing` lists those cells. No mean is taken over fewer cells, because it would look like the metric and be another
number.

A method that learns everything at once (joint) fills only row T; one that never learns (zero-shot) has the single
row 0, and its Last is that row.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hidecmoe_jax.core.errors import DataError

Matrix = Sequence[Sequence[float | None]]


def summary(matrix: Matrix) -> dict[str, Any]:
    """Returns every metric of `METRICS` for one run's matrix.

    Returns a dict with, in points (the formulas are at the functions of `_FORMULAS`):
      last: final accuracy.
      avg: average over the rows of each task.
      maa: mean average accuracy.
      mft: mean fine-tuned accuracy, each task right after it was learned.
      bwt_t_minus_1, bwt_t: backward transfer, divided by T - 1 or by T.
      forgetting: loss since the best row; positive is bad.
      fwt: forward transfer.
      missing: {metric: [cell or reason, ...]} for every metric that is None.

    Raises:
      DataError: rows of unequal length, no task, or a number of rows that is neither 1 nor T + 1.
    """
    tasks = _check(matrix)
    metrics: dict[str, float | None] = {}
    missing: dict[str, list[str]] = {}
    for name, formula in _FORMULAS.items():
        metrics[name] = None
        if tasks == 1 and name in _BETWEEN_TASKS:
            missing[name] = ["at least two tasks"]
            continue
        reader = _ScoreReader(matrix, tasks)
        value = formula(reader)
        if reader.absent:
            missing[name] = sorted(set(reader.absent))
        else:
            metrics[name] = value
    return {**metrics, "missing": missing}


def mean_and_spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Returns the mean and sample standard deviation of each number over seeds.

    Args:
      rows: one dict per seed, for instance of `summary`; entries that are neither numbers nor None are left out.

    Returns {key: {"mean", "std", "n"}}. Both are None if any seed lacks the number (a mean over fewer seeds would be
    another statistic); the std is also None for a single seed.

    Raises:
      DataError: no rows, or rows with different keys.
    """
    if not rows:
        raise DataError("No seeds to average", remedy="run at least one seed")
    names = set(rows[0])
    for row in rows[1:]:
        if set(row) != names:
            unshared = sorted(set(row) ^ names)
            raise DataError(
                "Seeds report different numbers",
                why=f"only in some: {', '.join(unshared)}",
                remedy="evaluate all seeds with the same version and the same flags",
            )
    spread: dict[str, dict[str, float | int | None]] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        # Entries such as `missing` are no numbers and have no mean.
        if all(value is None or _is_number(value) for value in values):
            spread[key] = _spread(values)
    return spread


def _spread(values: list) -> dict[str, float | int | None]:
    mean = None
    std = None
    if not any(map(_absent, values)):
        mean = statistics.fmean(values)
        if len(values) > 1:
            std = statistics.stdev(values)
    return {"mean": mean, "std": std, "n": len(values)}


def mean_matrix(matrices: Sequence[Matrix]) -> list[list[float | None]]:
    """Returns the cell-by-cell mean of matrices of equal shape; a cell that any of them lacks is None.

    Raises:
      DataError: the shapes differ.
    """
    shapes = set()
    for matrix in matrices:
        shape = (len(matrix), len(matrix[0]))
        shapes.add(shape)
    if len(shapes) != 1:
        raise DataError(
            "Matrices of different shapes cannot be averaged",
            why=f"shapes {sorted(shapes)}",
            remedy="give every seed the same tasks",
        )
    averaged = []
    for rows in zip(*matrices, strict=True):
        # Column by column: `cells` holds the same cell of every matrix.
        columns = zip(*rows, strict=True)
        averaged.append([_mean_or_none(cells) for cells in columns])
    return averaged


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None and not _absent(value)]
    return statistics.fmean(present) if len(present) == len(values) else None


@dataclass
class _ScoreReader:
    """Reader of R[k,i] that records absent cells, so that one evaluation of a formula lists every cell it lacks."""

    matrix: Matrix
    tasks: int
    absent: list[str] = field(default_factory=list)

    def score(self, row: int, task: int) -> float:
        """R[row,task]; 0 for an absent cell, which is recorded."""
        value = None
        if row < len(self.matrix):
            value = self.matrix[row][task - 1]
        if value is not None and not _absent(value):
            return float(value)
        self.absent.append(f"R[{row},{task}]")
        # Any number will do: the caller drops a value that was computed from an absent cell.
        return 0.0

    def in_row(self, row: int, tasks: range) -> list[float]:
        """Scores of several tasks in one row."""
        return [self.score(row, task) for task in tasks]

    def in_column(self, task: int, rows: range) -> list[float]:
        """Scores of one task in several rows."""
        return [self.score(row, task) for row in rows]

    def diagonal(self) -> list[float]:
        """Score of every task right after it was learned."""
        return [self.score(task, task) for task in _range(1, self.tasks)]


def _last(r: _ScoreReader) -> float:
    """Final accuracy: mean of R[T,i] (also called MFN, mean final accuracy)."""
    # A zero-shot matrix has the single row 0, which is its last one.
    final = len(r.matrix) - 1
    scores = r.in_row(final, _range(1, r.tasks))
    return statistics.fmean(scores)


def _avg(r: _ScoreReader) -> float:
    """Average accuracy: per task i the mean of R[k,i] over rows k >= i, then the mean over tasks.

    Inferred from the tables of HiDe and UCIT.
    """
    means = []
    for task in _range(1, r.tasks):
        scores = r.in_column(task, _range(task, r.tasks))
        means.append(statistics.fmean(scores))
    return statistics.fmean(means)


def _maa(r: _ScoreReader) -> float:
    """Mean average accuracy: per row k the mean of R[k,i] over i <= k, then the mean over rows (CoIN, MCITlib)."""
    means = []
    for row in _range(1, r.tasks):
        scores = r.in_row(row, _range(1, row))
        means.append(statistics.fmean(scores))
    return statistics.fmean(means)


def _mft(r: _ScoreReader) -> float:
    """Mean fine-tuned accuracy: mean of R[i,i], each task right after it was learned."""
    return statistics.fmean(r.diagonal())


def _changes(r: _ScoreReader, tasks: range) -> list[float]:
    """How much the score of each task changed from its own row to the last one: R[T,i] - R[i,i]."""
    return [r.score(r.tasks, task) - r.score(task, task) for task in tasks]


def _bwt_t_minus_1(r: _ScoreReader) -> float:
    """Backward transfer: sum over i < T of R[T,i] - R[i,i], divided by T - 1 (MCITlib)."""
    changes = _changes(r, _range(1, r.tasks - 1))
    return statistics.fmean(changes)


def _bwt_t(r: _ScoreReader) -> float:
    """Backward transfer: the same sum divided by T, which is last - mft (CoIN)."""
    # The last task is included: it changes by 0 and only makes the divisor T.
    changes = _changes(r, _range(1, r.tasks))
    return statistics.fmean(changes)


def _forgetting(r: _ScoreReader) -> float:
    """Forgetting: mean over i < T of max R[k,i] over i <= k < T, minus R[T,i]; positive is bad.

    Chaudhry et al. 2018, arXiv 1801.10112; the maximum starts where the task has been learned.
    """
    losses = []
    for task in _range(1, r.tasks - 1):
        # Over the rows from the task's own to the last but one, as published.
        scores = r.in_column(task, _range(task, r.tasks - 1))
        final = r.score(r.tasks, task)
        losses.append(max(scores) - final)
    return statistics.fmean(losses)


def _fwt(r: _ScoreReader) -> float:
    """Forward transfer: mean over i >= 2 of R[i-1,i] - R[0,i] (Lopez-Paz and Ranzato 2017, arXiv 1706.08840)."""
    gains = []
    for task in _range(2, r.tasks):
        # Just before the task is learned, against the model before any task.
        before = r.score(task - 1, task)
        zero_shot = r.score(0, task)
        gains.append(before - zero_shot)
    return statistics.fmean(gains)


_FORMULAS = {
    "last": _last,
    "avg": _avg,
    "maa": _maa,
    "mft": _mft,
    "bwt_t_minus_1": _bwt_t_minus_1,
    "bwt_t": _bwt_t,
    "forgetting": _forgetting,
    "fwt": _fwt,
}
METRICS = tuple(_FORMULAS)
_BETWEEN_TASKS = frozenset({"bwt_t_minus_1", "forgetting", "fwt"})


def _check(matrix: Matrix) -> int:
    """Number of tasks of a matrix whose shape is right."""
    widths = {len(row) for row in matrix}
    if len(widths) != 1 or widths == {0}:
        raise DataError(
            "The score matrix is not rectangular",
            why=f"rows of {sorted(widths)} cells",
            remedy="one row for zero-shot and one per task, each with a cell (or None) per task",
        )
    tasks = widths.pop()
    if len(matrix) not in (1, tasks + 1):
        raise DataError(
            "The score matrix has a wrong number of rows",
            why=f"{len(matrix)} rows for {tasks} tasks, expected {tasks + 1} (or 1: zero-shot only)",
            remedy="fill rows that were not measured with None",
        )
    return tasks


def _absent(value: object) -> bool:
    # NaN comes from matrices that were read from numpy files.
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(first: int, last: int) -> range:
    """From `first` to `last`, both included, as the formulas are written."""
    return range(first, last + 1)
