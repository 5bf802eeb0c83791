"""Drawings that fill the whole picture: grids of coloured cells and textures."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.data.pocket.draw_base import between, ground_for, pick, pick_ground, picks, tint, visible_on, wear
from hidecmoe_jax.data.pocket.draw_shapes import box_of
from hidecmoe_jax.data.pocket.picture import COLOURS, TEXTURES, Picture, Thing


def grid(
    rng: np.random.Generator,
    size: int,
    *,
    k: int | None = None,
    cells: list[list[str]] | None = None,
    worn: float = 1.0,
) -> Picture:
    """Draws `k` x `k` coloured cells (k from 2 to 5), with or without lines between them."""
    k = len(cells) if cells else k or 2 + int(rng.random() * 4)
    names = tuple(COLOURS)
    # Few colours, so that counts above one are common.
    palette = picks(rng, names, 2 + int(rng.random() * 5))
    if not cells:
        cells = [picks(rng, palette, k) for _ in range(k)]
    ground = pick(rng, ("white", "black", "gray"))
    rule = int(rng.random() * 3)  # half the width of the lines between cells
    image = Image.new("RGB", (size, size), tint(rng, ground))
    brush = ImageDraw.Draw(image)
    edges = [round(index * size / k) for index in range(k + 1)]
    size_name = "large" if k < 4 else "small"
    things = []
    for row in range(k):
        for column in range(k):
            x0 = edges[column]
            y0 = edges[row]
            x1 = edges[column + 1]
            y1 = edges[row + 1]
            colour = cells[row][column]
            # Pillow counts the lower right corner to the rectangle.
            inside = (x0 + rule, y0 + rule, x1 - 1 - rule, y1 - 1 - rule)
            brush.rectangle(inside, fill=tint(rng, colour))
            box = box_of(x0, y0, x1, y1, size)
            things.append(Thing("cell", "cell", colour, size_name, box))
    pixels = wear(image, rng, worn)
    extra = {"k": k, "cells": list(map(list, cells))}
    return Picture(pixels, tuple(things), ground, "grid", extra)


def texture(
    rng: np.random.Generator, size: int, *, name: str | None = None, colour: str | None = None, worn: float = 1.0
) -> Picture:
    """Draws one pattern in one colour over the whole picture."""
    name = name or pick(rng, TEXTURES)
    ground = ground_for(rng, pick_ground(rng), (colour,) if colour is not None else ())
    colour = colour or pick(rng, visible_on(ground))
    field = _pattern(name, rng, size)
    # A random steepness: from soft waves to sharp edges.
    share = np.clip(field * between(rng, 1, 6) + 0.5, 0, 1)[..., None]
    ink = np.array(tint(rng, colour), np.float32)
    paper = np.array(tint(rng, ground), np.float32)
    mixed = share * ink + (1 - share) * paper
    image = Image.fromarray(mixed.astype(np.uint8))
    thing = Thing("texture", name, colour, "large", (0.0, 0.0, 1.0, 1.0))
    return Picture(wear(image, rng, worn), (thing,), ground, "texture")


def _pattern(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A pattern as a field [size, size] around 0: ink where it is positive, ground where it is negative.

    Raises:
      DataError: no such pattern.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    period = between(rng, 5, 16)
    phase = between(rng, 0, 6.283)
    f = 6.2832 / period
    # Drawn for every pattern, also for those without it.
    tilt = rng.normal(0, 0.06)
    if name == "stripes":
        return np.sin((y + tilt * x) * f + phase)
    if name == "columns":
        return np.sin((x + tilt * y) * f + phase)
    if name == "diagonals":
        direction = pick(rng, (-1, 1))
        return np.sin((x + direction * y) * 0.72 * f + phase)
    angle_x = x * f + phase
    angle_y = y * f + phase
    if name == "checks":
        return np.sin(angle_x) * np.sin(angle_y)
    if name == "dots":
        return np.cos(angle_x) + np.cos(angle_y) - 0.7
    if name == "waves":
        height = between(rng, 1, 2.2)
        bend = np.sin(x * between(rng, 0.2, 0.4))
        return np.sin(angle_y + height * bend)
    if name == "rings":
        centre_x = size * between(rng, 0.3, 0.7)
        centre_y = size * between(rng, 0.3, 0.7)
        distance = np.hypot(x - centre_x, y - centre_y)
        return np.sin(distance * f + phase)
    if name == "noise":
        side = int(size / period * 2) + 2
        coarse = rng.normal(0, 1, (side, side)).astype(np.float32)
        smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(smooth)
    raise DataError(f"no texture called {name!r}", why=nearest(name, TEXTURES))
