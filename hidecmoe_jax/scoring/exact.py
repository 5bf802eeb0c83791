"""Rules for one short answer: equal strings, option letters, numbers, and two lenient substring rules.

Every rule maps an answer and its references to 1.0 (right), 0.0 (wrong) or None (unreadable: counts as wrong and is
reported separately). A reference that the rule cannot read is an error of the data and raises. A rule strips
punctuation only where its docstring states it; undocumented leniency made shared evaluators accept "normal tissue" for
"no".
"""

from __future__ import annotations

import re
from decimal import Decimal

from hidecmoe_jax.core.errors import DataError

_CHOICE = re.compile(r"([A-Za-z])$|([A-Za-z])\.(?:\s|$)|\(([A-Za-z])\)")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def exact(prediction: str, references: tuple[str, ...]) -> float | None:
    """Equality of whole strings, case-insensitive, without outer white space (the rule of the UCIT benchmark).

    Nothing else is normalised: "cat." is not "cat", because the official comparison keeps the period and a model
    that learned the answer format does not write one. An empty answer is unreadable.
    """
    answer = prediction.strip().upper()
    if not answer:
        return None
    accepted = {reference.strip().upper() for reference in references}
    return float(answer in accepted)


def contains(prediction: str, references: tuple[str, ...]) -> float | None:
    """Whether the answer contains a reference, case-insensitive; the rule of several published evaluators.

    Never a headline score: it accepts "normal tissue" where "no" is right. An empty answer is unreadable.
    """
    answer = prediction.strip().lower()
    if not answer:
        return None
    for reference in references:
        if reference.strip().lower() in answer:
            return 1.0
    return 0.0


def either_contains(prediction: str, references: tuple[str, ...]) -> float:
    """Case-sensitive substring in either direction, CoIN's ImageNet rule; only to compare with published numbers.

    The empty answer is part of every reference and so always right. The defect is kept: published numbers have it.
    """
    for reference in references:
        if reference in prediction or prediction in reference:
            return 1.0
    return 0.0


def choice(prediction: str, references: tuple[str, ...]) -> float | None:
    """Equality of option letters: a letter alone, or a prefix "X." or "(X)", in either case.

    Anything else ("A dog", "the answer is B") is unreadable; lenient parsers find a letter in any sentence.
    """
    letter = _letter(prediction)
    if letter is None:
        return None
    expected = set()
    for reference in references:
        expected.add(_readable(_letter(reference), reference, rule="choice"))
    return float(letter in expected)


def number(prediction: str, references: tuple[str, ...]) -> float | None:
    """Equality of decimal numbers by value ("3", "3.0", "1,000"); one final period is allowed, words are unreadable."""
    value = _decimal(prediction)
    if value is None:
        return None
    expected = set()
    for reference in references:
        expected.add(_readable(_decimal(reference), reference, rule="number"))
    return float(value in expected)


def choice_hint(reference: str) -> str:
    """Returns how a reference of `choice` should be written."""
    first = re.match(r"\W*([A-Za-z])\W", f"{reference} ")
    letter = first.group(1).upper() if first else "B"
    return f"write the letter alone, or before the text: '{letter}', '{letter}. ...' or '({letter}) ...'"


def number_hint(reference: str) -> str:
    """Returns how a reference of `number` should be written."""
    del reference
    return "write digits alone, without unit or words: '3', '3.5' or '1,000'; `scorer: exact` compares whole texts"


def _letter(text: str) -> str | None:
    match = _CHOICE.match(text.strip())
    if match is None:
        return None
    # One of the pattern's three alternatives matched; the groups of the others are None.
    bare, dotted, bracketed = match.groups()
    return (bare or dotted or bracketed).upper()


def _decimal(text: str) -> Decimal | None:
    # Decimal rather than float: numbers of any length are compared exactly.
    text = text.strip().removesuffix(".")
    if not _NUMBER.fullmatch(text):
        return None
    return Decimal(text.replace(",", ""))


def _readable(value, reference: str, *, rule: str):
    """The value of a reference, or an error where the rule could not read it."""
    if value is None:
        raise DataError(
            f"The scorer '{rule}' cannot read a reference answer",
            why=f"reference {reference!r}",
            remedy="choose the scorer that fits this task (`scorer: exact` compares whole strings)",
        )
    return value
