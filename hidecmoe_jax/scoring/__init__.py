"""Scoring: one number per task from answers, and continual-learning metrics from the matrix of those numbers.

`score(name, predictions, references)` joins by id and refuses missing, extra and unreadable items; `SCORERS` lists the
rules. `matrix.summary` turns the scores of all rows into Last, Avg, forgetting and others, and returns None where a
cell that a metric needs was not measured.
"""

from hidecmoe_jax.scoring.matrix import mean_and_spread, summary
from hidecmoe_jax.scoring.score import SCORERS, Score, Scorer, by_id, score

__all__ = ["SCORERS", "Score", "Scorer", "by_id", "mean_and_spread", "score", "summary"]
