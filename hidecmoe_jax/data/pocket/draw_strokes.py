"""Handwriting from stroke skeletons.

A character is a few strokes through control points. Every drawing jitters those points, bends, slants and stretches
them, and picks a pen; so one skeleton stands for many hands. The skeletons are the project's own: no recorded
handwriting is shown to the base model, only the look of it (thick pens, low resolution, grey levels).
"""

# fmt: off
from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

CURVED, STRAIGHT = "curved", "straight"


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, points: int = 8) -> list:
    """Points of an elliptic arc; angles in degrees, 0 to the right and growing clockwise on the picture."""
    angles = np.radians(np.linspace(start, stop, points))
    return [(x + rx * np.cos(a), y + ry * np.sin(a)) for a in angles]


def _digit_skeletons() -> dict[str, list]:
    """Several ways to write every digit: each way is a list of (kind, points)."""
    c, s = CURVED, STRAIGHT
    three_low = _arc(0.48, 0.72, 0.36, 0.28, -90, 150, 8)
    return {
        "0": [
            [(c, _arc(0.5, 0.5, 0.42, 0.5, -100, 265, 12))],
            [(c, _arc(0.5, 0.5, 0.30, 0.5, -60, 305, 12))],
            [(c, _arc(0.5, 0.5, 0.36, 0.5, -120, 225, 12))],
        ],
        "1": [
            [(s, [(0.5, 0.0), (0.5, 1.0)])],
            [(s, [(0.2, 0.3), (0.5, 0.0), (0.5, 1.0)])],
            [(s, [(0.25, 0.28), (0.52, 0.0), (0.52, 1.0)]), (s, [(0.2, 1.0), (0.85, 1.0)])],
            [(s, [(0.05, 0.5), (0.55, 0.02), (0.5, 1.0)])],
            [(s, [(0.3, 0.1), (0.5, 0.0), (0.5, 1.0)]), (s, [(0.25, 1.0), (0.75, 1.0)])],
        ],
        "2": [
            [(c, [(0.1, 0.22), (0.3, 0.02), (0.65, 0.02), (0.85, 0.25), (0.7, 0.5), (0.4, 0.75), (0.08, 1.0)]),
             (s, [(0.08, 1.0), (0.92, 1.0)])],
            [(c, [(0.08, 0.25), (0.35, 0.0), (0.75, 0.1), (0.78, 0.4), (0.45, 0.78), (0.15, 0.95), (0.1, 0.8),
                  (0.3, 0.78), (0.55, 0.95), (0.92, 0.95)])],
            [(c, [(0.15, 0.1), (0.5, 0.0), (0.8, 0.18), (0.75, 0.45), (0.45, 0.7), (0.12, 0.97)]),
             (c, [(0.12, 0.97), (0.4, 0.9), (0.65, 1.0), (0.92, 0.9)])],
        ],
        "3": [
            [(c, _arc(0.46, 0.24, 0.34, 0.24, -160, 90, 8)), (c, three_low)],
            [(s, [(0.12, 0.02), (0.82, 0.02), (0.45, 0.4)]), (c, [(0.45, 0.4), (0.75, 0.45), (0.85, 0.7),
                                                                  (0.65, 0.97), (0.35, 1.0), (0.1, 0.87)])],
            [(c, [(0.15, 0.08), (0.5, 0.0), (0.8, 0.18), (0.68, 0.4), (0.4, 0.47), (0.7, 0.52), (0.85, 0.75),
                  (0.6, 0.98), (0.3, 1.0), (0.08, 0.9)])],
        ],
        "4": [
            [(s, [(0.3, 0.0), (0.1, 0.6), (0.9, 0.6)]), (s, [(0.65, 0.3), (0.6, 1.0)])],
            [(s, [(0.65, 1.0), (0.65, 0.0), (0.05, 0.68), (0.95, 0.68)])],
            [(c, [(0.2, 0.05), (0.12, 0.35), (0.2, 0.55), (0.5, 0.55), (0.8, 0.48)]), (s, [(0.8, 0.05), (0.7, 1.0)])],
            [(s, [(0.55, 0.0), (0.08, 0.62), (0.92, 0.55)]), (s, [(0.62, 0.38), (0.5, 1.0)])],
        ],
        "5": [
            [(s, [(0.85, 0.02), (0.25, 0.02), (0.2, 0.42)]), (c, [(0.2, 0.42), (0.5, 0.34), (0.82, 0.48),
                                                                 (0.85, 0.78), (0.6, 0.98), (0.3, 1.0), (0.08, 0.88)])],
            [(s, [(0.2, 0.0), (0.18, 0.45)]), (c, [(0.18, 0.45), (0.55, 0.38), (0.82, 0.6), (0.75, 0.88),
                                                   (0.45, 1.0), (0.1, 0.93)]), (s, [(0.2, 0.02), (0.9, 0.05)])],
            [(c, [(0.9, 0.03), (0.45, 0.05), (0.25, 0.25), (0.45, 0.45), (0.72, 0.6), (0.7, 0.88), (0.4, 1.0),
                  (0.1, 0.92)])],
        ],
        "6": [
            [(c, [(0.72, 0.0), (0.4, 0.2), (0.16, 0.55), (0.2, 0.85), (0.5, 1.0), (0.8, 0.86), (0.8, 0.62),
                  (0.52, 0.5), (0.24, 0.66)])],
            [(c, [(0.4, 0.0), (0.2, 0.3), (0.12, 0.7), (0.3, 0.97), (0.6, 0.98), (0.8, 0.78), (0.65, 0.56),
                  (0.4, 0.56), (0.2, 0.75)])],
            [(c, [(0.85, 0.1), (0.6, 0.0), (0.3, 0.15), (0.13, 0.5), (0.2, 0.88), (0.5, 1.0), (0.82, 0.8),
                  (0.7, 0.55), (0.4, 0.52), (0.18, 0.7)])],
        ],
        "7": [
            [(s, [(0.08, 0.02), (0.9, 0.02), (0.4, 1.0)])],
            [(s, [(0.1, 0.04), (0.88, 0.04), (0.42, 1.0)]), (s, [(0.25, 0.5), (0.88, 0.48)])],
            [(s, [(0.1, 0.2), (0.12, 0.03), (0.88, 0.03)]), (c, [(0.88, 0.03), (0.65, 0.4), (0.5, 0.7), (0.45, 1.0)])],
            [(c, [(0.1, 0.12), (0.35, 0.0), (0.6, 0.1), (0.88, 0.03)]), (s, [(0.88, 0.03), (0.45, 1.0)]),
             (s, [(0.3, 0.52), (0.85, 0.5)])],
        ],
        "8": [
            [(c, _arc(0.5, 0.25, 0.3, 0.25, -90, 270, 10)), (c, _arc(0.5, 0.75, 0.36, 0.25, -90, 270, 10))],
            [(c, [(0.78, 0.12), (0.5, 0.0), (0.2, 0.15), (0.3, 0.38), (0.65, 0.58), (0.82, 0.82), (0.5, 1.0),
                  (0.18, 0.85), (0.32, 0.6), (0.7, 0.38), (0.8, 0.12)])],
            [(c, [(0.6, 0.45), (0.3, 0.35), (0.3, 0.08), (0.65, 0.0), (0.78, 0.22), (0.5, 0.48), (0.25, 0.75),
                  (0.4, 1.0), (0.7, 0.92), (0.68, 0.65), (0.45, 0.45)])],
        ],
        "9": [
            [(c, [(0.8, 0.2), (0.55, 0.0), (0.22, 0.12), (0.18, 0.38), (0.45, 0.5), (0.75, 0.35), (0.82, 0.12)]),
             (s, [(0.82, 0.12), (0.75, 1.0)])],
            [(c, [(0.78, 0.25), (0.5, 0.0), (0.2, 0.15), (0.22, 0.42), (0.55, 0.5), (0.8, 0.28), (0.8, 0.6),
                  (0.65, 0.92), (0.4, 1.0), (0.15, 0.9)])],
            [(c, _arc(0.48, 0.25, 0.34, 0.25, 0, 360, 10)), (c, [(0.82, 0.25), (0.75, 0.6), (0.5, 1.0)])],
        ],
    }


def _upper_skeletons() -> dict[str, list]:
    """Capital letters, one or two ways each."""
    c, s = CURVED, STRAIGHT
    stem = (s, [(0.12, 0.0), (0.12, 1.0)])
    bowl = (c, [(0.12, 0.02), (0.6, 0.0), (0.85, 0.25), (0.6, 0.5), (0.12, 0.52)])
    belly = (c, [(0.12, 0.5), (0.65, 0.5), (0.9, 0.75), (0.65, 1.0), (0.12, 1.0)])
    return {
        "A": [[(s, [(0.05, 1.0), (0.5, 0.0), (0.95, 1.0)]), (s, [(0.22, 0.62), (0.78, 0.62)])]],
        "B": [[stem, bowl, belly]],
        "C": [[(c, _arc(0.55, 0.5, 0.45, 0.5, -45, -315, 10))]],
        "D": [[stem, (c, [(0.12, 0.0), (0.6, 0.05), (0.9, 0.5), (0.6, 0.95), (0.12, 1.0)])]],
        "E": [[(s, [(0.85, 0.0), (0.12, 0.0), (0.12, 1.0), (0.88, 1.0)]), (s, [(0.12, 0.5), (0.7, 0.5)])]],
        "F": [[(s, [(0.88, 0.0), (0.12, 0.0), (0.12, 1.0)]), (s, [(0.12, 0.48), (0.7, 0.48)])]],
        "G": [[(c, _arc(0.52, 0.5, 0.45, 0.5, -50, -340, 10)), (s, [(0.95, 0.62), (0.95, 0.55), (0.55, 0.55)])],
              [(c, _arc(0.52, 0.5, 0.45, 0.5, -50, -345, 10)), (s, [(0.55, 0.58), (0.92, 0.58), (0.92, 1.0)])]],
        "H": [[stem, (s, [(0.88, 0.0), (0.88, 1.0)]), (s, [(0.12, 0.5), (0.88, 0.5)])]],
        "I": [[(s, [(0.5, 0.0), (0.5, 1.0)]), (s, [(0.2, 0.0), (0.8, 0.0)]), (s, [(0.2, 1.0), (0.8, 1.0)])]],
        "J": [[(c, [(0.75, 0.0), (0.75, 0.4), (0.73, 0.75), (0.5, 1.0), (0.22, 0.95), (0.1, 0.72)])],
              [(c, [(0.7, 0.0), (0.7, 0.5), (0.65, 0.85), (0.4, 1.0), (0.12, 0.8)]), (s, [(0.4, 0.0), (0.98, 0.0)])]],
        "K": [[stem, (s, [(0.85, 0.0), (0.12, 0.55)]), (s, [(0.35, 0.4), (0.9, 1.0)])]],
        "L": [[(s, [(0.15, 0.0), (0.15, 1.0), (0.85, 1.0)])]],
        "M": [[(s, [(0.05, 1.0), (0.12, 0.0), (0.5, 0.65), (0.88, 0.0), (0.95, 1.0)])]],
        "N": [[(s, [(0.1, 1.0), (0.1, 0.0), (0.9, 1.0), (0.9, 0.0)])]],
        "O": [[(c, _arc(0.5, 0.5, 0.5, 0.5, -90, 270, 12))]],
        "P": [[stem, bowl]],
        "Q": [[(c, _arc(0.5, 0.47, 0.47, 0.47, -90, 270, 12)), (s, [(0.6, 0.7), (0.98, 1.0)])]],
        "R": [[stem, bowl, (s, [(0.4, 0.52), (0.9, 1.0)])]],
        "S": [[(c, [(0.85, 0.15), (0.55, 0.0), (0.2, 0.12), (0.2, 0.35), (0.5, 0.5), (0.8, 0.65), (0.82, 0.88),
                    (0.5, 1.0), (0.12, 0.85)])]],
        "T": [[(s, [(0.5, 0.0), (0.5, 1.0)]), (s, [(0.05, 0.0), (0.95, 0.0)])]],
        "U": [[(c, [(0.1, 0.0), (0.1, 0.4), (0.14, 0.8), (0.5, 1.0), (0.86, 0.8), (0.9, 0.4), (0.9, 0.0)])]],
        "V": [[(s, [(0.05, 0.0), (0.5, 1.0), (0.95, 0.0)])]],
        "W": [[(s, [(0.0, 0.0), (0.25, 1.0), (0.5, 0.3), (0.75, 1.0), (1.0, 0.0)])]],
        "X": [[(s, [(0.1, 0.0), (0.9, 1.0)]), (s, [(0.9, 0.0), (0.1, 1.0)])]],
        "Y": [[(s, [(0.08, 0.0), (0.5, 0.5)]), (s, [(0.92, 0.0), (0.5, 0.5), (0.5, 1.0)])]],
        "Z": [[(s, [(0.1, 0.0), (0.9, 0.0), (0.1, 1.0), (0.92, 1.0)])]],
    }


def _lower_skeletons() -> dict[str, list]:
    """Small letters that differ in form from their capitals."""
    c, s = CURVED, STRAIGHT
    bowl = _arc(0.48, 0.68, 0.36, 0.32, 0, 360, 10)
    return {
        "a": [[(c, _arc(0.45, 0.5, 0.4, 0.48, -20, -380, 10)), (s, [(0.86, 0.05), (0.9, 1.0)])]],
        "b": [[(s, [(0.14, 0.0), (0.14, 1.0)]), (c, bowl)]],
        "d": [[(s, [(0.84, 0.0), (0.84, 1.0)]), (c, bowl)]],
        "e": [[(c, [(0.1, 0.5), (0.88, 0.45), (0.75, 0.08), (0.4, 0.02), (0.1, 0.3), (0.12, 0.75), (0.45, 1.0),
                    (0.88, 0.85)])]],
        "f": [[(c, [(0.85, 0.1), (0.6, 0.0), (0.42, 0.2), (0.4, 0.5), (0.4, 1.0)]), (s, [(0.1, 0.42), (0.75, 0.42)])]],
        "g": [[(c, _arc(0.45, 0.28, 0.36, 0.28, 0, -360, 10)),
               (c, [(0.82, 0.05), (0.84, 0.5), (0.8, 0.88), (0.45, 1.0), (0.12, 0.88)])]],
        "h": [[(s, [(0.15, 0.0), (0.15, 1.0)]),
               (c, [(0.15, 0.6), (0.4, 0.42), (0.75, 0.48), (0.82, 0.7), (0.82, 1.0)])]],
        "n": [[(s, [(0.12, 0.0), (0.12, 1.0)]),
               (c, [(0.12, 0.3), (0.45, 0.0), (0.8, 0.12), (0.86, 0.5), (0.86, 1.0)])]],
        "q": [[(c, _arc(0.45, 0.28, 0.36, 0.28, 0, -360, 10)), (s, [(0.84, 0.0), (0.84, 1.0)])]],
        "r": [[(s, [(0.25, 0.0), (0.25, 1.0)]), (c, [(0.25, 0.35), (0.5, 0.05), (0.9, 0.08)])]],
        "t": [[(c, [(0.45, 0.0), (0.42, 0.5), (0.45, 0.9), (0.85, 0.95)]), (s, [(0.1, 0.3), (0.85, 0.3)])]],
        "y": [[(c, [(0.12, 0.0), (0.15, 0.35), (0.45, 0.5), (0.8, 0.35)]),
               (c, [(0.85, 0.0), (0.83, 0.5), (0.75, 0.9), (0.45, 1.0), (0.12, 0.9)])]],
    }


@lru_cache(maxsize=1)
def skeletons() -> dict[str, tuple]:
    """Every character with its ways of writing; a way is a tuple of (kind, control points [n, 2])."""
    table = _digit_skeletons() | _upper_skeletons() | _lower_skeletons()
    return {
        name: tuple(tuple((kind, np.array(points, np.float64)) for kind, points in way) for way in ways)
        for name, ways in table.items()
    }


@lru_cache(maxsize=64)
def _spline(points: int) -> np.ndarray:
    """Matrix [dense, points] that runs a Catmull-Rom curve through so many control points."""
    rows = []
    for piece in range(points - 1):
        for u in np.linspace(0, 1, 5, endpoint=False):
            row = np.zeros(points)
            weights = (-u + 2 * u**2 - u**3, 2 - 5 * u**2 + 3 * u**3, u + 4 * u**2 - 3 * u**3, u**3 - u**2)
            for offset, weight in zip((-1, 0, 1, 2), weights, strict=False):
                row[min(max(piece + offset, 0), points - 1)] += weight / 2
            rows.append(row)
    last = np.zeros(points)
    last[-1] = 1
    return np.array([*rows, last])


def _bend(points_N2: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A smooth random displacement of points in [0, 1]^2."""
    u = rng.normal(0, strength, (2, 4))
    phase = rng.random((2, 4)) * 6.283
    x, y = points_N2[:, :1], points_N2[:, 1:]
    along = np.concatenate([x * 3.1, y * 3.1, x * 6.3, y * 6.3], axis=1)
    shift = np.stack([(np.sin(along + phase[k]) * u[k] * (1, 1, 0.5, 0.5)).sum(1) for k in (0, 1)], axis=1)
    return points_N2 + shift


def write(name: str, rng: np.random.Generator, *, canvas: int = 64, pen: float | None = None) -> Image.Image:
    """One handwritten character as a grey mask [canvas, canvas] (255 ink) that fills its box in height.

    `pen` is the stroke's width as a fraction of the canvas (0.05 to 0.16 by default).
    """
    ways = skeletons()[name]
    way = ways[int(rng.random() * len(ways))]
    wobble = 0.012 + 0.03 * rng.random()
    lines = []
    for kind, control in way:
        control = control + rng.normal(0, wobble, control.shape)
        lines.append(_spline(len(control)) @ control if kind == CURVED else control)
    sizes = [len(line) for line in lines]
    points = _bend(np.concatenate(lines) - 0.5, rng, 0.035)
    slant, turn = rng.normal(-0.08, 0.16), rng.normal(0, 0.09)
    cos, sin = np.cos(turn), np.sin(turn)
    points = points @ np.array([[cos, sin], [slant * cos - sin, cos + slant * sin]])
    low, high = points.min(0), points.max(0)
    width, height = np.maximum(high - low, 0.08)
    pen = (0.055 + 0.1 * rng.random() if pen is None else pen) * canvas
    room = canvas - pen - 2
    aspect = min(width / height * (0.75 + 0.4 * rng.random()), 1.0)
    scale = np.array([aspect * room / width, room / height])
    points = (points - (low + high) / 2) * scale + canvas / 2
    image = Image.new("L", (canvas, canvas), 0)
    brush = ImageDraw.Draw(image)
    radius, start = pen / 2, 0
    for length in sizes:
        line = [tuple(point) for point in points[start : start + length].tolist()]
        start += length
        brush.line(line, fill=255, width=max(1, round(pen)), joint="curve")
        for x, y in (line[0], line[-1]):
            brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return image


def scan(mask: Image.Image, cells: int) -> Image.Image:
    """Count ink in `cells` x `cells` blocks, in 17 steps, as the scanners of old digit collections did."""
    grey = np.asarray(mask.resize((cells, cells), Image.Resampling.BOX), np.float32)
    return Image.fromarray((np.round(grey / 255 * 16) / 16 * 255).astype(np.uint8))
