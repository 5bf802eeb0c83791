"""Stroke skeletons of handwritten characters, and the text format they are written in.

One line of `TABLE` is one way to write a character: the character, then its strokes, separated by semicolons. A stroke
is a kind and numbers, in the unit square with y pointing down:

    line   x,y x,y ...                            straight segments through the points
    curve  x,y x,y ...                            a smooth curve through the points
    arc    x y radius_x radius_y start stop count  `count` points of an elliptic arc, joined by a smooth curve;
                                                  angles in degrees, 0 to the right and growing clockwise

The skeletons were written for this project; they are traced from no recorded handwriting.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

CURVED = "curved"
STRAIGHT = "straight"

# Small letters that look like their capitals (c, o, s, ...) have no line of their own.
TABLE = """
0 arc 0.5 0.5 0.42 0.5 -100 265 12
0 arc 0.5 0.5 0.3 0.5 -60 305 12
0 arc 0.5 0.5 0.36 0.5 -120 225 12
1 line 0.5,0 0.5,1
1 line 0.2,0.3 0.5,0 0.5,1
1 line 0.25,0.28 0.52,0 0.52,1; line 0.2,1 0.85,1
1 line 0.05,0.5 0.55,0.02 0.5,1
1 line 0.3,0.1 0.5,0 0.5,1; line 0.25,1 0.75,1
2 curve 0.1,0.22 0.3,0.02 0.65,0.02 0.85,0.25 0.7,0.5 0.4,0.75 0.08,1; line 0.08,1 0.92,1
2 curve 0.08,0.25 0.35,0 0.75,0.1 0.78,0.4 0.45,0.78 0.15,0.95 0.1,0.8 0.3,0.78 0.55,0.95 0.92,0.95
2 curve 0.15,0.1 0.5,0 0.8,0.18 0.75,0.45 0.45,0.7 0.12,0.97; curve 0.12,0.97 0.4,0.9 0.65,1 0.92,0.9
3 arc 0.46 0.24 0.34 0.24 -160 90 8; arc 0.48 0.72 0.36 0.28 -90 150 8
3 line 0.12,0.02 0.82,0.02 0.45,0.4; curve 0.45,0.4 0.75,0.45 0.85,0.7 0.65,0.97 0.35,1 0.1,0.87
3 curve 0.15,0.08 0.5,0 0.8,0.18 0.68,0.4 0.4,0.47 0.7,0.52 0.85,0.75 0.6,0.98 0.3,1 0.08,0.9
4 line 0.3,0 0.1,0.6 0.9,0.6; line 0.65,0.3 0.6,1
4 line 0.65,1 0.65,0 0.05,0.68 0.95,0.68
4 curve 0.2,0.05 0.12,0.35 0.2,0.55 0.5,0.55 0.8,0.48; line 0.8,0.05 0.7,1
4 line 0.55,0 0.08,0.62 0.92,0.55; line 0.62,0.38 0.5,1
5 line 0.85,0.02 0.25,0.02 0.2,0.42; curve 0.2,0.42 0.5,0.34 0.82,0.48 0.85,0.78 0.6,0.98 0.3,1 0.08,0.88
5 line 0.2,0 0.18,0.45; curve 0.18,0.45 0.55,0.38 0.82,0.6 0.75,0.88 0.45,1 0.1,0.93; line 0.2,0.02 0.9,0.05
5 curve 0.9,0.03 0.45,0.05 0.25,0.25 0.45,0.45 0.72,0.6 0.7,0.88 0.4,1 0.1,0.92
6 curve 0.72,0 0.4,0.2 0.16,0.55 0.2,0.85 0.5,1 0.8,0.86 0.8,0.62 0.52,0.5 0.24,0.66
6 curve 0.4,0 0.2,0.3 0.12,0.7 0.3,0.97 0.6,0.98 0.8,0.78 0.65,0.56 0.4,0.56 0.2,0.75
6 curve 0.85,0.1 0.6,0 0.3,0.15 0.13,0.5 0.2,0.88 0.5,1 0.82,0.8 0.7,0.55 0.4,0.52 0.18,0.7
7 line 0.08,0.02 0.9,0.02 0.4,1
7 line 0.1,0.04 0.88,0.04 0.42,1; line 0.25,0.5 0.88,0.48
7 line 0.1,0.2 0.12,0.03 0.88,0.03; curve 0.88,0.03 0.65,0.4 0.5,0.7 0.45,1
7 curve 0.1,0.12 0.35,0 0.6,0.1 0.88,0.03; line 0.88,0.03 0.45,1; line 0.3,0.52 0.85,0.5
8 arc 0.5 0.25 0.3 0.25 -90 270 10; arc 0.5 0.75 0.36 0.25 -90 270 10
8 curve 0.78,0.12 0.5,0 0.2,0.15 0.3,0.38 0.65,0.58 0.82,0.82 0.5,1 0.18,0.85 0.32,0.6 0.7,0.38 0.8,0.12
8 curve 0.6,0.45 0.3,0.35 0.3,0.08 0.65,0 0.78,0.22 0.5,0.48 0.25,0.75 0.4,1 0.7,0.92 0.68,0.65 0.45,0.45
9 curve 0.8,0.2 0.55,0 0.22,0.12 0.18,0.38 0.45,0.5 0.75,0.35 0.82,0.12; line 0.82,0.12 0.75,1
9 curve 0.78,0.25 0.5,0 0.2,0.15 0.22,0.42 0.55,0.5 0.8,0.28 0.8,0.6 0.65,0.92 0.4,1 0.15,0.9
9 arc 0.48 0.25 0.34 0.25 0 360 10; curve 0.82,0.25 0.75,0.6 0.5,1
A line 0.05,1 0.5,0 0.95,1; line 0.22,0.62 0.78,0.62
B line 0.12,0 0.12,1; curve 0.12,0.02 0.6,0 0.85,0.25 0.6,0.5 0.12,0.52; curve 0.12,0.5 0.65,0.5 0.9,0.75 0.65,1 0.12,1
C arc 0.55 0.5 0.45 0.5 -45 -315 10
D line 0.12,0 0.12,1; curve 0.12,0 0.6,0.05 0.9,0.5 0.6,0.95 0.12,1
E line 0.85,0 0.12,0 0.12,1 0.88,1; line 0.12,0.5 0.7,0.5
F line 0.88,0 0.12,0 0.12,1; line 0.12,0.48 0.7,0.48
G arc 0.52 0.5 0.45 0.5 -50 -340 10; line 0.95,0.62 0.95,0.55 0.55,0.55
G arc 0.52 0.5 0.45 0.5 -50 -345 10; line 0.55,0.58 0.92,0.58 0.92,1
H line 0.12,0 0.12,1; line 0.88,0 0.88,1; line 0.12,0.5 0.88,0.5
I line 0.5,0 0.5,1; line 0.2,0 0.8,0; line 0.2,1 0.8,1
J curve 0.75,0 0.75,0.4 0.73,0.75 0.5,1 0.22,0.95 0.1,0.72
J curve 0.7,0 0.7,0.5 0.65,0.85 0.4,1 0.12,0.8; line 0.4,0 0.98,0
K line 0.12,0 0.12,1; line 0.85,0 0.12,0.55; line 0.35,0.4 0.9,1
L line 0.15,0 0.15,1 0.85,1
M line 0.05,1 0.12,0 0.5,0.65 0.88,0 0.95,1
N line 0.1,1 0.1,0 0.9,1 0.9,0
O arc 0.5 0.5 0.5 0.5 -90 270 12
P line 0.12,0 0.12,1; curve 0.12,0.02 0.6,0 0.85,0.25 0.6,0.5 0.12,0.52
Q arc 0.5 0.47 0.47 0.47 -90 270 12; line 0.6,0.7 0.98,1
R line 0.12,0 0.12,1; curve 0.12,0.02 0.6,0 0.85,0.25 0.6,0.5 0.12,0.52; line 0.4,0.52 0.9,1
S curve 0.85,0.15 0.55,0 0.2,0.12 0.2,0.35 0.5,0.5 0.8,0.65 0.82,0.88 0.5,1 0.12,0.85
T line 0.5,0 0.5,1; line 0.05,0 0.95,0
U curve 0.1,0 0.1,0.4 0.14,0.8 0.5,1 0.86,0.8 0.9,0.4 0.9,0
V line 0.05,0 0.5,1 0.95,0
W line 0,0 0.25,1 0.5,0.3 0.75,1 1,0
X line 0.1,0 0.9,1; line 0.9,0 0.1,1
Y line 0.08,0 0.5,0.5; line 0.92,0 0.5,0.5 0.5,1
Z line 0.1,0 0.9,0 0.1,1 0.92,1
a arc 0.45 0.5 0.4 0.48 -20 -380 10; line 0.86,0.05 0.9,1
b line 0.14,0 0.14,1; arc 0.48 0.68 0.36 0.32 0 360 10
d line 0.84,0 0.84,1; arc 0.48 0.68 0.36 0.32 0 360 10
e curve 0.1,0.5 0.88,0.45 0.75,0.08 0.4,0.02 0.1,0.3 0.12,0.75 0.45,1 0.88,0.85
f curve 0.85,0.1 0.6,0 0.42,0.2 0.4,0.5 0.4,1; line 0.1,0.42 0.75,0.42
g arc 0.45 0.28 0.36 0.28 0 -360 10; curve 0.82,0.05 0.84,0.5 0.8,0.88 0.45,1 0.12,0.88
h line 0.15,0 0.15,1; curve 0.15,0.6 0.4,0.42 0.75,0.48 0.82,0.7 0.82,1
n line 0.12,0 0.12,1; curve 0.12,0.3 0.45,0 0.8,0.12 0.86,0.5 0.86,1
q arc 0.45 0.28 0.36 0.28 0 -360 10; line 0.84,0 0.84,1
r line 0.25,0 0.25,1; curve 0.25,0.35 0.5,0.05 0.9,0.08
t curve 0.45,0 0.42,0.5 0.45,0.9 0.85,0.95; line 0.1,0.3 0.85,0.3
y curve 0.12,0 0.15,0.35 0.45,0.5 0.8,0.35; curve 0.85,0 0.83,0.5 0.75,0.9 0.45,1 0.12,0.9
"""


@lru_cache(maxsize=1)
def skeletons() -> dict[str, tuple]:
    """Returns every character's ways; a way is a tuple of (CURVED or STRAIGHT, control points float64 [n, 2])."""
    ways: dict[str, list[tuple]] = {}
    for line in TABLE.strip().splitlines():
        character, strokes = line.split(maxsplit=1)
        way = tuple(_stroke(text.split()) for text in strokes.split(";"))
        ways.setdefault(character, []).append(way)
    # Tuples, because the cached value is shared by all callers.
    return {character: tuple(listed) for character, listed in ways.items()}


def _stroke(words: list[str]) -> tuple[str, np.ndarray]:
    kind, *numbers = words
    if kind == "arc":
        return CURVED, _arc(*map(float, numbers))
    points = [tuple(map(float, pair.split(","))) for pair in numbers]
    return CURVED if kind == "curve" else STRAIGHT, np.array(points, np.float64)


def _arc(x: float, y: float, radius_x: float, radius_y: float, start: float, stop: float, count: float) -> np.ndarray:
    """Points [count, 2] of an elliptic arc around (x, y)."""
    angles = np.radians(np.linspace(start, stop, int(count)))
    # One angle at a time: numpy's vectorised cosine may differ in the last bit from one processor to another.
    points = [(x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)) for angle in angles]
    return np.array(points, np.float64)
