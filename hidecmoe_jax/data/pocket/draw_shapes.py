"""Drawings of coloured shapes and of straight strokes (families `scene` and `lines`).

Both are drawn at twice the size and averaged down, which makes edges smooth. The box of a shape is that of its rotated
outline on the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.pocket.draw_base import (
    between,
    blank,
    ground_for,
    pick,
    pick_ground,
    square_around,
    tint,
    visible_on,
    wear,
    whole_between,
)
from hidecmoe_jax.data.pocket.outlines import outline
from hidecmoe_jax.data.pocket.picture import SHAPES, Picture, Thing

Box = tuple[float, float, float, float]

# Largest random rotation of each shape, in radians; a shape that is not listed looks the same at any angle.
_TURN = {"square": 0.14, "triangle": 0.22, "star": 3.2, "cross": 0.16, "diamond": 0.08, "heart": 0.16, "moon": 0.35}
ALWAYS_FILLED = ("circle", "ring")
RADII = {"small": (5.0, 6.6), "large": (9.0, 13.0)}
"""Half sides, in pixels of a 56 pixel picture, that count as small and as large."""

LINES = ("horizontal", "vertical", "rising", "falling")


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
) -> Box:
    """Draws one shape on a canvas `zoom` times as large as the picture.

    Centre, radius and the returned box (x0, y0, x1, y1) are in pixels of the picture.
    """
    turned = _rotated(rng, shape)
    points = turned * radius + centre
    on_canvas = points * zoom
    corners = [tuple(point) for point in on_canvas.tolist()]
    if filled or shape in ALWAYS_FILLED:
        brush.polygon(corners, fill=ink)
    else:
        thickest = min(2.6, radius / 3)
        width = round(zoom * between(rng, 1.2, thickest))
        # The first side is drawn twice, so that the line's ends meet in a joint.
        closed = [*corners, corners[0], corners[1]]
        brush.line(closed, fill=ink, width=max(width, 2), joint="curve")
    if shape == "ring":
        inner = radius * between(rng, 0.48, 0.6) * zoom
        x = centre[0] * zoom
        y = centre[1] * zoom
        brush.ellipse(square_around(x, y, inner), fill=ground)
    x0, y0 = points.min(0).tolist()
    x1, y1 = points.max(0).tolist()
    return x0, y0, x1, y1


def _rotated(rng: np.random.Generator, shape: str) -> np.ndarray:
    """The outline [n, 2] of a shape, rotated at random as far as the shape allows."""
    largest = _TURN.get(shape, 0.0)
    angle = largest * (2 * rng.random() - 1)
    cos = np.cos(angle)
    sin = np.sin(angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    return outline(shape) @ rotation


def layout(rng: np.random.Generator, radii: list[float], size: int, gap: float = 1.0) -> list[tuple] | None:
    """Returns centres (x, y) of squares with these half sides that keep `gap` apart, or None after too many tries."""
    placed: list[tuple[float, float, float]] = []

    def is_free(x: float, y: float, radius: float) -> bool:
        for other_x, other_y, other_radius in placed:
            distance_x = abs(x - other_x)
            distance_y = abs(y - other_y)
            if max(distance_x, distance_y) < radius + other_radius + gap:
                return False
        return True

    # Rejection sampling: a place is drawn again while it overlaps an earlier one.
    for radius in radii:
        lowest = radius + 0.5
        highest = size - radius - 0.5
        for _ in range(30):
            x = between(rng, lowest, highest)
            y = between(rng, lowest, highest)
            if is_free(x, y, radius):
                placed.append((x, y, radius))
                break
        else:
            return None
    return [(x, y) for x, y, _ in placed]


def random_sizes(rng: np.random.Generator, count: int, share_of_large: float) -> list[str]:
    """Returns `count` size names, "large" with this probability."""
    sizes = []
    for _ in range(count):
        is_large = rng.random() < share_of_large
        sizes.append("large" if is_large else "small")
    return sizes


def random_radii(rng: np.random.Generator, sizes: Sequence[str], size: int) -> list[float]:
    """Returns a half side in pixels for every size name, on a picture of `size` pixels."""
    unit = size / 56
    radii = []
    for name in sizes:
        low, high = RADII[name]
        radius = between(rng, low, high)
        radii.append(radius * unit)
    return radii


def _fit(rng: np.random.Generator, sizes: list[str], size: int, *, fixed: bool) -> tuple[list[str], list[float], list]:
    """Returns sizes, radii and centres of things that fit on the picture.

    Unless the sizes are `fixed`, a large thing becomes small after every second attempt that failed.
    """
    for attempt in range(200):
        radii = random_radii(rng, sizes, size)
        # The largest things are placed first, while there is room.
        indices = range(len(sizes))
        order = sorted(indices, key=lambda index: -radii[index])
        ordered_radii = [radii[index] for index in order]
        ordered_centres = layout(rng, ordered_radii, size)
        if ordered_centres is not None:
            centre_of = dict(zip(order, ordered_centres, strict=True))
            centres = [centre_of[index] for index in indices]
            return sizes, radii, centres
        if not fixed and attempt % 2 and "large" in sizes:
            sizes = list(sizes)
            sizes[sizes.index("large")] = "small"
    raise DataError(
        f"{len(sizes)} shapes of sizes {sizes} do not fit on {size} pixels", remedy="ask for fewer or small ones"
    )


def box_of(x0: float, y0: float, x1: float, y1: float, size: int) -> Box:
    """Returns a box in pixels as fractions of the picture, clipped to [0, 1]."""
    # A shape that was rotated or an outline's pen may reach over the edge.
    fractions = []
    for value in (x0, y0, x1, y1):
        fraction = value / size
        fractions.append(min(max(fraction, 0.0), 1.0))
    return tuple(fractions)


def _count(count: int | None, lists: Sequence[list | None], rng: np.random.Generator) -> int:
    """Returns the number of things of a scene: as asked, as the lists have entries, or 1-6.

    Raises:
      DataError: a list of another length.
    """
    lengths = [len(values) for values in lists if values is not None]
    if not count and lengths:
        count = lengths[0]
    elif not count:
        count = whole_between(rng, 1, 6)
    if any(length != count for length in lengths):
        raise DataError("scene: shapes, colours, sizes and count disagree in length", why=f"count {count}")
    return count


def put_thing(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    shape: str,
    colour: str,
    size: str,
    *,
    place: tuple[tuple, float],
    solid: bool,
    paper: tuple[int, int, int],
    side: int,
) -> Thing:
    """Draws a shape in a tint of its colour; returns what was drawn.

    Args:
      size: its size in words.
      place: centre and radius.
      side: of the finished picture in pixels.
    """
    ink = tint(rng, colour)
    centre, radius = place
    pixel_box = put_shape(brush, rng, shape, centre=centre, radius=radius, ink=ink, ground=paper, filled=solid)
    box = box_of(*pixel_box, side)
    return Thing("shape", shape, colour, size, box, solid)


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
    """Draws 1-6 shapes that do not touch.

    Args:
      count: number of shapes; by default as many as the lists have entries.
      shapes, colours, sizes: a property of every shape, in order; None draws it at random.
    """
    count = _count(count, (shapes, colours, sizes), rng)
    ground = pick_ground(rng, ground)
    ground = ground_for(rng, ground, colours or ())
    # Many large shapes would rarely fit.
    share_of_large = 0.65 if count <= 3 else 0.4
    wanted = sizes or random_sizes(rng, count, share_of_large)
    is_fixed = sizes is not None
    wanted, radii, centres = _fit(rng, wanted, size, fixed=is_fixed)
    paper = tint(rng, ground)
    image = blank(2 * size, paper)
    brush = ImageDraw.Draw(image)
    things = []
    for index in range(count):
        shape = shapes[index] if shapes else pick(rng, SHAPES)
        colour = colours[index] if colours else pick(rng, visible_on(ground))
        solid = _is_solid(rng, shape, filled)
        place = (centres[index], radii[index])
        thing = put_thing(brush, rng, shape, colour, wanted[index], place=place, solid=solid, paper=paper, side=size)
        things.append(thing)
    pixels = wear(image.reduce(2), rng, worn)
    return Picture(pixels, tuple(things), ground, "scene", {"count": count})


def _is_solid(rng: np.random.Generator, shape: str, filled: bool | None) -> bool:
    """Whether a shape is drawn filled: as asked, or mostly."""
    if shape in ALWAYS_FILLED:
        return True
    if filled is None:
        return rng.random() < 0.72
    return filled


def lines(
    rng: np.random.Generator, size: int, *, count: int | None = None, ground: str | None = None, worn: float = 1.0
) -> Picture:
    """Draws 1-4 straight strokes, thin or thick."""
    ground = pick_ground(rng, ground)
    image = blank(2 * size, tint(rng, ground))
    brush = ImageDraw.Draw(image)
    if not count:
        count = whole_between(rng, 1, 4)
    things = [_put_line(brush, rng, size, ground) for _ in range(count)]
    pixels = wear(image.reduce(2), rng, worn)
    return Picture(pixels, tuple(things), ground, "lines", {"count": len(things)})


def _put_line(brush: ImageDraw.ImageDraw, rng: np.random.Generator, size: int, ground: str) -> Thing:
    name = pick(rng, LINES)
    colour = pick(rng, visible_on(ground))
    length = between(rng, 0.3, 0.9) * size
    width = between(rng, 0.8, 4.5)
    across = between(rng, 0.45, 1.0) * length
    # Both numbers are drawn for every line, used or not: the order of the draws decides the picture.
    tilt_x = rng.normal(0, 1)
    tilt_y = rng.normal(0, 1)
    wide = tilt_x if name == "vertical" else length
    high = {"horizontal": tilt_y, "vertical": length}.get(name, across)
    if name == "rising":
        high = -high
    rightmost = size - 2 - abs(wide)
    lowest = size - 2 - abs(high)
    x = between(rng, 2, rightmost)
    top = between(rng, 2, lowest)
    # A line that rises starts at its lower end.
    y = top - min(high, 0)
    end_x = x + wide
    end_y = y + high
    # The canvas is twice as large as the picture.
    ends = (2 * x, 2 * y, 2 * end_x, 2 * end_y)
    ink = tint(rng, colour)
    brush.line(ends, fill=ink, width=round(2 * width))
    half = width / 2
    x0 = min(x, end_x) - half
    y0 = min(y, end_y) - half
    x1 = max(x, end_x) + half
    y1 = max(y, end_y) + half
    size_name = "large" if length > size / 2 else "small"
    box = box_of(x0, y0, x1, y1, size)
    return Thing("line", name, colour, size_name, box)
