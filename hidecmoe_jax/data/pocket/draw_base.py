"""What all drawings share: colours that can be told apart, grounds, and the wear a picture shows.

Everything random comes from the generator handed in, drawn with `rng.random()` only where speed matters, so the same
generator state always gives the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.data.pocket.picture import COLOURS, SIDE

_LUMA = np.array([0.3, 0.59, 0.11])
_GROUNDS = (
    ("white",) * 9 + ("black",) * 6 + ("gray",) * 3 + ("blue", "green", "purple", "brown", "yellow", "cyan", "pink")
)


def pick(rng: np.random.Generator, options: Sequence):
    """One of the options; a good deal faster than `rng.choice`."""
    return options[int(rng.random() * len(options))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform float in [low, high)."""
    return low + (high - low) * rng.random()


@lru_cache(maxsize=1)
def _apart() -> dict[str, tuple[str, ...]]:
    """For every colour the colours that are clearly visible on it."""
    table = {}
    for one, a in COLOURS.items():
        names = []
        for two, b in COLOURS.items():
            difference = np.array(a, float) - np.array(b, float)
            if abs(difference @ _LUMA) > 38 or (abs(difference @ _LUMA) > 14 and np.abs(difference).sum() > 190):
                names.append(two)
        table[one] = tuple(names)
    return table


def visible_on(ground: str) -> tuple[str, ...]:
    """Colour names that can be told apart from this ground."""
    if ground not in COLOURS:
        raise DataError(f"no colour called {ground!r}", why=nearest(ground, COLOURS))
    return _apart()[ground]


def pick_ground(rng: np.random.Generator, wanted: str | None = None) -> str:
    """A ground's colour name: mostly white, black or gray. `wanted` is a colour, or "light" or "dark"."""
    if wanted == "light":
        return pick(rng, ("white", "white", "white", "yellow", "cyan", "pink"))
    if wanted == "dark":
        return pick(rng, ("black", "black", "black", "blue", "brown", "purple"))
    if wanted is None:
        return pick(rng, _GROUNDS)
    visible_on(wanted)
    return wanted


def tint(rng: np.random.Generator, name: str) -> tuple[int, int, int]:
    """RGB of a colour name, jittered a little."""
    shift = rng.normal(0, 7, 3)
    return tuple(int(min(max(c + s, 0), 255)) for c, s in zip(COLOURS[name], shift.tolist(), strict=False))


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """A sheet of unit noise from a fixed seed; slices of it are cheaper than fresh noise."""
    return np.random.default_rng(20).normal(0, 1, (4 * SIDE, 4 * SIDE, 3)).astype(np.float32)


@lru_cache(maxsize=4)
def _ramp(size: int) -> np.ndarray:
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return np.stack(np.broadcast_arrays(line[None, :], line[:, None]))


def wear(image: Image.Image, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Noise, blur, uneven light and loss of contrast, each only sometimes; `amount` 0 gives a clean picture.

    Returns uint8 [size, size, 3].
    """
    chances = rng.random(5).tolist()
    if chances[0] < 0.18 * amount:
        image = image.filter(ImageFilter.GaussianBlur(between(rng, 0.4, 1.0)))
    pixels = np.asarray(image)
    if min(chances[1] - 0.35 * amount, chances[2] - 0.15 * amount, chances[3] - 0.2 * amount) >= 0:
        return pixels
    size = pixels.shape[0]
    worn = pixels.astype(np.float32)
    if chances[1] < 0.35 * amount:
        y, x = (int(v * 3 * SIDE) for v in rng.random(2))
        worn += _grain()[y : y + size, x : x + size, : 3 if chances[4] < 0.6 else 1] * between(rng, 2, 22)
    if chances[2] < 0.15 * amount:
        slope = rng.normal(0, 18, 2)
        worn += (_ramp(size) * slope[:, None, None]).sum(0)[..., None]
    if chances[3] < 0.2 * amount:
        worn = (worn - 128) * between(rng, 0.6, 1.05) + 128 + rng.normal(0, 10)
    return np.clip(worn, 0, 255).astype(np.uint8)
