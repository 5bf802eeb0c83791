"""Strict rules that stand beside those of `official`: what the task asks for, and nothing that only resembles it.

Every rule maps (answer, question) to a mark in 0-1, or None where the answer cannot be read, which counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from hidecmoe_jax.scoring import exact, official
from hidecmoe_jax.scoring.questions import Question

_NUMBERS = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_LETTER = re.compile(r"\(?([A-Z])\)?\.?")


def of_references(rule: Callable[[str, tuple[str, ...]], float | None]) -> Callable[[str, Question], float | None]:
    """A rule of an answer and its references as a rule of an answer and its question."""

    def mark(text: str, question: Question) -> float | None:
        return rule(text, question.references)

    return mark


def tidy(text: str) -> str:
    """A short answer in lower case, single blanks, without a final period."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def equal(text: str, question: Question) -> float | None:
    """Whole answers equal after `tidy`; an empty answer and one with `Unanswerable` cannot be read."""
    answer = tidy(text)
    if not answer or "Unanswerable" in text:
        return None
    return float(any(answer == tidy(reference) for reference in question.references))


def compact_equal(text: str, question: Question) -> float | None:
    """The same without any blank or period."""
    answer = tidy(text).replace(" ", "").replace(".", "")
    if not answer or "Unanswerable" in text:
        return None
    truths = [tidy(reference).replace(" ", "").replace(".", "") for reference in question.references]
    return float(answer in truths)


def gqa(text: str, question: Question) -> float | None:
    """GQA's own rule; an empty answer cannot be read."""
    return official.gqa(text.strip(), question) if text.strip() else None


def states_or_equal(text: str, question: Question) -> float | None:
    """Sci: whole answers; for a list of states the share that is right, over the longer of the two lists."""
    if official.STATES not in question.text:
        return equal(text, question)
    named = _listed(text)
    if not named:
        return None
    wanted = _listed(question.references[0])
    # Over the wanted states alone, an answer that lists every state would be right.
    return len(named & wanted) / max(len(named), len(wanted))


def _listed(text: str) -> set[str]:
    names = {tidy(name) for name in text.split(",")}
    return names - {""}


def ocr_bench(text: str, question: Question) -> float | None:
    """OCRBench's own rule, which is a substring; an empty answer cannot be read."""
    return official.ocr_bench(text, question) if text.strip() else None


def option_or_equal(text: str, question: Question) -> float | None:
    """An option letter where the reference is one (`B`, `(B)`), else whole answers."""
    letters = []
    for reference in question.references:
        bare = _LETTER.fullmatch(reference.strip().upper())
        if bare is None:
            return equal(text, question)
        letters.append(bare.group(1))
    return exact.choice(text, tuple(letters))


def math_answer(text: str, question: Question) -> float | None:
    """An option letter, or the one number of the text equal by value to the reference, or whole answers."""
    reference = question.references[0].strip()
    truth = _decimal(reference)
    if truth is None:
        return option_or_equal(text, question)
    values = {_decimal(number) for number in _NUMBERS.findall(text)}
    # Two different numbers would be two guesses.
    return float(values == {truth}) if len(values) == 1 else None


def _decimal(text: str) -> Decimal | None:
    if not _NUMBERS.fullmatch(text):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None
