"""Draw a picture of a family: the one door to the drawing engine.

`draw("scene", rng)` gives a picture with its truth. All randomness comes from `rng`, so a seeded generator always
gives the same pictures; a task that wants particular things says so (`draw("chart", rng, values=[3, 7, 5])`).
One core draws well over a thousand pictures a second.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.data.pocket.draw_base import between, pick, pick_ground, tint, visible_on, wear
from hidecmoe_jax.data.pocket.draw_shapes import RADII, box_of, grid, layout, lines, put_shape, scene, texture
from hidecmoe_jax.data.pocket.draw_text import FONTS, character, extent, glyph, handwriting, kind_of, paste_word, word
from hidecmoe_jax.data.pocket.picture import DIGITS, SHAPES, SIDE, UPPER, Picture, Thing

_PLAIN_FONTS = tuple(f for f in FONTS if "Italic" not in f and "Oblique" not in f and f != "cmti10")


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
    """3-5 coloured bars of height 1..9 with a letter under each; the first things are the bars, then the letters."""
    count = next((len(given) for given in (values, labels, colours) if given), 3 + int(rng.random() * 3))
    values = values or [1 + int(rng.random() * 9) for _ in range(count)]
    labels = labels or [UPPER[i] for i in rng.permutation(26)[:count]]
    ground = pick_ground(rng, ground or (pick(rng, ("white", "white", "black", "gray"))))
    while colours and any(c not in visible_on(ground) for c in colours):
        ground = pick_ground(rng)
    seen = visible_on(ground)
    colours = colours or [seen[i % len(seen)] for i in rng.permutation(len(seen))[:count]]
    if not len(values) == len(labels) == len(colours):
        raise DataError("chart: values, labels and colours differ in length")
    paper = tint(rng, ground)
    image = Image.new("RGB", (size, size), paper)
    brush = ImageDraw.Draw(image)
    unit = size / 56
    floor, step = 44 * unit, between(rng, 4.1, 4.6) * unit
    slot = (size - 2) / count
    width = slot * between(rng, 0.5, 0.85)
    axis = tint(rng, "gray" if ground != "gray" else "black")
    font, points = pick(rng, _PLAIN_FONTS), int(between(rng, 11, 13.9) * unit)
    letter = tint(rng, "black" if ground in ("white", "gray", "yellow", "cyan", "pink", "orange") else "white")
    ink_name = "black" if sum(letter) < 300 else "white"
    bars, texts = [], []
    if rng.random() < 0.3:
        for level in range(3, 10, 3):
            brush.line((0, floor - level * step, size, floor - level * step), fill=axis)
    for k in range(count):
        middle = 1 + slot * (k + 0.5)
        box = (round(middle - width / 2), round(floor - values[k] * step), round(middle + width / 2), round(floor))
        brush.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=tint(rng, colours[k]))
        bars.append(
            Thing(
                "bar",
                labels[k],
                colours[k],
                "large" if values[k] > 5 else "small",
                box_of(*box, size),
                value=int(values[k]),
            )
        )
        wide, top, _ = extent(labels[k], font, points)
        spot = paste_word(
            image,
            labels[k],
            font=font,
            points=points,
            left=middle - wide / 2,
            baseline=floor + 2.2 * unit - top,
            ink=letter,
        )[0]
        texts.append(Thing(kind_of(labels[k]), labels[k], ink_name, "small", box_of(*spot, size), font=font))
    if rng.random() < 0.7:
        brush.line((0, floor, size, floor), fill=axis)
    extra = {"labels": list(labels), "values": [int(v) for v in values], "colours": list(colours)}
    return Picture(wear(image, rng, worn * 0.6), (*bars, *texts), ground, "chart", extra)


def _sign(rng: np.random.Generator, size: int, ground: str, alphabet: str, worn: float) -> Picture:
    """One large filled shape with one character on it, as on a road sign."""
    shape, colour = pick(rng, ("circle", "square", "diamond", "heart")), pick(rng, visible_on(ground))
    radius = between(rng, 0.3, 0.48) * size
    x, y = (between(rng, radius, size - radius) for _ in range(2))
    paper = tint(rng, ground)
    image = Image.new("RGB", (2 * size, 2 * size), paper)
    box = put_shape(
        ImageDraw.Draw(image),
        rng,
        shape,
        centre=(x, y),
        radius=radius,
        ink=tint(rng, colour),
        ground=paper,
        filled=True,
    )
    image = image.reduce(2)
    text, ink, font = pick(rng, alphabet), pick(rng, visible_on(colour)), pick(rng, FONTS)
    mask, _, _ = glyph(font, int(radius * between(rng, 0.95, 1.35)), text)
    at = round(x - mask.width / 2), round(y - mask.height / 2)
    spot = (*at, at[0] + mask.width, at[1] + mask.height)
    image.paste(tint(rng, ink), spot, mask)
    things = (
        Thing("shape", shape, colour, "large", box_of(*box, size)),
        Thing(kind_of(text), text, ink, "small", box_of(*spot, size), font=font),
    )
    return Picture(wear(image, rng, worn), things, ground, "mixed", {"sign": True, "text": text})


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
    """Shapes and single characters side by side, or a sign: a large shape with a character on it."""
    ground = pick_ground(rng, ground)
    if sign or (sign is None and shapes is None and text is None and rng.random() < 0.4):
        return _sign(rng, size, ground, text or alphabet, worn)
    shapes = shapes or [pick(rng, SHAPES) for _ in range(1 + int(rng.random() * 2))]
    text = text or "".join(pick(rng, alphabet) for _ in range(1 + int(rng.random() * 3)))
    unit, centres = size / 56, None
    while centres is None:
        kinds = ["large" if rng.random() < 0.3 else "small" for _ in shapes]
        radii = [between(rng, *RADII[kind]) * unit for kind in kinds] + [between(rng, 6.5, 9) * unit for _ in text]
        centres = layout(rng, radii, size)
    paper = tint(rng, ground)
    image = Image.new("RGB", (2 * size, 2 * size), paper)
    brush, things = ImageDraw.Draw(image), []
    for k, shape in enumerate(shapes):
        colour, solid = pick(rng, visible_on(ground)), shape in ("circle", "ring") or rng.random() < 0.8
        box = put_shape(
            brush, rng, shape, centre=centres[k], radius=radii[k], ink=tint(rng, colour), ground=paper, filled=solid
        )
        things.append(Thing("shape", shape, colour, kinds[k], box_of(*box, size), solid))
    image = image.reduce(2)
    for k, letter in enumerate(text, start=len(shapes)):
        colour, font = pick(rng, visible_on(ground)), pick(rng, FONTS)
        mask, _, _ = glyph(font, int(radii[k] * 1.9), letter)
        at = tuple(min(max(round(c - s / 2), 0), size - s) for c, s in zip(centres[k], mask.size, strict=False))
        spot = (*at, at[0] + mask.width, at[1] + mask.height)
        image.paste(tint(rng, colour), spot, mask)
        things.append(Thing(kind_of(letter), letter, colour, "small", box_of(*spot, size), font=font))
    return Picture(wear(image, rng, worn), tuple(things), ground, "mixed", {"text": text})


FAMILY_DRAWERS: dict[str, Callable[..., Picture]] = {
    "scene": scene,
    "character": character,
    "handwriting": handwriting,
    "word": word,
    "chart": chart,
    "grid": grid,
    "texture": texture,
    "lines": lines,
    "mixed": mixed,
}


def draw(family: str, rng: np.random.Generator, size: int = SIDE, **constraints) -> Picture:
    """Draw one picture.

    Args:
      family: a name of `FAMILIES`.
      rng: the only source of randomness.
      size: side in pixels (multiples of 56 look alike; the vocabulary of sizes is made for 56).
      **constraints: keyword arguments of the family's drawer, for example `count=3` of a scene; `worn=0` gives a
        picture without noise and blur.

    Raises:
      DataError: unknown family or constraint, or one that cannot be met.
    """
    if family not in FAMILY_DRAWERS:
        raise DataError(f"no family of pictures called {family!r}", why=nearest(family, FAMILY_DRAWERS))
    drawer = FAMILY_DRAWERS[family]
    known = (
        [n for n, p in inspect.signature(drawer).parameters.items() if p.kind is p.KEYWORD_ONLY] if constraints else []
    )
    for name in constraints:
        if name not in known:
            raise DataError(f"a {family} cannot be asked for {name!r}", why=nearest(name, known))
    return drawer(rng, size, **constraints)
