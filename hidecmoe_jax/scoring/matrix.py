"""Continual metrics from the matrix of scores: what was learned, what was kept, what was lost.

R[k,i] is the test score on task i after training stage k (both from 1 to T); R[0,i] is the model before any task. In
Python the matrix is a list of T + 1 rows with T cells, `matrix[k][i - 1]` = R[k,i], None (or NaN) where nothing was
measured. Each metric names the cells it needs; if one is absent the metric is None and listed under `missing` with
those cells. It is never averaged over fewer cells, because such a mean looks like a score and is none.

A method that learns everything at once (joint) fills only row T; one that never learns (zero-shot) has the single
row 0, and its Last is that row.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hidecmoe_jax.core.errors import DataError

Matrix = Sequence[Sequence[float | None]]
METRICS = ("last", "avg", "maa", "mft", "bwt_t_minus_1", "bwt_t", "forgetting", "fwt")


def summary(matrix: Matrix) -> dict[str, object]:
    """Computes every metric of `METRICS` from one run's matrix.

    Returns a dict with, in points:
      last: mean of R[T,i] (also called MFN, final average accuracy).
      avg: per task the mean of R[k,i] over stages k >= i, then the mean over tasks (HiDe and UCIT tables; inferred).
      maa: per stage k the mean of R[k,i] over i <= k, then the mean over stages (CoIN, MCITlib).
      mft: mean of R[i,i], each task right after it was learned.
      bwt_t_minus_1: sum over i < T of R[T,i] - R[i,i], divided by T - 1 (MCITlib).
      bwt_t: the same sum divided by T, which is last - mft (CoIN).
      forgetting: mean over i < T of max R[j,i] over i <= j < T, minus R[T,i]; positive is bad (Chaudhry et al. 2018,
        arXiv 1801.10112; the maximum starts where the task has been learned).
      fwt: mean over i >= 2 of R[i-1,i] - R[0,i] (Lopez-Paz and Ranzato 2017, arXiv 1706.08840).
      missing: {metric: [cell or reason, ...]} for every metric that is None.

    Raises:
      DataError: rows of unequal length, no task, or a number of rows that is neither 1 nor T + 1.
    """
    tasks = _check(matrix)
    found: dict[str, float | None] = {}
    missing: dict[str, list[str]] = {}
    for name, formula in _FORMULAS.items():
        cells = _Cells(matrix, tasks)
        alone = tasks == 1 and name in _BETWEEN_TASKS
        value = None if alone else formula(cells)
        if alone or cells.absent:
            missing[name] = ["at least two tasks"] if alone else sorted(set(cells.absent))
        found[name] = None if name in missing else value
    return {**found, "missing": missing}


def mean_and_spread(rows: Sequence[Mapping[str, object]]) -> dict[str, dict[str, float | int | None]]:
    """Mean and sample standard deviation of each number over seeds.

    Args:
      rows: one dict a seed, for instance `summary`'s; entries that are neither numbers nor None are left out.

    Returns {key: {"mean", "std", "n"}}. The mean is None if any seed lacks the number (a mean over fewer seeds would
    be another statistic); the std is None as well then, and with a single seed.

    Raises:
      DataError: no rows, or rows with different keys.
    """
    if not rows:
        raise DataError("No seeds to average", remedy="run at least one seed")
    for row in rows[1:]:
        if set(row) != set(rows[0]):
            odd = ", ".join(sorted(set(row) ^ set(rows[0])))
            raise DataError(
                "Seeds report different numbers",
                why=f"only in some: {odd}",
                remedy="evaluate all seeds with the same version and the same flags",
            )
    spread: dict[str, dict[str, float | int | None]] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if not all(value is None or _is_number(value) for value in values):
            continue
        whole = not any(_absent(value) for value in values)
        spread[key] = {
            "mean": statistics.fmean(values) if whole else None,
            "std": statistics.stdev(values) if whole and len(values) > 1 else None,
            "n": len(values),
        }
    return spread


def mean_matrix(matrices: Sequence[Matrix]) -> list[list[float | None]]:
    """Averages matrices of equal shape cell by cell; a cell that any of them lacks is None."""
    shapes = {(len(matrix), len(matrix[0])) for matrix in matrices}
    if len(shapes) != 1:
        raise DataError(
            "Matrices of different shapes cannot be averaged",
            why=f"shapes {sorted(shapes)}",
            remedy="give every seed the same tasks",
        )
    return [
        [
            None if any(_absent(value) for value in cells) else statistics.fmean(cells)
            for cells in zip(*rows, strict=True)
        ]
        for rows in zip(*matrices, strict=True)
    ]


@dataclass(frozen=True)
class _Cells:
    """Reads R[k,i] and notes what is absent, so that one pass over a formula finds every cell it needs."""

    matrix: Matrix
    tasks: int
    absent: list[str] = field(default_factory=list)

    def __call__(self, stage: int, task: int) -> float:
        if stage < len(self.matrix) and not _absent(self.matrix[stage][task - 1]):
            return float(self.matrix[stage][task - 1])
        self.absent.append(f"R[{stage},{task}]")
        # Any number does: a value computed from an absent cell is dropped by the caller.
        return 0.0


def _last(r: _Cells) -> float:
    final = len(r.matrix) - 1
    return _mean(r(final, task) for task in _range(1, r.tasks))


def _avg(r: _Cells) -> float:
    return _mean(_mean(r(stage, task) for stage in _range(task, r.tasks)) for task in _range(1, r.tasks))


def _maa(r: _Cells) -> float:
    return _mean(_mean(r(stage, task) for task in _range(1, stage)) for stage in _range(1, r.tasks))


def _mft(r: _Cells) -> float:
    return _mean(r(task, task) for task in _range(1, r.tasks))


def _bwt_t(r: _Cells) -> float:
    return _mean(r(r.tasks, task) - r(task, task) for task in _range(1, r.tasks))


def _bwt_t_minus_1(r: _Cells) -> float:
    return _mean(r(r.tasks, task) - r(task, task) for task in _range(1, r.tasks - 1))


def _forgetting(r: _Cells) -> float:
    return _mean(
        max([r(stage, task) for stage in _range(task, r.tasks - 1)]) - r(r.tasks, task)
        for task in _range(1, r.tasks - 1)
    )


def _fwt(r: _Cells) -> float:
    return _mean(r(task - 1, task) - r(0, task) for task in _range(2, r.tasks))


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
_BETWEEN_TASKS = frozenset({"bwt_t_minus_1", "forgetting", "fwt"})


def _check(matrix: Matrix) -> int:
    widths = {len(row) for row in matrix}
    if len(widths) != 1 or widths == {0}:
        raise DataError(
            "The score matrix is not rectangular",
            why=f"rows of {sorted(widths)} cells",
            remedy="one row for zero-shot and one a stage, each with a cell (or None) a task",
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
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mean(values) -> float:
    return statistics.fmean(values)


def _range(first: int, last: int) -> range:
    return range(first, last + 1)
