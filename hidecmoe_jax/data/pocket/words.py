"""The words the pocket language is made of: how a thing is named, placed, counted and boxed.

Everything the small model ever says is put together from these few forms, so that a task of the pocket stream asks
for a new combination of known forms and never for a new alphabet. Coordinates are fractions of the picture with two
decimals, which the tokenizer keeps as one token each.
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


def article(phrase: str) -> str:
    """Returns the phrase with "a" or "an" before it."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def plural(noun: str) -> str:
    """Returns the plural of a shape's name."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def place(thing: Thing) -> str:
    """Returns the field of the picture that the middle of a thing lies in."""
    x, y = thing.centre
    return PLACES[min(int(y * 3), 2)][min(int(x * 3), 2)]


def at(where: str) -> str:
    """Returns a place with its preposition: "in the middle", "on the left", "at the top"."""
    return {"middle": "in the middle", "left": "on the left", "right": "on the right"}.get(where, f"at the {where}")


def coordinate(value: float) -> str:
    """Returns a fraction of the picture with two decimals, held to 0.00-0.99."""
    return f"{min(max(value, 0.0), 0.99):.2f}"


def box(thing: Thing) -> str:
    """Returns the box of a thing as "[x0,y0,x1,y1]"."""
    return "[" + ",".join(coordinate(value) for value in thing.box) + "]"


def point(thing: Thing) -> str:
    """Returns the middle of a thing as "(x,y)"."""
    return "(" + ",".join(coordinate(value) for value in thing.centre) + ")"


def noun(thing: Thing) -> str:
    """Returns what a thing is without its colour: "star", "digit 7", "letter K", "bar B"."""
    if thing.kind == "digit":
        return f"digit {thing.name}"
    if thing.kind == "glyph":
        return f"letter {thing.name.upper()}"
    return f"bar {thing.name}" if thing.kind == "bar" else thing.name


def coloured(thing: Thing) -> str:
    """Returns a thing with its colour: "red star"."""
    return f"{thing.colour} {noun(thing)}"


def spell(text: str) -> str:
    """Returns written characters so that each is one token: contiguous capitals and digits, others spaced."""
    return " ".join(text) if any(c in LOWER for c in text) else text


def join(parts: Sequence[str]) -> str:
    """Returns "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def unique(thing: Thing, things: Sequence[Thing]) -> str | None:
    """Returns the shortest description that fits this thing alone, or None where none does."""
    for words in (noun, coloured, lambda t: f"{t.size} {coloured(t)}"):
        if sum(words(other) == words(thing) for other in things) == 1:
            return words(thing)
    return None
