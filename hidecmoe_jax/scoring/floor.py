"""Score of a constant answer: what a model reaches that has learned nothing of a task but its most frequent answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hidecmoe_jax.scoring.score import References, score

# A rule may take several spellings for equal, so the most frequent text alone need not be the best constant answer.
CANDIDATES = 3


@dataclass(frozen=True)
class Floor:
    """A constant answer and its score under a task's own scorer, 0-100 (`caption6` as in `captions`)."""

    answer: str
    score: float


def floor_of(scorer: str, references: References) -> Floor:
    """The best of the most frequent reference answers, given to every question.

    Args:
      scorer: a key of `SCORERS`.
      references: one or more accepted answers by id.

    Raises:
      ConfigError, DataError: as `score`.
    """
    counts: Counter[str] = Counter()
    for texts in references.values():
        # An answer that a question accepts twice still counts for one question; the order of equal counts is kept.
        counts.update(dict.fromkeys(texts, 1))
    best = Floor("", 0.0)
    for answer, _ in counts.most_common(CANDIDATES):
        constant = dict.fromkeys(references, answer)
        value = score(scorer, constant, references).value
        if not best.answer or value > best.score:
            best = Floor(answer, value)
    return best
