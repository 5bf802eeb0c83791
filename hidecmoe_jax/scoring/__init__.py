"""Scoring: from answers to one number a task, and from a matrix of those numbers to continual metrics.

`score(name, predictions, references)` joins by id and refuses anything it would have to guess; `SCORERS` says which
rules exist. `matrix.summary` turns the scores of all stages into Last, Avg, forgetting and the rest, and answers None
where a needed cell was never measured.
"""

from hidecmoe_jax.scoring.matrix import mean_and_spread, summary
from hidecmoe_jax.scoring.score import SCORERS, Score, Scorer, by_id, score

__all__ = ["SCORERS", "Score", "Scorer", "by_id", "mean_and_spread", "score", "summary"]
