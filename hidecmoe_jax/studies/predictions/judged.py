"""Ratings of a judge for the last row of every scored run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hidecmoe_jax.scoring.judge import Cache, Endpoint, judge_answers
from hidecmoe_jax.studies.predictions.scored import Scored


def judged_rows(scored: Iterable[Scored], endpoint: Endpoint, cache: Cache) -> list[dict[str, Any]]:
    """One row for every cell of the last rows; `score` is null where a reply held no rating.

    Raises:
      ResourceError, DataError: as `judge_answers` and `Cache.read`.
    """
    cache.read()
    rows = []
    for run in scored:
        for (row, column), cell in sorted(run.cells.items()):
            if row != run.last_row:
                continue
            task = run.source.tasks[column]
            judged = judge_answers(endpoint, cache, cell.score.joined.texts, task.asked.questions)
            unrated = sum(rating is None for rating in judged.ratings)
            rows.append({
                "label": run.source.label, "row": row, "task": task.name, "score": judged.score,
                "rated": len(judged.ratings) - unrated, "unrated": unrated, "cached": judged.cached,
                "judge": endpoint.model,
            })  # fmt: skip
    return rows
