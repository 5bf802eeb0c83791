"""Handwriting from stroke skeletons.

Every drawing jitters the control points of a skeleton, bends, slants and stretches it, and draws it with a pen of
random width, so that one skeleton gives many handwritings. Pre-training sees the look of scanned handwriting (thick
pens, low resolution, grey levels) but no recorded handwriting.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from hidecmoe_jax.data.pocket.skeletons import CURVED, skeletons


@lru_cache(maxsize=64)
def _spline(count: int) -> np.ndarray:
    """Returns the matrix [dense, count] that maps `count` control points to a dense Catmull-Rom curve through them."""
    rows = []
    for piece in range(count - 1):
        for u in np.linspace(0, 1, 5, endpoint=False):
            row = np.zeros(count)
            weights = (
                -u + 2 * u**2 - u**3,
                2 - 5 * u**2 + 3 * u**3,
                u + 4 * u**2 - 3 * u**3,
                u**3 - u**2,
            )
            for offset, weight in zip((-1, 0, 1, 2), weights, strict=False):
                # The first and last point stand in for the neighbours that they lack.
                neighbour = min(max(piece + offset, 0), count - 1)
                row[neighbour] += weight / 2
            rows.append(row)
    last = np.zeros(count)
    last[-1] = 1
    return np.array([*rows, last])


def _bend(points_N2: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Adds a smooth random displacement, a sum of four sine waves, to points in [0, 1]^2."""
    amplitude = rng.normal(0, strength, (2, 4))
    phase = rng.random((2, 4)) * 6.283
    x = points_N2[:, :1]
    y = points_N2[:, 1:]
    along = np.concatenate([x * 3.1, y * 3.1, x * 6.3, y * 6.3], axis=1)
    shifts = []
    for axis in (0, 1):
        waves = np.sin(along + phase[axis]) * amplitude[axis] * (1, 1, 0.5, 0.5)
        shifts.append(waves.sum(1))
    return points_N2 + np.stack(shifts, axis=1)


def write(name: str, rng: np.random.Generator, *, canvas: int = 64, pen: float | None = None) -> Image.Image:
    """Draws one handwritten character as a grey mask [canvas, canvas], 255 for ink, as high as the canvas.

    Args:
      pen: width of the stroke as a fraction of the canvas; by default a random one from 0.055 to 0.155.
    """
    ways = skeletons()[name]
    way = ways[int(rng.random() * len(ways))]
    lines = _shaken(way, rng)
    points = _bend(np.concatenate(lines) - 0.5, rng, 0.035)
    slant = rng.normal(-0.08, 0.16)
    turn = rng.normal(0, 0.09)
    cos = np.cos(turn)
    sin = np.sin(turn)
    # A rotation after a horizontal shear.
    transform = np.array([[cos, sin], [slant * cos - sin, cos + slant * sin]])
    points = points @ transform
    if pen is None:
        pen = 0.055 + 0.1 * rng.random()
    width = pen * canvas
    points = _fitted(points, rng, canvas, canvas - width - 2)
    image = Image.new("L", (canvas, canvas), 0)
    brush = ImageDraw.Draw(image)
    start = 0
    for line in lines:
        stop = start + len(line)
        _put_stroke(brush, points[start:stop], width)
        start = stop
    return image


def _shaken(way: tuple, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns the strokes of a way as points [n, 2], their control points jittered."""
    wobble = 0.012 + 0.03 * rng.random()
    lines = []
    for kind, control in way:
        line = control + rng.normal(0, wobble, control.shape)
        if kind == CURVED:
            line = _spline(len(line)) @ line
        lines.append(line)
    return lines


def _fitted(points_N2: np.ndarray, rng: np.random.Generator, canvas: int, room: float) -> np.ndarray:
    """Scales and centres points, so that they fill `room` pixels in height and at most as many in width."""
    low = points_N2.min(0)
    high = points_N2.max(0)
    # A vertical line has no width; the lower bound keeps the scale finite.
    width, height = np.maximum(high - low, 0.08)
    aspect = min(width / height * (0.75 + 0.4 * rng.random()), 1.0)
    scale = np.array([aspect * room / width, room / height])
    return (points_N2 - (low + high) / 2) * scale + canvas / 2


def _put_stroke(brush: ImageDraw.ImageDraw, points_N2: np.ndarray, width: float) -> None:
    """Draws one line with round ends."""
    radius = width / 2
    line = [tuple(point) for point in points_N2.tolist()]
    brush.line(line, fill=255, width=max(1, round(width)), joint="curve")
    for x, y in (line[0], line[-1]):
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def scan(mask: Image.Image, cells: int) -> Image.Image:
    """Returns the share of ink in `cells` x `cells` blocks in 17 steps, as in scanned digit collections."""
    grey = np.asarray(mask.resize((cells, cells), Image.Resampling.BOX), np.float32)
    steps = np.round(grey / 255 * 16)
    return Image.fromarray((steps / 16 * 255).astype(np.uint8))
