"""Marks of one result file under one rule: the score, a number for every item, and what a bootstrap resamples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hidecmoe_jax.scoring import captions
from hidecmoe_jax.scoring.questions import Question
from hidecmoe_jax.scoring.score import Scorer

ItemRule = Callable[[str, Question], float | None]


@dataclass(frozen=True)
class Marks:
    """Score of answers to questions.

    Attributes:
      value: the score, 0-100 (captions may exceed 100).
      per_item: the same for every item, in the order of the answers.
      unparsed: answers that the rule could not read; each counts as wrong.
      parts: further numbers by name.
      sums: what every item adds to the score, one row an item; empty where the score is the mean of `per_item`.
    """

    value: float
    per_item: tuple[float, ...]
    unparsed: int
    parts: dict[str, float] = field(default_factory=dict)
    sums: tuple[tuple[float, ...], ...] = ()

    def of_sums(self, sums: Sequence[float]) -> float:
        """The score of a corpus whose rows of `sums` add up to `sums`."""
        parts = captions.parts_of_sums(sums, len(self.sums))
        return sum(parts.values()) / len(parts)


Judge = Callable[[Sequence[str | None], Sequence[Question]], Marks]


def by_items(rule: ItemRule, *, divisor: int | None = None) -> Judge:
    """Marks of a rule that looks at one item at a time; without an answer an item has 0.

    Args:
      divisor: what the sum is divided by, in place of the number of items.
    """

    def judge(texts: Sequence[str | None], questions: Sequence[Question]) -> Marks:
        per_item = []
        unparsed = 0
        for text, question in zip(texts, questions, strict=True):
            mark = None if text is None else rule(text, question)
            # A missing answer is counted where files are joined, not here.
            unparsed += text is not None and mark is None
            per_item.append(100.0 * (mark or 0.0))
        total = sum(per_item)
        return Marks(total / (divisor or len(per_item) or 1), tuple(per_item), unparsed)

    return judge


def caption_marks(texts: Sequence[str | None], questions: Sequence[Question]) -> Marks:
    """Marks of `caption6`; items without a reference cannot be compared and are refused."""
    answers = ["" if text is None else text for text in texts]
    references = [question.references for question in questions]
    rows = captions.sums_of_items(answers, references)
    scored = captions.score_of_rows(rows)
    empty = sum(text is not None and not captions.tokenize(text) for text in texts)
    return Marks(scored.value, scored.per_item, empty, scored.parts, tuple(map(tuple, rows)))


def by_scorer(scorer: Scorer) -> Judge:
    """Marks of a scorer from outside the package; a missing answer is an empty text to it."""

    def judge(texts: Sequence[str | None], questions: Sequence[Question]) -> Marks:
        predictions = {}
        references = {}
        for text, question in zip(texts, questions, strict=True):
            predictions[question.id] = text or ""
            references[question.id] = question.references
        score = scorer(predictions, references)
        missing = sum(text is None for text in texts)
        return Marks(score.value, tuple(score.per_item.values()), max(0, score.unparsed - missing), score.parts)

    return judge
