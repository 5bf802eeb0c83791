"""Lines of a result file joined with the questions of a test file, and a count of everything that does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hidecmoe_jax.scoring.questions import Question

Line = tuple[str, str]  # (question id, answer)


@dataclass(frozen=True)
class Joined:
    """Answers in the order of the questions.

    Attributes:
      texts: answer of every question; None where the file has none, or several that differ.
      missing: ids of questions without a line.
      extra: ids of lines without a question.
      duplicated: ids with more than one line; `conflicting` are those among them whose answers differ.
      misordered: number of lines that stand where the test file has another question; scripts that match by position
        compare those with a wrong answer.
    """

    texts: tuple[str | None, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    duplicated: tuple[str, ...]
    conflicting: tuple[str, ...]
    misordered: int

    def counts(self) -> dict[str, int]:
        """Number of each kind, by name."""
        return {
            "missing": len(self.missing),
            "extra": len(self.extra),
            "duplicated": len(self.duplicated),
            "conflicting": len(self.conflicting),
            "misordered": self.misordered,
        }


def join(lines: Sequence[Line], questions: Sequence[Question]) -> Joined:
    """Joins by id. A question with several lines has an answer only where they agree."""
    answers: dict[str, list[str]] = {}
    for name, text in lines:
        answers.setdefault(name, []).append(text)
    texts = []
    missing = []
    for question in questions:
        of_question = answers.get(question.id, [])
        if not of_question:
            missing.append(question.id)
        texts.append(of_question[0] if len(set(of_question)) == 1 else None)
    known = {question.id for question in questions}
    duplicated = [name for name, of_question in answers.items() if len(of_question) > 1]
    return Joined(
        texts=tuple(texts),
        missing=tuple(missing),
        extra=tuple(name for name in answers if name not in known),
        duplicated=tuple(duplicated),
        conflicting=tuple(name for name in duplicated if len(set(answers[name])) > 1),
        misordered=_misordered(lines, questions),
    )


def _misordered(lines: Sequence[Line], questions: Sequence[Question]) -> int:
    """Lines whose place holds another question, or none, in the test file."""
    names = [question.id for question in questions]
    count = 0
    for place, (name, _) in enumerate(lines):
        if place >= len(names) or names[place] != name:
            count += 1
    return count
