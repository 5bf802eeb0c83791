"""Printed characters: glyph masks in the fonts that come with matplotlib, and words on one line.

Glyph masks are rendered once for every font, size and character and then only pasted; that makes drawing fast.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageFont

from hidecmoe_jax.core.errors import DataError

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic", "STIXGeneralBolIta", "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip


@lru_cache(maxsize=1)
def _folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=2048)
def _font(name: str, points: int) -> ImageFont.FreeTypeFont:
    # The basic layout engine is part of Pillow everywhere; the other one depends on the installation.
    return ImageFont.truetype(str(_folder() / f"{name}.ttf"), points, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=120_000)
def glyph(name: str, points: int, character: str) -> tuple[Image.Image, tuple[int, int], float]:
    """Returns a character's grey mask cut to its ink, the offset of the ink from the baseline's start, and its advance.

    Raises:
      DataError: the font has no ink for the character.
    """
    font = _font(name, points)
    core, (left, top) = font.getmask2(character, mode="L", anchor="ls")
    mask = Image.frombytes("L", core.size, bytes(core))
    ink = mask.getbbox()
    if ink is None:
        raise DataError(f"font {name} has no ink for {character!r}")
    offset = (left + ink[0], top + ink[1])
    return mask.crop(ink), offset, font.getlength(character)


def paste_mask(
    image: Image.Image, ink: tuple[int, ...], mask: Image.Image, left: int, top: int
) -> tuple[int, int, int, int]:
    """Paints `ink` through a mask at (left, top); returns the box of the mask in pixels."""
    box = (left, top, left + mask.width, top + mask.height)
    image.paste(ink, box, mask)
    return box


def paste_word(
    image: Image.Image,
    text: str,
    *,
    font: str,
    points: int,
    left: float,
    baseline: float,
    ink: tuple | list[tuple],
    spacing: float = 0.0,
) -> list[tuple[int, int, int, int]]:
    """Paints characters on one line; returns the ink box of every character in pixels.

    Args:
      ink: one colour, or one for every character.
    """
    boxes = []
    x = left
    for index, character in enumerate(text):
        mask, (dx, dy), advance = glyph(font, points, character)
        colour = ink[index] if isinstance(ink, list) else ink
        boxes.append(paste_mask(image, colour, mask, round(x + dx), round(baseline + dy)))
        x += advance + spacing
    return boxes


def extent(text: str, font: str, points: int, spacing: float = 0.0) -> tuple[float, int, int]:
    """Returns the width of a line, and its highest and lowest ink relative to the baseline, in pixels."""
    advances = []
    tops = []
    bottoms = []
    for character in text:
        mask, (_, top), advance = glyph(font, points, character)
        advances.append(advance)
        tops.append(top)
        bottoms.append(top + mask.height)
    width = sum(advances) + spacing * (len(text) - 1)
    return width, min(tops), max(bottoms)
