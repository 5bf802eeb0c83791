"""Wordings and answer forms of the seven tasks of the pocket stream.

Every form is built from pieces of the base model's training, in a combination that it was never trained on. Wordings
overlap between tasks, and with the base model's own training, while answer forms differ: "Where is ..." is answered by
words in the base's training and by a box in `grounding`; "How many ..." is answered by "3" in one task and by "3 stars"
in another. That conflict is why a model trained task after task forgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hidecmoe_jax.data.pocket.ask_base import choose
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
"""Wordings of each task; every item draws one of them."""


def digit_answer(value: int) -> str:
    """Returns the number as a word: "seven"."""
    return NUMBERS[value]


def counting_answer(count: int, shape: str) -> str:
    """Returns number and noun: "3 stars", "1 star", "0 stars"."""
    noun = shape if count == 1 else plural(shape)
    return f"{count} {noun}"


def reading_answer(text: str) -> str:
    """Returns the characters with dashes between them: "K-A-T"."""
    return "-".join(text)


def note(thing: Thing) -> str:
    """Returns one thing in note form: "red star (top left)"."""
    return _note(coloured(thing), place(thing))


def notes(things: Sequence[Thing]) -> str:
    """Returns a scene in note form, things in the given order: "2 things: red star (top); blue ring (left)"."""
    return _listed(len(things), map(note, things))


def _note(phrase: str, where: str) -> str:
    """A named thing and its field in note form."""
    return f"{phrase} ({where})"


def _listed(count: int, lines: Iterable[str]) -> str:
    """Notes of a scene of `count` things."""
    joined = "; ".join(lines)
    return f"{count} things: {joined}"


def options(texts: Sequence[str]) -> str:
    """Returns the options of a question as text: "red, blue, pink or green"."""
    *firsts, last = texts
    listed = ", ".join(firsts)
    return f"{listed} or {last}"


def examples(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Yields (question, answer) pairs with invented content, for training the tokenizer.

    One question with its answer for each task; the eighth pair is two more changes of the arithmetic task instead.
    """
    shape = choose(rng, SHAPES)
    colour = choose(rng, list(COLOURS))
    letters = rng.permutation(list(UPPER))[:4].tolist()
    hues = rng.permutation(list(COLOURS))[:4].tolist()
    row = PLACES[int(rng.integers(3))]
    where = choose(rng, row)
    count = int(rng.integers(10))
    shapes = plural(shape)
    which = ("highest", "lowest")[count % 2]
    # Invented too: the number of things, which need not be that of the notes.
    scene = _listed(count, [_note(f"{colour} {shape}", where), _note(f"{colour} digit {DIGITS[count]}", where)])
    # A made-up box: only its characters matter.
    box = f"[0.{count}1,0.2{count},0.{count}3,0.8{count}]"
    fills = {
        "digits": ({}, digit_answer(count)),
        "counting": ({"what": shapes}, counting_answer(count, shape)),
        "arithmetic": ({"change": f"Take away all {colour} things."}, str(count)),
        "reading": ({}, reading_answer("".join(letters))),
        "charts": ({"which": which, "options": options(hues)}, hues[count % 4]),
        "grounding": ({"what": f"{colour} {shape}"}, box),
        "captioning": ({}, scene),
    }
    for task, (fill, answer) in fills.items():
        template = choose(rng, TEMPLATES[task])
        yield template.format(**fill), answer
    yield f"Add {count} small {shapes}.", f"Take away all {shapes}."
