"""What rows of a run must be, worked out from one pass over the final model."""

from collections.abc import Sequence

import numpy as np


def staged_matrix(scores: Sequence[np.ndarray], points: Sequence[np.ndarray]) -> list[list[float]]:
    """Rows 1..T of the matrix, for methods whose old parts never change.

    With frozen routers an item's score under a task's router is a fact, and after task j the item goes to the best of
    the first j tasks (LLaVA-CMoE's specification, section 3).

    Args:
      scores: for every task its items' locator scores [M, T], higher is nearer.
      points: for every task what its items score under every task's router [M, T].
    """
    return [
        [
            float(np.take_along_axis(point, score[:, :stage].argmax(axis=1)[:, None], axis=1).mean())
            for score, point in zip(scores, points, strict=True)
        ]
        for stage in range(1, len(scores) + 1)
    ]
