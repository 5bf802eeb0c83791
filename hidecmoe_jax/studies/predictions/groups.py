"""Runs beside each other: seeds and orders of one method as mean and spread, paired tests between methods."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hidecmoe_jax.scoring.bootstrap import holm, paired
from hidecmoe_jax.scoring.matrix import METRICS, mean_and_spread, summary
from hidecmoe_jax.studies.predictions.scored import Scored

PERMUTATIONS = 100  # for every pair, if that is more than the draws: the smallest corrected p is then 0.01


def spread_rows(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """One row a method: its runs, their orders of tasks, and mean and deviation of every metric over them.

    A metric that one run lacks has no mean: over fewer runs it would be another number.
    """
    rows = []
    for method, runs in _by_method(scored).items():
        metrics = []
        for run in runs:
            numbers = summary(run.matrix())
            metrics.append({name: numbers[name] for name in METRICS})
        orders = {tuple(task.name for task in run.source.tasks) for run in runs}
        rows.append({
            "method": method,
            "runs": [run.source.label for run in runs],
            "seeds": sorted({run.source.seed for run in runs if run.source.seed is not None}),
            "orders": [list(order) for order in sorted(orders)],
            "metrics": mean_and_spread(metrics),
        })  # fmt: skip
    return rows


def _by_method(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    groups: dict[str, list[Scored]] = {}
    for run in scored:
        groups.setdefault(run.source.method, []).append(run)
    return groups


def paired_rows(scored: Sequence[Scored], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """One row for every two methods: difference of their final scores over the same questions, and its p value.

    A method with several runs has the mean of their marks, question by question. The more pairs, the more permutations:
    the correction multiplies p values by up to the number of pairs, and none is smaller than 1 in all permutations.
    """
    rows = []
    pairs = list(itertools.combinations(_by_method(scored).items(), 2))
    for (left, left_runs), (right, right_runs) in pairs:
        row: dict[str, Any] = {"left": left, "right": right, "reason": ""}
        left_marks = _final_marks(left_runs)
        right_marks = _final_marks(right_runs)
        row["reason"] = _why_not(left_marks, right_marks)
        if not row["reason"]:
            differences = [left_marks[name][1] - right_marks[name][1] for name in left_marks]
            rng = np.random.default_rng([seed, zlib.crc32(f"{left}/{right}".encode())])
            test = paired(differences, resamples=resamples, rng=rng, permutations=PERMUTATIONS * len(pairs))
            row |= {"difference": test.difference, "interval": list(test.interval), "p": test.p, "items": test.items}
            row["tasks"] = {name: float(np.mean(left_marks[name][1] - right_marks[name][1])) for name in left_marks}
        rows.append(row)
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return rows


Marks = dict[str, tuple[tuple[str, ...], np.ndarray]]


def _final_marks(runs: Sequence[Scored]) -> Marks | None:
    """Ids and marks of the last row by task, averaged over runs; None where a run lacks a cell of its last row."""
    sums: Marks = {}
    names = {frozenset(task.name for task in run.source.tasks) for run in runs}
    if len(names) > 1:
        return None
    for run in runs:
        row = run.last_row
        for column, task in enumerate(run.source.tasks):
            cell = run.cells.get((row, column))
            if cell is None:
                return None
            ids = tuple(question.id for question in task.asked.questions)
            mark_N = np.array(cell.score.strict.per_item) / len(runs)
            if task.name in sums:
                if sums[task.name][0] != ids:
                    return None
                mark_N = mark_N + sums[task.name][1]
            sums[task.name] = (ids, mark_N)
    return sums


def _why_not(left: Marks | None, right: Marks | None) -> str:
    """Why two methods cannot be compared question by question."""
    if left is None or right is None:
        return "a run lacks a cell of its last row, or runs of one method have other questions"
    if set(left) != set(right):
        return "they have other tasks"
    for name in left:
        if left[name][0] != right[name][0]:
            return f"they have other questions of {name}"
    return ""
