"""Drawings that fill the whole picture: grids of coloured cells and textures."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from hidecmoe_jax.core.errors import DataError, nearest
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
    if cells:
        k = len(cells)
    elif not k:
        k = whole_between(rng, 2, 5)
    # Few colours, so that counts above one are common.
    count = whole_between(rng, 2, 6)
    palette = picks(rng, tuple(COLOURS), count)
    if not cells:
        cells = [picks(rng, palette, k) for _ in range(k)]
    ground = pick(rng, ("white", "black", "gray"))
    rule = whole_between(rng, 0, 2)  # half the width of the lines between cells
    image = blank(size, tint(rng, ground))
    things = _put_cells(image, rng, cells, rule)
    pixels = wear(image, rng, worn)
    extra = {"k": k, "cells": list(map(list, cells))}
    return Picture(pixels, tuple(things), ground, "grid", extra)


def _put_cells(image: Image.Image, rng: np.random.Generator, cells: list[list[str]], rule: int) -> list[Thing]:
    """Draws all cells, `rule` pixels smaller on each side than their boxes, and returns them row by row."""
    size = image.width
    brush = ImageDraw.Draw(image)
    k = len(cells)
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
            right = x1 - 1 - rule
            bottom = y1 - 1 - rule
            inside = (x0 + rule, y0 + rule, right, bottom)
            brush.rectangle(inside, fill=tint(rng, colour))
            box = box_of(x0, y0, x1, y1, size)
            cell = Thing("cell", "cell", colour, size_name, box)
            things.append(cell)
    return things


def texture(
    rng: np.random.Generator, size: int, *, name: str | None = None, colour: str | None = None, worn: float = 1.0
) -> Picture:
    """Draws one pattern in one colour over the whole picture."""
    name = name or pick(rng, TEXTURES)
    ground = ground_under(rng, None, colour)
    if not colour:
        colour = pick(rng, visible_on(ground))
    field = _pattern(name, rng, size)
    # A random steepness: from soft waves to sharp edges.
    steepness = between(rng, 1, 6)
    steep_field = field * steepness + 0.5
    share = np.clip(steep_field, 0, 1)[..., None]
    ink = np.array(tint(rng, colour), np.float32)
    paper = np.array(tint(rng, ground), np.float32)
    mixed = share * ink + (1 - share) * paper
    image = Image.fromarray(mixed.astype(np.uint8))
    thing = Thing("texture", name, colour, "large", (0.0, 0.0, 1.0, 1.0))
    pixels = wear(image, rng, worn)
    return Picture(pixels, (thing,), ground, "texture")


def _pattern(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A pattern as a field [size, size] around 0: ink where it is positive, ground where it is negative.

    Raises:
      DataError: no such pattern.
    """
    coordinates = np.mgrid[0:size, 0:size]
    y, x = coordinates.astype(np.float32)
    period = between(rng, 5, 16)
    phase = between(rng, 0, 6.283)
    f = 6.2832 / period
    # Drawn for every pattern, also for those without it.
    tilt = rng.normal(0, 0.06)
    if name == "stripes":
        along = y + tilt * x
        return np.sin(along * f + phase)
    if name == "columns":
        along = x + tilt * y
        return np.sin(along * f + phase)
    if name == "diagonals":
        direction = pick(rng, (-1, 1))
        along = x + direction * y
        return np.sin(along * 0.72 * f + phase)
    angle_x = x * f + phase
    angle_y = y * f + phase
    if name == "checks":
        return np.sin(angle_x) * np.sin(angle_y)
    if name == "dots":
        return np.cos(angle_x) + np.cos(angle_y) - 0.7
    if name == "waves":
        height = between(rng, 1, 2.2)
        frequency = between(rng, 0.2, 0.4)
        bend = np.sin(x * frequency)
        return np.sin(angle_y + height * bend)
    if name == "rings":
        centre_x = size * between(rng, 0.3, 0.7)
        centre_y = size * between(rng, 0.3, 0.7)
        distance = np.hypot(x - centre_x, y - centre_y)
        return np.sin(distance * f + phase)
    if name == "noise":
        side = int(size / period * 2) + 2
        noise = rng.normal(0, 1, (side, side))
        coarse = Image.fromarray(noise.astype(np.float32))
        smooth = coarse.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(smooth)
    raise DataError(f"no texture called {name!r}", why=nearest(name, TEXTURES))
