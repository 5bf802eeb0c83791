"""Handwriting from stroke skeletons.

Every drawing jitters the control points of a skeleton, bends, slants and stretches it, and draws it with a pen of
random width, so that one skeleton gives many handwritings. Pre-training sees the look of scanned handwriting (thick
pens, low resolution, grey levels) but no recorded handwriting.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from hidecmoe_jax.data.pocket.draw_base import square_around
from hidecmoe_jax.data.pocket.skeletons import CURVED, skeletons


@lru_cache(maxsize=64)
def _spline(count: int) -> np.ndarray:
    """Returns the matrix [dense, count] that maps `count` control points to a dense Catmull-Rom curve through them."""
    rows = []
    for piece in range(count - 1):
        for u in np.linspace(0, 1, 5, endpoint=False):
            row = _spline_row(count, piece, u)
            rows.append(row)
    last = np.zeros(count)
    last[-1] = 1
    rows.append(last)
    return np.array(rows)


def _spline_row(count: int, piece: int, u: float) -> np.ndarray:
    """Weights [count] of the control points at the place `u` in [0, 1) between points `piece` and `piece + 1`."""
    row = np.zeros(count)
    for offset, weight in enumerate(_doubled_weights(u)):
        neighbour = piece - 1 + offset
        # The first and last point stand in for the neighbours that they lack.
        index = min(max(neighbour, 0), count - 1)
        row[index] += weight / 2
    return row


def _doubled_weights(u: float) -> tuple[float, float, float, float]:
    """Twice the Catmull-Rom weights of four points in a row, at the place `u` between the middle two."""
    square = u**2
    cube = u**3
    first = -u + 2 * square - cube
    second = 2 - 5 * square + 3 * cube
    third = u + 4 * square - 3 * cube
    fourth = cube - square
    return first, second, third, fourth


def _bend(points_N2: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Adds a smooth random displacement, a sum of four sine waves, to points in [0, 1]^2."""
    amplitude = rng.normal(0, strength, (2, 4))
    phase = rng.random((2, 4)) * 6.283
    long_waves = points_N2 * 3.1
    short_waves = points_N2 * 6.3
    along = np.concatenate([long_waves, short_waves], axis=1)
    heights = (1, 1, 0.5, 0.5)  # short waves are half as high as long ones
    shifts = []
    for axis in (0, 1):
        angles = along + phase[axis]
        waves = np.sin(angles) * amplitude[axis] * heights
        shifts.append(waves.sum(1))
    return points_N2 + np.stack(shifts, axis=1)


def _slanted(points_N2: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shears points horizontally and then rotates them around (0, 0), both by random amounts."""
    slant = rng.normal(-0.08, 0.16)
    turn = rng.normal(0, 0.09)
    cos = np.cos(turn)
    sin = np.sin(turn)
    # A rotation after a horizontal shear.
    x_row = [cos, sin]
    sheared_x = slant * cos - sin
    sheared_y = cos + slant * sin
    transform = np.array([x_row, [sheared_x, sheared_y]])
    return points_N2 @ transform


def write(name: str, rng: np.random.Generator, *, canvas: int = 64, pen: float | None = None) -> Image.Image:
    """Draws one handwritten character as a grey mask [canvas, canvas], 255 for ink, as high as the canvas.

    Args:
      pen: width of the stroke as a fraction of the canvas; by default a random one from 0.055 to 0.155.
    """
    ways = skeletons()[name]
    way_index = int(rng.random() * len(ways))
    lines = _shaken(ways[way_index], rng)
    centred = np.concatenate(lines) - 0.5
    points = _bend(centred, rng, 0.035)
    points = _slanted(points, rng)
    if pen is None:
        pen = 0.055 + 0.1 * rng.random()
    width = pen * canvas
    room = canvas - width - 2
    points = _fitted(points, rng, canvas, room)
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
        jitter = rng.normal(0, wobble, control.shape)
        line = control + jitter
        if kind == CURVED:
            spline = _spline(len(line))
            line = spline @ line
        lines.append(line)
    return lines


def _fitted(points_N2: np.ndarray, rng: np.random.Generator, canvas: int, room: float) -> np.ndarray:
    """Scales and centres points, so that they fill `room` pixels in height and at most as many in width."""
    low = points_N2.min(0)
    high = points_N2.max(0)
    # A vertical line has no width; the lower bound keeps the scale finite.
    width, height = np.maximum(high - low, 0.08)
    stretch = 0.75 + 0.4 * rng.random()
    aspect = min(width / height * stretch, 1.0)
    scale_x = aspect * room / width
    scale_y = room / height
    scale = np.array([scale_x, scale_y])
    middle = (low + high) / 2
    return (points_N2 - middle) * scale + canvas / 2


def _put_stroke(brush: ImageDraw.ImageDraw, points_N2: np.ndarray, width: float) -> None:
    """Draws one line with round ends."""
    radius = width / 2
    line = [tuple(point) for point in points_N2.tolist()]
    whole_width = max(1, round(width))
    brush.line(line, fill=255, width=whole_width, joint="curve")
    ends = (line[0], line[-1])
    for x, y in ends:
        brush.ellipse(square_around(x, y, radius), fill=255)


def scan(mask: Image.Image, cells: int) -> Image.Image:
    """Returns the share of ink in `cells` x `cells` blocks in 17 steps, as in scanned digit collections."""
    small = mask.resize((cells, cells), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    steps = np.round(grey / 255 * 16)
    levels = steps / 16 * 255
    return Image.fromarray(levels.astype(np.uint8))
