"""How near an input is to its nearest task, in words that hold for every gate, with the numbers behind them.

Scores of gates have different scales (cosines, log densities, reconstruction errors), and not every gate has
thresholds. The task's own test questions are a scale that all have: an input that scores like them fits well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hidecmoe_jax.evaluate.answer import Finding
from hidecmoe_jax.methods.gates.unknown import UNREACHED

Word = Literal["well", "barely", "not at all"]
BARELY = 0.1  # an input fits barely where a smaller part of the task's own test questions score lower
ROUNDING = 1e-5  # a question that is asked again scores the same up to this


@dataclass(frozen=True)
class Fit:
    """How near an input is to its nearest task.

    Attributes:
      task: name of the nearest task.
      word: `not at all` below the threshold, or below every one of the task's own test questions where there is no
        threshold; `barely` where fewer than a tenth of these score lower; otherwise `well`. None where neither a
        threshold decides nor own scores are available.
      score: the gate's score, higher is nearer; its scale is the gate's own.
      threshold: score below which an input is unknown to the task; None where the gate has none for such an input.
      own: number of the task's own test questions that the score was compared with.
      lower: part of these that score lower, 0 to 1; None without any.
    """

    task: str
    word: Word | None
    score: float
    threshold: float | None
    own: int
    lower: float | None

    def __str__(self) -> str:
        numbers = [f"score {self.score:.3f}"]
        if self.threshold is not None:
            numbers.append(f"threshold {self.threshold:.3f}")
        if self.lower is None:
            numbers.append("no answers to its own test questions to compare with")
        else:
            numbers.append(f"{100 * self.lower:.0f} % of its own {self.own} test questions score lower")
        word = "not compared" if self.word is None else self.word
        return f"fits {self.task}: {word} ({', '.join(numbers)})"


def fit_of(finding: Finding, task: str, own_scores: Sequence[float] = ()) -> Fit:
    """How near an input is to the task that `finding` names as nearest.

    Args:
      task: name of that task.
      own_scores: scores of the task's own test questions by the same gate; may be empty.
    """
    threshold = finding.threshold
    if threshold is not None and threshold >= UNREACHED:
        threshold = None
    margin = ROUNDING * max(1.0, abs(finding.score))
    lower = None
    if own_scores:
        count = sum(score < finding.score - margin for score in own_scores)
        lower = count / len(own_scores)
    word = _word(finding, threshold, own_scores, margin, lower)
    return Fit(task, word, finding.score, threshold, len(own_scores), lower)


def _word(
    finding: Finding, threshold: float | None, own_scores: Sequence[float], margin: float, lower: float | None
) -> Word | None:
    """The word for a score, as `Fit` defines it."""
    if finding.unknown:
        return "not at all"
    if lower is None:
        return None
    below_all = finding.score < min(own_scores) - margin
    if below_all and threshold is None:
        return "not at all"
    return "barely" if lower < BARELY else "well"
