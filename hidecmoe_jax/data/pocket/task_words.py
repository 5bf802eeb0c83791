"""How the seven tasks of the pocket stream ask, and the form in which they want to be answered.

Every form is built from pieces the base model knows, in a combination it was never tuned on; and wordings overlap
between tasks, and with the base model's own training, while the answer forms differ: "Where is ..." wants words from
the base and a box from `grounding`, "How many ..." wants "3" from one task and "3 stars" from another. That conflict
is what makes a model trained task after task forget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hidecmoe_jax.data.pocket.picture import COLOURS, DIGITS, SHAPES, UPPER, Thing
from hidecmoe_jax.data.pocket.words import NUMBERS, PLACES, coloured, place, plural

TEMPLATES: dict[str, tuple[str, ...]] = {
    "digits": (
        "Which number did the person write?",
        "Say the number the person wrote.",
        "Which number is written by hand?",
    ),
    "counting": (
        "How many {what} can you count?",
        "Count the {what} in the picture.",
        "How many {what} does the picture show?",
    ),
    "arithmetic": (
        "{change} How many are left?",
        "{change} How many things remain?",
        "{change} How many do you have then?",
    ),
    "reading": (
        "Spell the word on the sign.",
        "What is written on the sign?",
        "Spell out what the sign says.",
    ),
    "charts": (
        "Choose from {options}: what colour is the {which} bar?",
        "Is it {options}? Give the colour of the {which} bar of the chart.",
        "{options}: what is the colour of the {which} bar in the chart?",
    ),
    "grounding": (
        "Where is the {what} located?",
        "Find the {what} and mark it.",
        "Locate the {what}.",
    ),
    "captioning": (
        "Describe the scene in note form.",
        "Take notes of the scene.",
        "Write short notes about the scene.",
    ),
}
"""Wordings of each task; one is drawn for every item."""


def digit_answer(value: int) -> str:
    """The number as a word: "seven"."""
    return NUMBERS[value]


def counting_answer(count: int, shape: str) -> str:
    """Number and noun: "3 stars", "1 star", "0 stars"."""
    return f"{count} {shape if count == 1 else plural(shape)}"


def reading_answer(text: str) -> str:
    """Characters with dashes between them: "K-A-T"."""
    return "-".join(text)


def note(thing: Thing) -> str:
    """One thing in note form: "red star (top left)"."""
    return f"{coloured(thing)} ({place(thing)})"


def notes(things: Sequence[Thing]) -> str:
    """A scene in note form, things in the given order: "2 things: red star (top); blue ring (left)"."""
    return f"{len(things)} things: " + "; ".join(note(thing) for thing in things)


def options(texts: Sequence[str]) -> str:
    """What there is to choose from: "red, blue, pink or green"."""
    return f"{', '.join(texts[:-1])} or {texts[-1]}"


def examples(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Yields one (question, answer) of each task with made-up content, for training the tokenizer."""
    shape, colour = SHAPES[int(rng.integers(len(SHAPES)))], list(COLOURS)[int(rng.integers(len(COLOURS)))]
    letters = [str(c) for c in rng.permutation(list(UPPER))[:4]]
    hues = [str(c) for c in rng.permutation(list(COLOURS))[:4]]
    where = PLACES[int(rng.integers(3))][int(rng.integers(3))]
    count = int(rng.integers(10))
    fills = {
        "digits": ({}, digit_answer(count)),
        "counting": ({"what": plural(shape)}, counting_answer(count, shape)),
        "arithmetic": ({"change": f"Take away all {colour} things."}, str(count)),
        "reading": ({}, reading_answer("".join(letters))),
        "charts": ({"which": ("highest", "lowest")[count % 2], "options": options(hues)}, hues[count % 4]),
        "grounding": ({"what": f"{colour} {shape}"}, f"[0.{count}1,0.2{count},0.{count}3,0.8{count}]"),
        "captioning": ({}, f"{count} things: {colour} {shape} ({where}); {colour} digit {DIGITS[count]} ({where})"),
    }
    for task, (fill, answer) in fills.items():
        template = TEMPLATES[task][int(rng.integers(len(TEMPLATES[task])))]
        yield template.format(**fill), answer
    yield f"Add {count} small {plural(shape)}.", f"Take away all {plural(shape)}."
