"""Outlines of the shapes as polygons in [-1, 1]^2, y pointing down."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.data.pocket.picture import SHAPES

_SQUARE = ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))
_TRIANGLE = ((0, -1), (1, 0.85), (-1, 0.85))
_DIAMOND = ((0, -1), (0.78, 0), (0, 1), (-0.78, 0))
_ARM = 0.32  # half the width of the cross's arms
_CROSS = (
    (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
    (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
)  # fmt: skip
_POLYGONS = {"square": _SQUARE, "triangle": _TRIANGLE, "diamond": _DIAMOND, "cross": _CROSS}


@lru_cache(maxsize=16)
def outline(shape: str) -> np.ndarray:
    """Returns the corner points [n, 2] of a shape.

    Raises:
      DataError: no such shape.
    """
    if shape in _POLYGONS:
        return np.array(_POLYGONS[shape], float)
    if shape in ("circle", "ring"):
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return _on_circle(angles)
    if shape == "star":
        return _star()
    if shape == "heart":
        return _heart()
    if shape == "moon":
        return _moon()
    raise DataError(f"no shape called {shape!r}", why=nearest(shape, SHAPES))


def _on_circle(angles: np.ndarray) -> np.ndarray:
    x = np.cos(angles)
    y = np.sin(angles)
    return np.stack([x, y], 1)


def _star() -> np.ndarray:
    """Five tips and five notches in turn, the first tip at the top."""
    corners = np.arange(10)
    turns = corners * np.pi / 5
    angles = -np.pi / 2 + turns
    is_notch = corners % 2
    radius = np.where(is_notch, 0.42, 1.05)
    return _on_circle(angles) * radius[:, None]


def _heart() -> np.ndarray:
    """The usual heart curve, scaled and centred."""
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    x = np.sin(t) ** 3 * 1.02
    height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    # The curve's y points up.
    y = -height / 15
    return np.stack([x, y - 0.12], 1)


def _moon() -> np.ndarray:
    """A crescent: most of the unit circle, and back along a smaller ellipse."""
    full_turn = 2 * np.pi
    outer_angles = np.linspace(0.9, full_turn - 0.9, 18)
    outer = _on_circle(outer_angles)
    angles = np.linspace(full_turn - 1.35, 1.35, 14)
    inner_x = 0.52 + 0.75 * np.cos(angles)
    inner_y = 0.82 * np.sin(angles)
    inner = np.stack([inner_x, inner_y], 1)
    crescent = np.concatenate([outer, inner])
    return crescent + (0.15, 0)
