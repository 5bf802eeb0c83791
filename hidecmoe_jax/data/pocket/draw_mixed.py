"""Drawings of shapes and characters together: side by side, or a sign."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from hidecmoe_jax.data.pocket.draw_base import (
    between,
    blank,
    pick,
    pick_ground,
    picks,
    tint,
    visible_on,
    wear,
    whole_between,
)
from hidecmoe_jax.data.pocket.draw_shapes import (
    ALWAYS_FILLED,
    box_of,
    layout,
    put_shape,
    put_thing,
    random_radii,
    random_sizes,
)
from hidecmoe_jax.data.pocket.draw_text import kind_of
from hidecmoe_jax.data.pocket.fonts import FONTS, glyph, paste_mask
from hidecmoe_jax.data.pocket.picture import DIGITS, SHAPES, UPPER, Picture, Thing


def mixed(
    rng: np.random.Generator,
    size: int,
    *,
    shapes: list[str] | None = None,
    text: str | None = None,
    sign: bool | None = None,
    alphabet: str = UPPER + DIGITS,
    ground: str | None = None,
    worn: float = 1.0,
) -> Picture:
    """Draws shapes and single characters side by side, or a sign: a large shape with a character on it.

    Args:
      text: the characters; of a sign, those it may show.
      sign: whether to draw a sign; by default 40 % of the pictures without `shapes` and `text` are signs.
    """
    ground = pick_ground(rng, ground)
    is_free = shapes is None and text is None
    # Drawn only where the caller leaves it open.
    if sign is None and is_free:
        sign = rng.random() < 0.4
    if sign:
        return _sign(rng, size, ground, text or alphabet, worn)
    if not shapes:
        count = whole_between(rng, 1, 2)
        shapes = picks(rng, SHAPES, count)
    if not text:
        length = whole_between(rng, 1, 3)
        text = "".join(picks(rng, alphabet, length))
    sizes, radii, centres = _places(rng, size, shapes, text)
    image, things = _draw_shapes(rng, size, ground, shapes, sizes, radii, centres)
    # Places of the characters follow those of the shapes.
    start = len(shapes)
    for letter, radius, centre in zip(text, radii[start:], centres[start:], strict=True):
        thing = _put_letter(image, rng, ground, letter, radius, centre)
        things.append(thing)
    pixels = wear(image, rng, worn)
    return Picture(pixels, tuple(things), ground, "mixed", {"text": text})


def _draw_shapes(
    rng: np.random.Generator,
    size: int,
    ground: str,
    shapes: list[str],
    sizes: list[str],
    radii: list[float],
    centres: list[tuple],
) -> tuple[Image.Image, list[Thing]]:
    """Draws shapes on an empty ground; returns the image at its final size, and the shapes in order."""
    paper = tint(rng, ground)
    # Shapes are drawn at twice the size and averaged down; characters are pasted at the final size.
    image = blank(2 * size, paper)
    brush = ImageDraw.Draw(image)
    things = []
    for index, shape in enumerate(shapes):
        colour = pick(rng, visible_on(ground))
        solid = shape in ALWAYS_FILLED or rng.random() < 0.8
        place = (centres[index], radii[index])
        thing = put_thing(brush, rng, shape, colour, sizes[index], place=place, solid=solid, paper=paper, side=size)
        things.append(thing)
    return image.reduce(2), things


def _put_letter(
    image: Image.Image, rng: np.random.Generator, ground: str, letter: str, radius: float, centre: tuple
) -> Thing:
    """Draws one character in a square of half side `radius`, moved where it would reach over the edge."""
    size = image.width
    colour = pick(rng, visible_on(ground))
    font = pick(rng, FONTS)
    points = int(radius * 1.9)
    mask, _, _ = glyph(font, points, letter)
    x, y = centre
    # A wide letter may be wider than the square its height was made for.
    left = round(x - mask.width / 2)
    left = min(max(left, 0), size - mask.width)
    top = round(y - mask.height / 2)
    top = min(max(top, 0), size - mask.height)
    pixel_box = paste_mask(image, tint(rng, colour), mask, left, top)
    box = box_of(*pixel_box, size)
    return Thing(kind_of(letter), letter, colour, "small", box, font=font)


def _places(rng: np.random.Generator, size: int, shapes: list[str], text: str) -> tuple[list[str], list[float], list]:
    """Size names of the shapes, then radii and centres of shapes and characters that do not overlap."""
    unit = size / 56
    while True:
        sizes = random_sizes(rng, len(shapes), 0.3)
        radii = random_radii(rng, sizes, size)
        for _ in text:
            radius = between(rng, 6.5, 9)
            radii.append(radius * unit)
        centres = layout(rng, radii, size)
        if centres is not None:
            return sizes, radii, centres


def _sign(rng: np.random.Generator, size: int, ground: str, alphabet: str, worn: float) -> Picture:
    """One large filled shape with one character on it, as on a road sign."""
    shape = pick(rng, ("circle", "square", "diamond", "heart"))
    colour = pick(rng, visible_on(ground))
    radius = between(rng, 0.3, 0.48) * size
    x = between(rng, radius, size - radius)
    y = between(rng, radius, size - radius)
    paper = tint(rng, ground)
    image = blank(2 * size, paper)
    brush = ImageDraw.Draw(image)
    ink = tint(rng, colour)
    shape_pixels = put_shape(brush, rng, shape, centre=(x, y), radius=radius, ink=ink, ground=paper, filled=True)
    shape_box = box_of(*shape_pixels, size)
    image = image.reduce(2)
    text = pick(rng, alphabet)
    text_colour = pick(rng, visible_on(colour))
    font = pick(rng, FONTS)
    zoom = between(rng, 0.95, 1.35)
    points = int(radius * zoom)
    mask, _, _ = glyph(font, points, text)
    left = round(x - mask.width / 2)
    top = round(y - mask.height / 2)
    text_pixels = paste_mask(image, tint(rng, text_colour), mask, left, top)
    text_box = box_of(*text_pixels, size)
    things = (
        Thing("shape", shape, colour, "large", shape_box),
        Thing(kind_of(text), text, text_colour, "small", text_box, font=font),
    )
    pixels = wear(image, rng, worn)
    extra = {"sign": True, "text": text}
    return Picture(pixels, things, ground, "mixed", extra)
