"""Spearman's rank correlation of shared answers with scores: do tasks score better where later tasks share answers?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1 on [N]; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means = last - (counts - 1) / 2
    return means[inverse.reshape(-1)]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation, -1 to 1; None below three pairs, or where one side is constant."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def overlap_correlation(
    overlap: Sequence[Sequence[float]], matrix: Sequence[Sequence[float | None]], lessons: Sequence[int]
) -> dict[str, float | int | None]:
    """Correlates shared answers with the scores of a run.

    Args:
      overlap: [T][T] shares, rows the tested task, columns the trained one.
      matrix: scores R[k][i], row 0 zero-shot.
      lessons: task learned before each row from 1 on.

    Returns:
      `scores`: of the share of task i's answers that lesson k teaches with R[k, i]; `changes`: the same with
      R[k, i] - R[k-1, i], for tasks that were learned before; `cells`, `changed`: number of pairs of each. Cells of a
      task's own lesson are left out.
    """
    shares = []
    scores = []
    earlier_shares = []
    changes = []
    for row, taught in enumerate(lessons, start=1):
        for task, score in enumerate(matrix[row]):
            if task == taught or score is None:
                continue
            shares.append(overlap[task][taught])
            scores.append(score)
            before = matrix[row - 1][task]
            if task in lessons[: row - 1] and before is not None:
                earlier_shares.append(overlap[task][taught])
                changes.append(score - before)
    return {
        "scores": spearman(shares, scores),
        "cells": len(scores),
        "changes": spearman(earlier_shares, changes),
        "changed": len(changes),
    }
