"""Phrases of the pocket language: how a thing is named, placed, counted and boxed.

All text that the small model reads or writes is built from these few forms, so that a task of the pocket stream asks
for a new combination of known forms and never for a new vocabulary. Coordinates are fractions of the picture with two
decimals; the tokenizer has one token for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from hidecmoe_jax.data.pocket.picture import LOWER, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
"""Numbers as words; the index is the value."""

PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Names of the nine fields of a picture, by row and column."""

_PREPOSITIONS = {"middle": "in the", "left": "on the", "right": "on the"}


def article(phrase: str) -> str:
    """Returns the phrase with "a" or "an" before it."""
    if phrase[0] in "aeiou":
        return f"an {phrase}"
    return f"a {phrase}"


def plural(noun: str) -> str:
    """Returns the plural of a shape's name."""
    ending = "es" if noun.endswith(("s", "x")) else "s"
    return noun + ending


def place(thing: Thing) -> str:
    """Returns the field of the picture that the centre of a thing lies in."""
    x, y = thing.centre
    row = min(int(y * 3), 2)
    column = min(int(x * 3), 2)
    return PLACES[row][column]


def at(where: str) -> str:
    """Returns a field with its preposition: "in the middle", "on the left", "at the top"."""
    preposition = _PREPOSITIONS.get(where, "at the")
    return f"{preposition} {where}"


def coordinate(value: float) -> str:
    """Returns a fraction of the picture with two decimals, clipped to 0.00-0.99."""
    clipped = min(max(value, 0.0), 0.99)
    return f"{clipped:.2f}"


def box(thing: Thing) -> str:
    """Returns the box of a thing as "[x0,y0,x1,y1]"."""
    coordinates = ",".join(map(coordinate, thing.box))
    return f"[{coordinates}]"


def point(thing: Thing) -> str:
    """Returns the centre of a thing as "(x,y)"."""
    coordinates = ",".join(map(coordinate, thing.centre))
    return f"({coordinates})"


def noun(thing: Thing) -> str:
    """Returns the name of a thing without its colour: "star", "digit 7", "letter K", "bar B"."""
    if thing.kind == "digit":
        return f"digit {thing.name}"
    if thing.kind == "glyph":
        return f"letter {thing.name.upper()}"
    if thing.kind == "bar":
        return f"bar {thing.name}"
    return thing.name


def coloured(thing: Thing) -> str:
    """Returns the name of a thing with its colour: "red star"."""
    return f"{thing.colour} {noun(thing)}"


def sized(thing: Thing) -> str:
    """Returns the name of a thing with its size and colour: "small red star"."""
    return f"{thing.size} {coloured(thing)}"


def spell(text: str) -> str:
    """Returns characters so that each is one token: capitals and digits as they are, others separated by spaces."""
    has_lower = any(character in LOWER for character in text)
    return " ".join(text) if has_lower else text


def join(parts: Sequence[str]) -> str:
    """Returns "a, b and c"."""
    if len(parts) == 1:
        return parts[0]
    *firsts, last = parts
    listed = ", ".join(firsts)
    return f"{listed} and {last}"


def unique(thing: Thing, things: Sequence[Thing]) -> str | None:
    """Returns the shortest description that fits only this thing, or None where none does."""
    for describe in (noun, coloured, sized):
        description = describe(thing)
        descriptions = list(map(describe, things))
        if descriptions.count(description) == 1:
            return description
    return None
