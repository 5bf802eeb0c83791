"""Which answers of a task are worth a look: its confusions, most frequent first, and questions of many classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

RIGHT = 100.0  # the score of a right answer


@dataclass(frozen=True)
class Judged:
    """One answered question.

    Attributes:
      expected: its first reference answer.
      answered: the model's text.
      score: of this answer alone, in points; 100 is right.
    """

    expected: str
    answered: str
    score: float

    @property
    def right(self) -> bool:
        """Whether the answer has full marks."""
        return self.score >= RIGHT

    @property
    def pair(self) -> tuple[str, str]:
        """Expected and answered text, alike where they differ by capitals or outer white space alone."""
        return _folded(self.expected), _folded(self.answered)


def confusions(answers: Sequence[Judged], most: int = 10) -> list[dict[str, str | int]]:
    """The most frequent wrong answers as {"expected", "answered", "count"}, most frequent first."""
    spelled: dict[tuple[str, str], Judged] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for answer in answers:
        if not answer.right:
            counts[answer.pair] += 1
            # The first spelling stands for all of them.
            spelled.setdefault(answer.pair, answer)
    rows = []
    # Equal counts keep the order of the questions.
    for pair, count in counts.most_common(most):
        answer = spelled[pair]
        rows.append({"expected": answer.expected.strip(), "answered": answer.answered.strip(), "count": count})
    return rows


def worth_showing(answers: Sequence[Judged], most: int) -> list[int]:
    """Places of up to `most` answers: wrong ones, the most frequent confusions first, then right ones of many classes.

    At most three quarters of the places are for wrong answers, as long as there are right ones.
    """
    wrong = [place for place, answer in enumerate(answers) if not answer.right]
    right = [place for place, answer in enumerate(answers) if answer.right]
    wrong = _in_turn(wrong, [answers[place].pair for place in wrong])
    right = _in_turn(right, [_folded(answers[place].expected) for place in right])
    most_wrong = max(most - len(right), most * 3 // 4)
    shown = wrong[:most_wrong]
    return [*shown, *right[: most - len(shown)]]


def worst_first(scores: Sequence[float], most: int) -> list[int]:
    """Places of up to `most` answers by their scores, the lowest first, of a scale without an upper end."""
    return sorted(range(len(scores)), key=lambda place: scores[place])[:most]


def of_many_classes(classes: Iterable[str], most: int) -> list[int]:
    """Places of up to `most` questions whose classes change from one to the next."""
    folded = [_folded(name) for name in classes]
    return _in_turn(list(range(len(folded))), folded)[:most]


def _in_turn(places: Sequence[int], kinds: Sequence[Hashable]) -> list[int]:
    """Places ordered so that each kind has its first turn before any has its second; frequent kinds come first."""
    counts = Counter(kinds)
    order = {kind: rank for rank, (kind, _) in enumerate(counts.most_common())}
    turns: Counter[Hashable] = Counter()
    ranked = []
    for place, kind in zip(places, kinds, strict=True):
        ranked.append((turns[kind], order[kind], place))
        turns[kind] += 1
    return [place for _, _, place in sorted(ranked)]


def _folded(text: str) -> str:
    return text.strip().casefold()
