"""Writing on pictures: characters and words in the fonts that come with matplotlib, and handwriting.

Glyph masks are rendered once per font, size and character and then only pasted, which is what makes drawing fast.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.pocket.draw_base import between, pick, pick_ground, tint, visible_on, wear
from hidecmoe_jax.data.pocket.draw_shapes import box_of
from hidecmoe_jax.data.pocket.draw_strokes import scan, skeletons, write
from hidecmoe_jax.data.pocket.picture import DIGITS, GLYPHS, LOWER, UPPER, Picture, Thing

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic", "STIXGeneralBolIta", "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
_RESAMPLING = (Image.Resampling.NEAREST, Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
_SAME_IN_SMALL = frozenset("cosvwxz")
"""Small letters that only their size tells from the capital; not drawn alone."""
_ALONE = tuple(DIGITS * 4 + UPPER * 3 + "".join(c for c in LOWER if c not in _SAME_IN_SMALL and c != "l"))


def kind_of(character: str) -> str:
    """The `Thing.kind` of a character."""
    return "digit" if character in DIGITS else "glyph"


@lru_cache(maxsize=1)
def _folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=2048)
def _font(name: str, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_folder() / f"{name}.ttf"), points, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=120_000)
def glyph(name: str, points: int, character: str) -> tuple[Image.Image, tuple[int, int], float]:
    """A character's grey mask cut to its ink, the offset of that ink from the baseline's start, and its advance."""
    font = _font(name, points)
    x0, y0, x1, y1 = font.getbbox(character, anchor="ls")
    core, offset = font.getmask2(character, mode="L", anchor="ls")
    mask = Image.frombytes("L", core.size, bytes(core))
    cut = mask.getbbox()
    if cut is None:
        raise DataError(f"font {name} has no ink for {character!r}")
    return mask.crop(cut), (offset[0] + cut[0], offset[1] + cut[1]), font.getlength(character)


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
) -> list[tuple[float, float, float, float]]:
    """Paste characters on one line; returns every character's ink box in pixels."""
    boxes, x = [], left
    for k, character in enumerate(text):
        mask, (dx, dy), advance = glyph(font, points, character)
        at = (round(x + dx), round(baseline + dy))
        image.paste(ink[k] if isinstance(ink, list) else ink, (*at, at[0] + mask.width, at[1] + mask.height), mask)
        boxes.append((at[0], at[1], at[0] + mask.width, at[1] + mask.height))
        x += advance + spacing
    return boxes


def extent(text: str, font: str, points: int, spacing: float = 0.0) -> tuple[float, int, int]:
    """Width of a line and its highest and lowest ink against the baseline, in pixels."""
    parts = [glyph(font, points, character) for character in text]
    width = sum(advance for _, _, advance in parts) + spacing * (len(text) - 1)
    return width, min(dy for _, (_, dy), _ in parts), max(dy + mask.height for mask, (_, dy), _ in parts)


def _coarse(mask: Image.Image, rng: np.random.Generator, cells: int, *, counted: bool) -> Image.Image:
    """The mask at a low resolution and scaled back, smooth or blocky."""
    side = mask.size
    low = scan(mask, cells) if counted else mask.resize((cells, cells), Image.Resampling.BOX)
    return low.resize(side, pick(rng, _RESAMPLING))


def _tone(rng: np.random.Generator, ground: str | None, colour: str | None) -> tuple[str, str]:
    """Colour and ground for one character; half of the time ink and paper as scans have them."""
    if ground is None and colour is None and rng.random() < 0.5:
        return pick(rng, (("black", "white"), ("white", "black")))
    ground = pick_ground(rng, ground)
    while colour is not None and colour not in visible_on(ground):
        ground = pick_ground(rng)
    return colour or pick(rng, visible_on(ground)), ground


def _one(
    mask: Image.Image, rng: np.random.Generator, size: int, character: str, *, at: tuple[int, int], tone: tuple,
    family: str, font: str, large: str, worn: float, ink_share: float = 1.0
) -> Picture:  # fmt: skip
    """Lay one mask on a ground and say where its ink is."""
    colour, ground = tone
    image = Image.new("RGB", (size, size), tint(rng, ground))
    paper = image.getpixel((0, 0))
    ink = tuple(round(p + (c - p) * ink_share) for c, p in zip(tint(rng, colour), paper, strict=False))
    image.paste(ink, (*at, at[0] + mask.width, at[1] + mask.height), mask)
    cut = mask.point(lambda v: 255 * (v > 60)).getbbox() or (0, 0, mask.width, mask.height)
    box = box_of(at[0] + cut[0], at[1] + cut[1], at[0] + cut[2], at[1] + cut[3], size)
    thing = Thing(kind_of(character), character, colour, large, box, font=font)
    return Picture(wear(image, rng, worn), (thing,), ground, family, {"text": character})


def _square(mask: Image.Image) -> Image.Image:
    """The mask on a square canvas that leaves a little air."""
    side = round(max(mask.size) * 1.08) + 1
    canvas = Image.new("L", (side, side), 0)
    canvas.paste(mask, ((side - mask.width) // 2, (side - mask.height) // 2))
    return canvas


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
    """One printed character, small or large, upright or a little turned, sharp or coarse."""
    text = text or pick(rng, alphabet or _ALONE)
    large = rng.random() < 0.6 if large is None else large
    font = pick(rng, FONTS)
    mask, _, _ = glyph(font, int(between(rng, 30, 62) if large else between(rng, 13, 22)), text)
    if rng.random() < 0.35:
        mask = _square(mask).rotate(rng.normal(0, 9), Image.Resampling.BILINEAR)
        mask = mask.crop(mask.getbbox())
    if large and rng.random() < 0.3:
        mask = _square(mask).resize((2 * size, 2 * size))
        mask = _coarse(mask, rng, int(between(rng, 8, 18)), counted=rng.random() < 0.4)
        side = int(between(rng, 0.55, 1.0) * size)
        mask = mask.resize((side, side), Image.Resampling.BOX)
    if max(mask.size) > size:
        share = size / max(mask.size)
        mask = mask.resize((max(int(mask.width * share), 1), max(int(mask.height * share), 1)))
    at = tuple(int(between(rng, 0, size - side + 1)) for side in mask.size)
    return _one(
        mask,
        rng,
        size,
        text,
        at=at,
        tone=_tone(rng, ground, colour),
        family="character",
        font=font,
        large="large" if large else "small",
        worn=worn,
    )


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
    """One handwritten digit or letter. `look`: "scan" (8 x 8 counts, scaled up), "coarse" or "pen"."""
    known = skeletons()
    if text is None:
        text = pick(rng, alphabet or (DIGITS if rng.random() < 0.75 else tuple(c for c in known if c not in DIGITS)))
    if text not in known:
        raise DataError(f"no handwriting for {text!r}", why=f"known: {''.join(known)}")
    look = look or pick(rng, ("scan", "scan", "coarse", "pen"))
    if rng.random() < 0.12:
        mask = _square(glyph(pick(rng, FONTS), 60, text)[0]).resize((64, 64))
    else:
        mask = write(text, rng)
    side = size if rng.random() < (0.75 if look == "scan" else 0.3) else int(between(rng, 0.4, 1.0) * size)
    if look == "scan":
        mask = scan(mask, 8)
    elif look == "coarse":
        mask = mask.resize((int(between(rng, 9, 20)),) * 2, Image.Resampling.BOX)
    elif look != "pen":
        raise DataError(f"no look called {look!r}", why="known: scan, coarse, pen")
    mask = mask.resize((side, side), pick(rng, _RESAMPLING) if look != "pen" else Image.Resampling.BOX)
    at = tuple(int(between(rng, 0, size - side + 1)) for _ in range(2))
    return _one(
        mask,
        rng,
        size,
        text,
        at=at,
        tone=_tone(rng, ground, colour),
        family="handwriting",
        font="hand",
        large="large" if side > size / 2 else "small",
        worn=worn,
        ink_share=between(rng, 0.75, 1.0),
    )


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
    """2-5 characters on a line, mostly capitals and digits; one colour, or now and then one for each."""
    if text is None:
        letters = alphabet or pick(rng, (UPPER, UPPER, UPPER + DIGITS, DIGITS, LOWER))
        text = "".join(pick(rng, letters) for _ in range(length or 2 + int(rng.random() * 4)))
    if any(c not in GLYPHS for c in text):
        raise DataError(f"cannot write {text!r}", why=f"drawn characters: {GLYPHS}")
    ground = pick_ground(rng, ground)
    while colour is not None and colour not in visible_on(ground):
        ground = pick_ground(rng)
    motley = colour is None and rng.random() < 0.15
    main = colour or pick(rng, visible_on(ground))
    names = [pick(rng, visible_on(ground)) if motley else main for _ in text]
    font = font or pick(rng, FONTS)
    spacing = between(rng, 0, 2.0)
    points = int(between(rng, 13, 34))
    width, top, bottom = extent(text, font, points, spacing)
    while (width > size - 2 or bottom - top > size - 2) and points > 8:
        points -= 1
        width, top, bottom = extent(text, font, points, spacing)
    image = Image.new("RGB", (size, size), tint(rng, ground))
    left = between(rng, 1, max(size - 1 - width, 1.01))
    baseline = between(rng, 1 - top, max(size - 1 - bottom, 1.01 - top))
    boxes = paste_word(
        image,
        text,
        font=font,
        points=points,
        left=left,
        baseline=baseline,
        ink=[tint(rng, n) for n in names] if motley else tint(rng, main),
        spacing=spacing,
    )
    size_name = "large" if points >= 20 else "small"
    things = tuple(
        Thing(kind_of(c), c, n, size_name, box_of(*b, size), font=font)
        for c, n, b in zip(text, names, boxes, strict=False)
    )
    return Picture(wear(image, rng, worn), things, ground, "word", {"text": text})
