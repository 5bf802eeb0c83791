"""Drawings of single characters and of words, printed and handwritten."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.pocket.draw_base import (
    between,
    blank,
    ground_under,
    pick,
    picks,
    tint,
    visible_on,
    wear,
    whole_between,
)
from hidecmoe_jax.data.pocket.draw_shapes import box_of
from hidecmoe_jax.data.pocket.draw_strokes import scan, write
from hidecmoe_jax.data.pocket.fonts import FONTS, extent, glyph, paste_mask, paste_word
from hidecmoe_jax.data.pocket.picture import DIGITS, GLYPHS, LOWER, UPPER, Picture, Thing
from hidecmoe_jax.data.pocket.skeletons import skeletons

_RESAMPLING = (Image.Resampling.NEAREST, Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
# Small letters that differ from their capitals in size alone (and l, which looks like I or 1) are not drawn alone.
_AMBIGUOUS = frozenset("cosvwxzl")
_CLEAR = "".join(letter for letter in LOWER if letter not in _AMBIGUOUS)
# Digits four times and capitals three times as often as small letters.
_ALONE = tuple(DIGITS * 4 + UPPER * 3 + _CLEAR)


def kind_of(character: str) -> str:
    """Returns the `Thing.kind` of a character."""
    return "digit" if character in DIGITS else "glyph"


def _coarse(mask: Image.Image, rng: np.random.Generator, cells: int, *, counted: bool) -> Image.Image:
    """The mask at a low resolution and scaled back, smooth or blocky."""
    if counted:
        low = scan(mask, cells)
    else:
        low = mask.resize((cells, cells), Image.Resampling.BOX)
    smooth = pick(rng, _RESAMPLING)
    return low.resize(mask.size, smooth)


def _tone(rng: np.random.Generator, ground: str | None, colour: str | None) -> tuple[str, str]:
    """Colour and ground of one character; in half of the free choices black and white, as in scans."""
    if ground is None and colour is None and rng.random() < 0.5:
        return pick(rng, (("black", "white"), ("white", "black")))
    ground = ground_under(rng, ground, colour)
    if not colour:
        colour = pick(rng, visible_on(ground))
    return colour, ground


def _picture_of(
    mask: Image.Image,
    rng: np.random.Generator,
    size: int,
    character: str,
    *,
    at: tuple[int, int],
    tone: tuple[str, str],
    family: str,
    font: str,
    large: bool,
    worn: float,
    ink_share: float = 1.0,
) -> Picture:
    """A picture of one character's mask at (left, top).

    Args:
      tone: names of the colour and of the ground.
      ink_share: 1 paints in the full colour, less mixes in the ground.
    """
    colour, ground = tone
    left, top = at
    image = blank(size, tint(rng, ground))
    paper = image.getpixel((0, 0))
    ink = []
    for full, empty in zip(tint(rng, colour), paper, strict=False):
        channel = empty + (full - empty) * ink_share
        ink.append(round(channel))
    paste_mask(image, tuple(ink), mask, left, top)
    # Faint grey at the edges of a coarse mask would not be taken for a part of the character.
    dark = mask.point(lambda value: 255 * (value > 60))
    x0, y0, x1, y1 = dark.getbbox() or (0, 0, mask.width, mask.height)
    box = box_of(left + x0, top + y0, left + x1, top + y1, size)
    size_name = "large" if large else "small"
    thing = Thing(kind_of(character), character, colour, size_name, box, font=font)
    pixels = wear(image, rng, worn)
    return Picture(pixels, (thing,), ground, family, {"text": character})


def _square(mask: Image.Image) -> Image.Image:
    """The mask in the middle of a square canvas with a small margin."""
    longest = max(mask.size)
    side = round(longest * 1.08) + 1
    canvas = Image.new("L", (side, side), 0)
    left = (side - mask.width) // 2
    top = (side - mask.height) // 2
    canvas.paste(mask, (left, top))
    return canvas


def _anywhere(rng: np.random.Generator, size: int, mask: Image.Image) -> tuple[int, int]:
    """A random place (left, top) of a mask on the picture."""
    room_x = size - mask.width + 1
    room_y = size - mask.height + 1
    left = int(between(rng, 0, room_x))
    top = int(between(rng, 0, room_y))
    return left, top


def _printed(rng: np.random.Generator, size: int, text: str, font: str, *, large: bool) -> Image.Image:
    """The mask of a printed character, now and then rotated or coarse; never larger than the picture."""
    smallest, largest = (30, 62) if large else (13, 22)
    points = int(between(rng, smallest, largest))
    mask, _, _ = glyph(font, points, text)
    if rng.random() < 0.35:
        angle = rng.normal(0, 9)
        mask = _square(mask).rotate(angle, Image.Resampling.BILINEAR)
        mask = mask.crop(mask.getbbox())
    if large and rng.random() < 0.3:
        mask = _square(mask).resize((2 * size, 2 * size))
        cells = int(between(rng, 8, 18))
        counted = rng.random() < 0.4
        mask = _coarse(mask, rng, cells, counted=counted)
        side = int(between(rng, 0.55, 1.0) * size)
        mask = mask.resize((side, side), Image.Resampling.BOX)
    return _not_larger(mask, size)


def _not_larger(mask: Image.Image, size: int) -> Image.Image:
    """The mask, scaled down where a side is longer than `size`."""
    longest = max(mask.size)
    if longest <= size:
        return mask
    share = size / longest
    width = int(mask.width * share)
    height = int(mask.height * share)
    return mask.resize((max(width, 1), max(height, 1)))


def character(
    rng: np.random.Generator,
    size: int,
    *,
    text: str | None = None,
    alphabet: str | None = None,
    large: bool | None = None,
    colour: str | None = None,
    ground: str | None = None,
    worn: float = 1.0,
) -> Picture:
    """Draws one printed character, small or large, upright or slightly rotated, sharp or coarse."""
    if not text:
        text = pick(rng, alphabet or _ALONE)
    if large is None:
        large = rng.random() < 0.6
    font = pick(rng, FONTS)
    mask = _printed(rng, size, text, font, large=large)
    at = _anywhere(rng, size, mask)
    tone = _tone(rng, ground, colour)
    return _picture_of(mask, rng, size, text, at=at, tone=tone, family="character", font=font, large=large, worn=worn)


def handwriting(
    rng: np.random.Generator,
    size: int,
    *,
    text: str | None = None,
    alphabet: str | None = None,
    look: str | None = None,
    colour: str | None = None,
    ground: str | None = None,
    worn: float = 1.0,
) -> Picture:
    """Draws one handwritten digit or letter.

    Args:
      look: "scan" (8 x 8 counts of ink, scaled up), "coarse" or "pen".
    """
    known = skeletons()
    if text is None:
        text = pick(rng, alphabet or _handwritten_alphabet(rng))
    if text not in known:
        raise DataError(f"no handwriting for {text!r}", why=f"known: {''.join(known)}")
    look = look or pick(rng, ("scan", "scan", "coarse", "pen"))
    # One in eight is a printed character with the look of a scan.
    if rng.random() < 0.12:
        printed_font = pick(rng, FONTS)
        printed, _, _ = glyph(printed_font, 60, text)
        mask = _square(printed).resize((64, 64))
    else:
        mask = write(text, rng)
    share_of_full = 0.75 if look == "scan" else 0.3
    side = size
    if rng.random() >= share_of_full:
        side = int(between(rng, 0.4, 1.0) * size)
    mask = _with_look(mask, rng, look, side)
    at = _anywhere(rng, size, mask)
    tone = _tone(rng, ground, colour)
    ink_share = between(rng, 0.75, 1.0)
    return _picture_of(
        mask,
        rng,
        size,
        text,
        at=at,
        tone=tone,
        family="handwriting",
        font="hand",
        large=side > size / 2,
        worn=worn,
        ink_share=ink_share,
    )


def _handwritten_alphabet(rng: np.random.Generator) -> tuple[str, ...] | str:
    """Characters of one handwritten picture: mostly the digits, else all letters that have a skeleton."""
    if rng.random() < 0.75:
        return DIGITS
    return tuple(name for name in skeletons() if name not in DIGITS)


def _with_look(mask: Image.Image, rng: np.random.Generator, look: str, side: int) -> Image.Image:
    """The mask [side, side] of handwriting as counts of ink, at a low resolution or as the pen left it.

    Raises:
      DataError: no such look.
    """
    if look == "scan":
        mask = scan(mask, 8)
    elif look == "coarse":
        cells = int(between(rng, 9, 20))
        mask = mask.resize((cells, cells), Image.Resampling.BOX)
    elif look != "pen":
        raise DataError(f"no look called {look!r}", why="known: scan, coarse, pen")
    smooth = Image.Resampling.BOX
    if look != "pen":
        smooth = pick(rng, _RESAMPLING)
    return mask.resize((side, side), smooth)


def word(
    rng: np.random.Generator,
    size: int,
    *,
    text: str | None = None,
    length: int | None = None,
    alphabet: str | None = None,
    font: str | None = None,
    colour: str | None = None,
    ground: str | None = None,
    worn: float = 1.0,
) -> Picture:
    """Draws 2-5 characters on a line, mostly capitals and digits, in one colour or now and then in several."""
    text = _text_of(rng, text, alphabet, length)
    ground = ground_under(rng, ground, colour)
    is_motley = colour is None and rng.random() < 0.15
    main = colour or pick(rng, visible_on(ground))
    colours = [main] * len(text)
    if is_motley:
        colours = picks(rng, visible_on(ground), len(text))
    font = font or pick(rng, FONTS)
    spacing = between(rng, 0, 2.0)
    wanted_points = int(between(rng, 13, 34))
    points = _fitting_points(text, font, wanted_points, spacing, size)
    image = blank(size, tint(rng, ground))
    width, top, bottom = extent(text, font, points, spacing)
    left, baseline = _line_start(rng, size, width, top, bottom)
    # Letters of one word in one colour share one tint, as if printed at once.
    if is_motley:
        ink = [tint(rng, name) for name in colours]
    else:
        ink = tint(rng, main)
    boxes = paste_word(
        image,
        text,
        font=font,
        points=points,
        left=left,
        baseline=baseline,
        ink=ink,
        spacing=spacing,
    )
    size_name = "large" if points >= 20 else "small"
    things = []
    for letter, name, pixel_box in zip(text, colours, boxes, strict=False):
        box = box_of(*pixel_box, size)
        things.append(Thing(kind_of(letter), letter, name, size_name, box, font=font))
    pixels = wear(image, rng, worn)
    return Picture(pixels, tuple(things), ground, "word", {"text": text})


def _text_of(rng: np.random.Generator, text: str | None, alphabet: str | None, length: int | None) -> str:
    """The text asked for, or random characters: 2-5 and mostly capitals, unless length or alphabet are given.

    Raises:
      DataError: a character that is not drawn.
    """
    if text is None:
        letters = alphabet or pick(rng, (UPPER, UPPER, UPPER + DIGITS, DIGITS, LOWER))
        if not length:
            length = whole_between(rng, 2, 5)
        text = "".join(picks(rng, letters, length))
    if any(letter not in GLYPHS for letter in text):
        raise DataError(f"cannot write {text!r}", why=f"drawn characters: {GLYPHS}")
    return text


def _line_start(rng: np.random.Generator, size: int, width: float, top: int, bottom: int) -> tuple[float, float]:
    """A random place (left, baseline) of a line whose width, highest and lowest ink are as of `extent`."""
    # A line as wide or as high as the picture leaves no choice; the range must not be empty all the same.
    rightmost = max(size - 1 - width, 1.01)
    lowest = max(size - 1 - bottom, 1.01 - top)
    left = between(rng, 1, rightmost)
    baseline = between(rng, 1 - top, lowest)
    return left, baseline


def _fitting_points(text: str, font: str, points: int, spacing: float, size: int) -> int:
    """The font size, reduced until the line fits on the picture, but not below 8 points."""
    room = size - 2
    width, top, bottom = extent(text, font, points, spacing)
    while (width > room or bottom - top > room) and points > 8:
        points -= 1
        width, top, bottom = extent(text, font, points, spacing)
    return points
