"""Drawings of shapes and characters together: side by side, or a sign."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from hidecmoe_jax.data.pocket.draw_base import between, pick, pick_ground, picks, tint, visible_on, wear
from hidecmoe_jax.data.pocket.draw_shapes import box_of, layout, put_shape, random_radii, random_sizes
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
    if sign or (sign is None and is_free and rng.random() < 0.4):
        return _sign(rng, size, ground, text or alphabet, worn)
    shapes = shapes or picks(rng, SHAPES, 1 + int(rng.random() * 2))
    text = text or "".join(picks(rng, alphabet, 1 + int(rng.random() * 3)))
    sizes, radii, centres = _places(rng, size, shapes, text)
    paper = tint(rng, ground)
    image = Image.new("RGB", (2 * size, 2 * size), paper)
    brush = ImageDraw.Draw(image)
    things = []
    for index, shape in enumerate(shapes):
        colour = pick(rng, visible_on(ground))
        solid = shape in ("circle", "ring") or rng.random() < 0.8
        ink = tint(rng, colour)
        box = put_shape(
            brush, rng, shape, centre=centres[index], radius=radii[index], ink=ink, ground=paper, filled=solid
        )
        things.append(Thing("shape", shape, colour, sizes[index], box_of(*box, size), solid))
    # Shapes are drawn at twice the size and averaged down; characters are pasted at the final size.
    image = image.reduce(2)
    for index, letter in enumerate(text, start=len(shapes)):
        colour = pick(rng, visible_on(ground))
        font = pick(rng, FONTS)
        mask, _, _ = glyph(font, int(radii[index] * 1.9), letter)
        x, y = centres[index]
        # A wide letter may be wider than the square its height was made for.
        left = min(max(round(x - mask.width / 2), 0), size - mask.width)
        top = min(max(round(y - mask.height / 2), 0), size - mask.height)
        box = paste_mask(image, tint(rng, colour), mask, left, top)
        things.append(Thing(kind_of(letter), letter, colour, "small", box_of(*box, size), font=font))
    return Picture(wear(image, rng, worn), tuple(things), ground, "mixed", {"text": text})


def _places(rng: np.random.Generator, size: int, shapes: list[str], text: str) -> tuple[list[str], list[float], list]:
    """Size names of the shapes, then radii and centres of shapes and characters that do not overlap."""
    unit = size / 56
    while True:
        sizes = random_sizes(rng, len(shapes), 0.3)
        radii = random_radii(rng, sizes, size)
        radii += [between(rng, 6.5, 9) * unit for _ in text]
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
    image = Image.new("RGB", (2 * size, 2 * size), paper)
    brush = ImageDraw.Draw(image)
    ink = tint(rng, colour)
    shape_box = put_shape(brush, rng, shape, centre=(x, y), radius=radius, ink=ink, ground=paper, filled=True)
    image = image.reduce(2)
    text = pick(rng, alphabet)
    text_colour = pick(rng, visible_on(colour))
    font = pick(rng, FONTS)
    mask, _, _ = glyph(font, int(radius * between(rng, 0.95, 1.35)), text)
    left = round(x - mask.width / 2)
    top = round(y - mask.height / 2)
    text_box = paste_mask(image, tint(rng, text_colour), mask, left, top)
    things = (
        Thing("shape", shape, colour, "large", box_of(*shape_box, size)),
        Thing(kind_of(text), text, text_colour, "small", box_of(*text_box, size), font=font),
    )
    return Picture(wear(image, rng, worn), things, ground, "mixed", {"sign": True, "text": text})
