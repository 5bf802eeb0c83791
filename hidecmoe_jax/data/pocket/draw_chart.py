"""Drawings of bar charts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.pocket.draw_base import (
    between,
    blank,
    ground_for,
    pick,
    pick_ground,
    tint,
    visible_on,
    wear,
    whole_between,
)
from hidecmoe_jax.data.pocket.draw_shapes import box_of
from hidecmoe_jax.data.pocket.draw_text import kind_of
from hidecmoe_jax.data.pocket.fonts import FONTS, extent, paste_word
from hidecmoe_jax.data.pocket.picture import UPPER, Picture, Thing

_SLANTED = tuple(name for name in FONTS if "Italic" in name or "Oblique" in name or name == "cmti10")
_UPRIGHT = tuple(name for name in FONTS if name not in _SLANTED)
_LIGHT_GROUNDS = ("white", "gray", "yellow", "cyan", "pink", "orange")


@dataclass(frozen=True)
class _Frame:
    """Measures of a chart in pixels: the floor under the bars, the height of one unit of value, and widths."""

    floor: float
    step: float
    slot: float
    width: float

    def centre(self, index: int) -> float:
        """x of a bar's middle."""
        return 1 + self.slot * (index + 0.5)


@dataclass(frozen=True)
class _Lettering:
    """Font, size, ink and ink name of the letters under the bars, and the gap above them in pixels."""

    font: str
    points: int
    ink: tuple
    colour: str
    gap: float


def chart(
    rng: np.random.Generator,
    size: int,
    *,
    values: list[int] | None = None,
    labels: list[str] | None = None,
    colours: list[str] | None = None,
    ground: str | None = None,
    worn: float = 1.0,
) -> Picture:
    """Draws 3-5 coloured bars of height 1..9 with a letter under each.

    The things of the picture are the bars from left to right, then their letters from left to right.
    """
    count = _count(rng, values, labels, colours)
    values = values or [whole_between(rng, 1, 9) for _ in range(count)]
    if not labels:
        indices = rng.permutation(26)
        labels = [UPPER[index] for index in indices[:count]]
    ground = ground or pick(rng, ("white", "white", "black", "gray"))
    ground = pick_ground(rng, ground)
    # Only a constraint on the colours can make another ground necessary.
    ground = ground_for(rng, ground, colours or ())
    colours = colours or _random_colours(rng, ground, count)
    if not len(values) == len(labels) == len(colours):
        raise DataError("chart: values, labels and colours differ in length")
    image = blank(size, tint(rng, ground))
    brush = ImageDraw.Draw(image)
    frame = _frame(rng, size, count)
    # A gray axis would be invisible on a gray ground.
    axis_colour = "gray" if ground != "gray" else "black"
    axis = tint(rng, axis_colour)
    lettering = _lettering(rng, size, ground)
    if rng.random() < 0.3:
        for level in (3, 6, 9):
            y = frame.floor - level * frame.step
            brush.line((0, y, size, y), fill=axis)
    bars = []
    letters = []
    for index, label in enumerate(labels):
        bar = _put_bar(brush, rng, size, frame, index, label, colours[index], values[index])
        bars.append(bar)
        letter = _put_letter(image, size, frame, index, label, lettering)
        letters.append(letter)
    if rng.random() < 0.7:
        brush.line((0, frame.floor, size, frame.floor), fill=axis)
    extra = {"labels": list(labels), "values": list(map(int, values)), "colours": list(colours)}
    pixels = wear(image, rng, worn * 0.6)
    return Picture(pixels, (*bars, *letters), ground, "chart", extra)


def _count(rng: np.random.Generator, *lists: list | None) -> int:
    """Number of bars: the length of the first list that is not empty, or 3-5."""
    # Drawn also where a list decides, so that a constraint does not shift the later draws.
    drawn = whole_between(rng, 3, 5)
    lengths = [len(values) for values in lists if values]
    return lengths[0] if lengths else drawn


def _random_colours(rng: np.random.Generator, ground: str, count: int) -> list[str]:
    """Different colours that are visible on the ground, in random order."""
    visible = visible_on(ground)
    indices = rng.permutation(len(visible))
    return [visible[index] for index in indices[:count]]


def _frame(rng: np.random.Generator, size: int, count: int) -> _Frame:
    unit = size / 56
    step = between(rng, 4.1, 4.6) * unit
    slot = (size - 2) / count
    share_of_slot = between(rng, 0.5, 0.85)
    return _Frame(floor=44 * unit, step=step, slot=slot, width=slot * share_of_slot)


def _lettering(rng: np.random.Generator, size: int, ground: str) -> _Lettering:
    unit = size / 56
    font = pick(rng, _UPRIGHT)
    points = int(between(rng, 11, 13.9) * unit)
    ink = tint(rng, "black" if ground in _LIGHT_GROUNDS else "white")
    colour = "black" if sum(ink) < 300 else "white"
    return _Lettering(font, points, ink, colour, gap=2.2 * unit)


def _put_bar(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    size: int,
    frame: _Frame,
    index: int,
    label: str,
    colour: str,
    value: int,
) -> Thing:
    """Draws one bar and returns it."""
    middle = frame.centre(index)
    x0 = round(middle - frame.width / 2)
    y0 = round(frame.floor - value * frame.step)
    x1 = round(middle + frame.width / 2)
    y1 = round(frame.floor)
    # Pillow counts the lower right corner to the rectangle.
    brush.rectangle((x0, y0, x1 - 1, y1 - 1), fill=tint(rng, colour))
    size_name = "large" if value > 5 else "small"
    box = box_of(x0, y0, x1, y1, size)
    return Thing("bar", label, colour, size_name, box, value=int(value))


def _put_letter(
    image: Image.Image,
    size: int,
    frame: _Frame,
    index: int,
    label: str,
    lettering: _Lettering,
) -> Thing:
    """Draws the letter under one bar, centred, and returns it."""
    width, top, _ = extent(label, lettering.font, lettering.points)
    boxes = paste_word(
        image,
        label,
        font=lettering.font,
        points=lettering.points,
        left=frame.centre(index) - width / 2,
        baseline=frame.floor + lettering.gap - top,
        ink=lettering.ink,
    )
    box = box_of(*boxes[0], size)
    return Thing(kind_of(label), label, lettering.colour, "small", box, font=lettering.font)
