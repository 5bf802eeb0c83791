"""Rules that judge one short answer: whole-string equality, option letters, numbers, and two lenient relatives.

Every rule maps an answer and its references to 1.0 (right), 0.0 (wrong) or None (the answer could not be read; it
counts as wrong and is reported in a column of its own). A reference that the rule itself cannot read is the data's
fault and raises. No rule strips punctuation unless it says so: leniency that is not written down is how shared
evaluators came to count "normal tissue" as a correct "no".
"""

from __future__ import annotations

import re
from decimal import Decimal

from hidecmoe_jax.core.errors import DataError

_CHOICE = re.compile(r"([A-Za-z])$|([A-Za-z])\.(?:\s|$)|\(([A-Za-z])\)")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def exact(prediction: str, references: tuple[str, ...]) -> float | None:
    """Whole-string equality, case-insensitive, after stripping outer white space (the rule of the UCIT benchmark).

    Nothing else is normalised: "cat." is not "cat", because the official comparison keeps the period and a model
    that learned the answer format does not write one. An empty answer is unparsed.
    """
    answer = prediction.strip().upper()
    if not answer:
        return None
    return float(any(answer == reference.strip().upper() for reference in references))


def contains(prediction: str, references: tuple[str, ...]) -> float | None:
    """Case-insensitive substring, the rule of several published evaluators; never a headline.

    It calls "normal tissue" a right answer where "no" was asked for. An empty answer is unparsed.
    """
    answer = prediction.strip().lower()
    if not answer:
        return None
    return float(any(reference.strip().lower() in answer for reference in references))


def either_contains(prediction: str, references: tuple[str, ...]) -> float:
    """Case-sensitive substring in either direction, CoIN's ImageNet rule; only to compare with published numbers.

    The empty answer is part of every reference and so always right; that defect is the point of keeping the rule.
    """
    return float(any(reference in prediction or prediction in reference for reference in references))


def choice(prediction: str, references: tuple[str, ...]) -> float | None:
    """Compares option letters: a bare letter, or a prefix "X." or "(X)", in either case.

    Anything else ("A dog", "the answer is B") is unparsed, where lenient parsers find a letter in any sentence.
    """
    letter = _letter(prediction)
    if letter is None:
        return None
    expected = {_readable(_letter(reference), reference, rule="choice") for reference in references}
    return float(letter in expected)


def number(prediction: str, references: tuple[str, ...]) -> float | None:
    """Compares decimal numbers by value ("3", "3.0", "1,000"); one trailing period is allowed, words are unparsed."""
    value = _decimal(prediction)
    if value is None:
        return None
    expected = {_readable(_decimal(reference), reference, rule="number") for reference in references}
    return float(value in expected)


def _letter(text: str) -> str | None:
    found = _CHOICE.match(text.strip())
    return next(letter for letter in found.groups() if letter).upper() if found else None


def _decimal(text: str) -> Decimal | None:
    text = text.strip().removesuffix(".")
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def _readable(value, reference: str, *, rule: str):
    if value is None:
        raise DataError(
            f"The scorer '{rule}' cannot read a reference answer",
            why=f"reference {reference!r}",
            remedy="choose the scorer that fits this task (`scorer: exact` compares whole strings)",
        )
    return value
