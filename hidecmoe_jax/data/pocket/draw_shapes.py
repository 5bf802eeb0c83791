"""Coloured shapes, grids, textures and strokes: everything on a picture that is not writing.

Shapes are drawn at twice the size and averaged down, so their edges are smooth. A shape's outline in [-1, 1] comes
from `outline`; where it ends up on the picture gives its box.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.data.pocket.draw_base import between, pick, pick_ground, tint, visible_on, wear
from hidecmoe_jax.data.pocket.picture import COLOURS, SHAPES, TEXTURES, Picture, Thing

_TURN = {"square": 0.14, "triangle": 0.22, "star": 3.2, "cross": 0.16, "diamond": 0.08, "heart": 0.16, "moon": 0.35}
_SMALL, _LARGE = (5.0, 6.6), (9.0, 13.0)
RADII = {"small": _SMALL, "large": _LARGE}
"""Half sides, in pixels of a 56 pixel picture, that count as small and as large."""


@lru_cache(maxsize=16)
def outline(shape: str) -> np.ndarray:
    """Corner points [n, 2] of a shape in [-1, 1]^2; y points down."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    round_ = np.stack([np.cos(turn), np.sin(turn)], 1)
    if shape in ("circle", "ring"):
        return round_
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.9
    if shape == "triangle":
        return np.array([(0, -1), (1, 0.85), (-1, 0.85)])
    if shape == "diamond":
        return np.array([(0, -1), (0.78, 0), (0, 1), (-0.78, 0)])
    if shape == "cross":
        a = 0.32
        return np.array(
            [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
        )
    if shape == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        return np.stack([np.cos(angles), np.sin(angles)], 1) * np.where(np.arange(10) % 2, 0.42, 1.05)[:, None]
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 15
        return np.stack([np.sin(t) ** 3 * 1.02, (y - 0.12)], 1)
    if shape == "moon":
        outer = np.linspace(0.9, 2 * np.pi - 0.9, 18)
        inner = np.linspace(2 * np.pi - 1.35, 1.35, 14)
        far = np.stack([np.cos(outer), np.sin(outer)], 1)
        near = np.stack([0.52 + 0.75 * np.cos(inner), 0.82 * np.sin(inner)], 1)
        return np.concatenate([far, near]) + (0.15, 0)
    raise DataError(f"no shape called {shape!r}", why=nearest(shape, SHAPES))


def put_shape(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    shape: str,
    *,
    centre: tuple[float, float],
    radius: float,
    ink: tuple,
    ground: tuple,
    filled: bool,
    zoom: int = 2,
) -> tuple[float, float, float, float]:
    """Draws one shape on a canvas `zoom` times the picture; centre and radius in picture pixels. Returns its box."""
    points = outline(shape)
    angle = _TURN.get(shape, 0.0) * (2 * rng.random() - 1)
    cos, sin = np.cos(angle), np.sin(angle)
    points = points @ np.array([[cos, sin], [-sin, cos]]) * radius + centre
    corners = [tuple(p) for p in (points * zoom).tolist()]
    if filled or shape in ("circle", "ring"):
        brush.polygon(corners, fill=ink)
    else:
        width = round(zoom * between(rng, 1.2, min(2.6, radius / 3)))
        brush.line([*corners, corners[0], corners[1]], fill=ink, width=max(width, 2), joint="curve")
    if shape == "ring":
        inner = radius * between(rng, 0.48, 0.6) * zoom
        x, y = centre[0] * zoom, centre[1] * zoom
        brush.ellipse((x - inner, y - inner, x + inner, y + inner), fill=ground)
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def layout(rng: np.random.Generator, radii: list[float], size: int, gap: float = 1.0) -> list[tuple] | None:
    """Centres (x, y) for discs' bounding squares that stay apart, or None when they would not fit."""
    placed: list[tuple] = []
    for radius in radii:
        for _ in range(30):
            x = between(rng, radius + 0.5, size - radius - 0.5)
            y = between(rng, radius + 0.5, size - radius - 0.5)
            if all(max(abs(x - a), abs(y - b)) >= radius + r + gap for a, b, r in placed):
                placed.append((x, y, radius))
                break
        else:
            return None
    return [(x, y) for x, y, _ in placed]


def _fit(rng: np.random.Generator, sizes: list[str], size: int, *, fixed: bool) -> tuple[list[str], list[float], list]:
    """Radii and centres for the wanted sizes; large things give way to small ones unless the sizes are fixed."""
    unit = size / 56
    for attempt in range(200):
        radii = [between(rng, *RADII[s]) * unit for s in sizes]
        order = sorted(range(len(sizes)), key=lambda i: -radii[i])
        centres = layout(rng, [radii[i] for i in order], size)
        if centres is not None:
            back = [centres[order.index(i)] for i in range(len(sizes))]
            return sizes, radii, back
        if not fixed and attempt % 2 and "large" in sizes:
            sizes = list(sizes)
            sizes[sizes.index("large")] = "small"
    raise DataError(
        f"{len(sizes)} shapes of sizes {sizes} do not fit on {size} pixels", remedy="ask for fewer or small ones"
    )


def box_of(x0: float, y0: float, x1: float, y1: float, size: int) -> tuple[float, float, float, float]:
    """A box in pixels as clipped fractions of the picture."""
    return tuple(min(max(v / size, 0.0), 1.0) for v in (x0, y0, x1, y1))


def scene(
    rng: np.random.Generator,
    size: int,
    *,
    count: int | None = None,
    shapes: list[str] | None = None,
    colours: list[str] | None = None,
    sizes: list[str] | None = None,
    filled: bool | None = None,
    ground: str | None = None,
    worn: float = 1.0,
) -> Picture:
    """1-6 shapes, apart from each other. Lists give every thing's property in order (None: free); `count` follows."""
    lists = [values for values in (shapes, colours, sizes) if values is not None]
    count = count or (len(lists[0]) if lists else 1 + int(rng.random() * 6))
    if any(len(values) != count for values in lists):
        raise DataError("scene: shapes, colours, sizes and count disagree in length", why=f"count {count}")
    ground = pick_ground(rng, ground)
    while colours and any(c not in visible_on(ground) for c in colours):
        ground = pick_ground(rng)
    few = 0.65 if count <= 3 else 0.4
    wanted = sizes or ["large" if rng.random() < few else "small" for _ in range(count)]
    wanted, radii, centres = _fit(rng, wanted, size, fixed=sizes is not None)
    paper = tint(rng, ground)
    image = Image.new("RGB", (2 * size, 2 * size), paper)
    brush = ImageDraw.Draw(image)
    things = []
    for k in range(count):
        shape = shapes[k] if shapes else pick(rng, SHAPES)
        colour = colours[k] if colours else pick(rng, visible_on(ground))
        solid = shape in ("circle", "ring") or (rng.random() < 0.72 if filled is None else filled)
        box = put_shape(
            brush, rng, shape, centre=centres[k], radius=radii[k], ink=tint(rng, colour), ground=paper, filled=solid
        )
        things.append(Thing("shape", shape, colour, wanted[k], box_of(*box, size), solid))
    return Picture(wear(image.reduce(2), rng, worn), tuple(things), ground, "scene", {"count": count})


def grid(
    rng: np.random.Generator,
    size: int,
    *,
    k: int | None = None,
    cells: list[list[str]] | None = None,
    worn: float = 1.0,
) -> Picture:
    """k x k coloured cells (k from 2 to 5), with or without rules between them."""
    k = len(cells) if cells else k or 2 + int(rng.random() * 4)
    names = tuple(COLOURS)
    palette = [pick(rng, names) for _ in range(2 + int(rng.random() * 5))]
    cells = cells or [[pick(rng, palette) for _ in range(k)] for _ in range(k)]
    ground = pick(rng, ("white", "black", "gray"))
    rule = int(rng.random() * 3)
    image = Image.new("RGB", (size, size), tint(rng, ground))
    brush = ImageDraw.Draw(image)
    edges = [round(i * size / k) for i in range(k + 1)]
    things = []
    for row in range(k):
        for column in range(k):
            x0, y0, x1, y1 = edges[column], edges[row], edges[column + 1], edges[row + 1]
            colour = cells[row][column]
            brush.rectangle((x0 + rule, y0 + rule, x1 - 1 - rule, y1 - 1 - rule), fill=tint(rng, colour))
            things.append(Thing("cell", "cell", colour, "large" if k < 4 else "small", box_of(x0, y0, x1, y1, size)))
    pixels = wear(image, rng, worn)
    return Picture(pixels, tuple(things), ground, "grid", {"k": k, "cells": [list(row) for row in cells]})


def texture(
    rng: np.random.Generator, size: int, *, name: str | None = None, colour: str | None = None, worn: float = 1.0
) -> Picture:
    """One pattern in one colour on a ground, over the whole picture."""
    name = name or pick(rng, TEXTURES)
    ground = pick_ground(rng)
    while colour is not None and colour not in visible_on(ground):
        ground = pick_ground(rng)
    colour = colour or pick(rng, visible_on(ground))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    period, phase = between(rng, 5, 16), between(rng, 0, 6.283)
    f = 6.2832 / period
    tilt = rng.normal(0, 0.06)
    if name == "stripes":
        field = np.sin((y + tilt * x) * f + phase)
    elif name == "columns":
        field = np.sin((x + tilt * y) * f + phase)
    elif name == "diagonals":
        field = np.sin((x + pick(rng, (-1, 1)) * y) * 0.72 * f + phase)
    elif name == "checks":
        field = np.sin(x * f + phase) * np.sin(y * f + phase)
    elif name == "dots":
        field = np.cos(x * f + phase) + np.cos(y * f + phase) - 0.7
    elif name == "waves":
        field = np.sin(y * f + phase + between(rng, 1, 2.2) * np.sin(x * between(rng, 0.2, 0.4)))
    elif name == "rings":
        field = np.sin(np.hypot(x - size * between(rng, 0.3, 0.7), y - size * between(rng, 0.3, 0.7)) * f + phase)
    elif name == "noise":
        coarse = rng.normal(0, 1, (int(size / period * 2) + 2,) * 2).astype(np.float32)
        field = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    else:
        raise DataError(f"no texture called {name!r}", why=nearest(name, TEXTURES))
    share = np.clip(field * between(rng, 1, 6) + 0.5, 0, 1)[..., None]
    ink, paper = np.array(tint(rng, colour), np.float32), np.array(tint(rng, ground), np.float32)
    image = Image.fromarray((share * ink + (1 - share) * paper).astype(np.uint8))
    thing = Thing("texture", name, colour, "large", (0.0, 0.0, 1.0, 1.0))
    return Picture(wear(image, rng, worn), (thing,), ground, "texture")


LINES = ("horizontal", "vertical", "rising", "falling")


def lines(
    rng: np.random.Generator, size: int, *, count: int | None = None, ground: str | None = None, worn: float = 1.0
) -> Picture:
    """1-4 straight strokes of different colour, thin or thick."""
    ground = pick_ground(rng, ground)
    image = Image.new("RGB", (2 * size, 2 * size), tint(rng, ground))
    brush = ImageDraw.Draw(image)
    things = []
    for _ in range(count or 1 + int(rng.random() * 4)):
        name, colour = pick(rng, LINES), pick(rng, visible_on(ground))
        length, width = between(rng, 0.3, 0.9) * size, between(rng, 0.8, 4.5)
        across = between(rng, 0.45, 1.0) * length
        wide = {"horizontal": length, "vertical": rng.normal(0, 1)}.get(name, length)
        high = {"horizontal": rng.normal(0, 1), "vertical": length}.get(name, across)
        high = -high if name == "rising" else high
        x = between(rng, 2, size - 2 - abs(wide))
        y = between(rng, 2, size - 2 - abs(high)) - min(high, 0)
        brush.line([v * 2 for v in (x, y, x + wide, y + high)], fill=tint(rng, colour), width=round(2 * width))
        half = width / 2
        box = (min(x, x + wide) - half, min(y, y + high) - half, max(x, x + wide) + half, max(y, y + high) + half)
        length_name = "large" if length > size / 2 else "small"
        things.append(Thing("line", name, colour, length_name, box_of(*box, size)))
    return Picture(wear(image.reduce(2), rng, worn), tuple(things), ground, "lines", {"count": len(things)})
