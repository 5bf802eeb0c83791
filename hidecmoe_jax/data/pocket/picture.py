"""Drawn pictures and their ground truth: pixels, and the things on them with name, colour, size and box.

The small pocket model is trained on pictures that this package draws, so the truth about every picture is known. A
`Picture` holds its pixels together with its `Thing`s; captions, questions and dense supervision are derived from those
things. The tables below are the whole visual vocabulary: all language about a picture uses these names and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SIDE = 56
"""Side of a picture in pixels."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart", "moon")

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (245, 208, 24),
    "orange": (247, 127, 0),
    "purple": (132, 44, 178),
    "pink": (250, 130, 190),
    "brown": (125, 72, 32),
    "cyan": (32, 196, 210),
    "black": (16, 16, 16),
    "white": (246, 246, 246),
    "gray": (128, 128, 128),
}
"""Colour names and their mean RGB; a drawn colour is jittered around it."""

DIGITS = "0123456789"
UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOWER = "abcdefghijklmnopqrstuvwxyz"
GLYPHS = DIGITS + UPPER + LOWER
"""Every character that is drawn; `GLYPHS.index(name)` is its class."""

TEXTURES = ("stripes", "columns", "diagonals", "checks", "dots", "waves", "rings", "noise")

SIZES = ("small", "large")

FAMILIES = ("scene", "character", "handwriting", "word", "chart", "grid", "texture", "lines", "mixed")
"""Kinds of pictures:

scene        1-6 coloured shapes, nearly apart; `Thing.kind == "shape"`
character    one character of a font, small or large; kind "digit" or "glyph"
handwriting  one digit or letter from strokes, often scan-like (low resolution, grey); kind "digit" or "glyph"
word         2-5 characters in a row, left to right; kinds "glyph" and "digit"; `extra["text"]` is the string
chart        3-5 coloured bars with a letter under each; first the bars (kind "bar", name the letter, `value` 1..9),
             then the letters under them (kind "glyph"), both left to right;
             `extra["labels"]` the letters left to right, `extra["values"]` the values in the same order
grid         k x k coloured cells, row by row; kind "cell"; `extra["cells"]` rows of colour names, `extra["k"]`
texture      one pattern over the whole picture; kind "texture", name of TEXTURES, `colour`
lines        1-4 strokes; kind "line", name "horizontal", "vertical", "rising" or "falling"
mixed        shapes and characters together, told apart by `Thing.kind`. With `extra["sign"]` there is one
             large filled shape and one character on it
"""


@dataclass(frozen=True)
class Thing:
    """One thing on a picture.

    Attributes:
      kind: class of thing, as in `FAMILIES`; `name` is the shape, character, pattern or direction.
      colour: a key of `COLOURS`.
      size: "small" or "large"; shapes of a scene are clearly one of the two, never in between.
      box: (x0, y0, x1, y1) as fractions of the picture, origin top left, x to the right and y down.
      filled: False for a shape drawn as an outline.
      font: font of a character, "hand" for handwriting, else empty.
      value: a bar's height (1..9), else None.
    """

    kind: str
    name: str
    colour: str
    size: str
    box: tuple[float, float, float, float]
    filled: bool = True
    font: str = ""
    value: int | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, (x, y) as fractions of the picture."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Picture:
    """A drawn picture and its ground truth.

    Attributes:
      pixels: uint8 [SIDE, SIDE, 3].
      things: in drawing order.
      ground: colour name of the background.
      family: one of `FAMILIES`.
      extra: further truth, by family, as listed there.
    """

    pixels: np.ndarray
    things: tuple[Thing, ...]
    ground: str
    family: str
    extra: dict[str, Any] = field(default_factory=dict)


def names_of(things: Sequence[Thing]) -> list[str]:
    """Returns the names of things, in order."""
    return [thing.name for thing in things]


def colours_of(things: Sequence[Thing]) -> list[str]:
    """Returns the colours of things, in order."""
    return [thing.colour for thing in things]


def of_kind(things: Sequence[Thing], kind: str) -> list[Thing]:
    """Returns the things of one kind, in order."""
    return [thing for thing in things if thing.kind == kind]
