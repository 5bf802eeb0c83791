"""Shared pieces of all drawings: random choices, visible colours, grounds, and the wear of a finished picture.

All randomness comes from the generator that is passed in, so the same generator state gives the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.data.pocket.picture import COLOURS, SIDE

_LUMA = np.array([0.3, 0.59, 0.11])
# A name that is listed several times is as many times as likely.
_GROUNDS = (
    ("white",) * 9 + ("black",) * 6 + ("gray",) * 3 + ("blue", "green", "purple", "brown", "yellow", "cyan", "pink")
)
_LIGHT_GROUNDS = ("white", "white", "white", "yellow", "cyan", "pink")
_DARK_GROUNDS = ("black", "black", "black", "blue", "brown", "purple")


def pick(rng: np.random.Generator, options: Sequence):
    """Returns one of the options; several times faster than `rng.choice`."""
    index = int(rng.random() * len(options))
    return options[index]


def picks(rng: np.random.Generator, options: Sequence, count: int) -> list:
    """Returns `count` independent picks; options may repeat."""
    return [pick(rng, options) for _ in range(count)]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Returns a uniform float in [low, high)."""
    return low + (high - low) * rng.random()


def whole_between(rng: np.random.Generator, low: int, high: int) -> int:
    """Returns a uniform whole number from `low` to `high`, both included."""
    count = high - low + 1
    return low + int(rng.random() * count)


def _is_visible(ink: tuple[int, int, int], ground: tuple[int, int, int]) -> bool:
    """Whether two RGB values differ clearly in brightness, or a little in brightness and much in hue."""
    ink_rgb = np.array(ink, float)
    ground_rgb = np.array(ground, float)
    difference = ink_rgb - ground_rgb
    brightness = abs(difference @ _LUMA)
    if brightness > 38:
        return True
    distance = np.abs(difference).sum()
    return brightness > 14 and distance > 190


@lru_cache(maxsize=1)
def _visible_colours() -> dict[str, tuple[str, ...]]:
    """For every ground the names of the colours that are visible on it."""
    table = {}
    for ground, ground_rgb in COLOURS.items():
        visible = []
        # A colour is never visible on itself.
        for name, rgb in COLOURS.items():
            if _is_visible(rgb, ground_rgb):
                visible.append(name)
        table[ground] = tuple(visible)
    return table


def visible_on(ground: str) -> tuple[str, ...]:
    """Returns the names of the colours that can be told apart from this ground.

    Raises:
      DataError: no such colour.
    """
    if ground not in COLOURS:
        raise DataError(f"no colour called {ground!r}", why=nearest(ground, COLOURS))
    return _visible_colours()[ground]


def pick_ground(rng: np.random.Generator, wanted: str | None = None) -> str:
    """Returns the colour name of a ground, mostly white, black or gray.

    Args:
      wanted: a colour name, which is returned as it is, or "light" or "dark".
    """
    if wanted == "light":
        return pick(rng, _LIGHT_GROUNDS)
    if wanted == "dark":
        return pick(rng, _DARK_GROUNDS)
    if wanted is None:
        return pick(rng, _GROUNDS)
    visible_on(wanted)  # refuses an unknown colour name
    return wanted


def ground_for(rng: np.random.Generator, ground: str, colours: Sequence[str]) -> str:
    """Returns `ground`, or another one where not all `colours` are visible on it."""
    while any(colour not in visible_on(ground) for colour in colours):
        ground = pick_ground(rng)
    return ground


def ground_under(rng: np.random.Generator, ground: str | None, colour: str | None) -> str:
    """Returns the ground asked for, as `pick_ground` does, or another one where `colour` is not visible on it.

    Args:
      colour: colour of what is drawn on the ground; None if it is chosen after the ground.
    """
    ground = pick_ground(rng, ground)
    if colour is None:
        return ground
    return ground_for(rng, ground, (colour,))


def tint(rng: np.random.Generator, name: str) -> tuple[int, int, int]:
    """Returns the RGB value of a colour name, with a little jitter."""
    # Plain Python is several times faster than numpy for three numbers.
    shifts = rng.normal(0, 7, 3).tolist()
    channels = []
    for mean, shift in zip(COLOURS[name], shifts, strict=False):
        channel = min(max(mean + shift, 0), 255)
        channels.append(int(channel))
    return tuple(channels)


def blank(side: int, colour: tuple[int, int, int]) -> Image.Image:
    """Returns a square RGB image in one colour."""
    return Image.new("RGB", (side, side), colour)


def square_around(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    """Returns the box (x0, y0, x1, y1) of a circle."""
    return x - radius, y - radius, x + radius, y + radius


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Unit noise from a fixed seed, four pictures wide; a slice of it is cheaper than fresh noise."""
    shape = (4 * SIDE, 4 * SIDE, 3)
    rng = np.random.default_rng(20)
    noise = rng.normal(0, 1, shape)
    return noise.astype(np.float32)


@lru_cache(maxsize=4)
def _ramp(size: int) -> np.ndarray:
    """Coordinates from -1 to 1 along x and y, float32 [2, size, size]."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    x = line[None, :]
    y = line[:, None]
    return np.stack(np.broadcast_arrays(x, y))


def _noise(rng: np.random.Generator, size: int, channels: int) -> np.ndarray:
    """Noise [size, size, channels] of random strength, from a random place of the grain; one channel is grey noise."""
    corner = rng.random(2) * 3 * SIDE
    y, x = corner.astype(int).tolist()
    bottom = y + size
    right = x + size
    grain = _grain()[y:bottom, x:right, :channels]
    strength = between(rng, 2, 22)
    return grain * strength


def _uneven_light(rng: np.random.Generator, size: int) -> np.ndarray:
    """Brightness [size, size, 1] that rises along a random direction."""
    slope = rng.normal(0, 18, 2)
    along_axes = _ramp(size) * slope[:, None, None]
    gradient = along_axes.sum(0)
    return gradient[..., None]


def wear(image: Image.Image, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Applies blur, noise, uneven light and loss of contrast, each with a probability; 0 gives a clean picture.

    Returns uint8 [size, size, 3].
    """
    # Always five draws, whatever `amount` is.
    blur, noise, light, fading, coloured_noise = rng.random(5).tolist()
    if blur < 0.18 * amount:
        radius = between(rng, 0.4, 1.0)
        image = image.filter(ImageFilter.GaussianBlur(radius))
    pixels = np.asarray(image)
    has_noise = noise < 0.35 * amount
    has_light = light < 0.15 * amount
    has_contrast = fading < 0.2 * amount
    if not (has_noise or has_light or has_contrast):
        return pixels
    size = pixels.shape[0]
    worn = pixels.astype(np.float32)
    if has_noise:
        channels = 3 if coloured_noise < 0.6 else 1
        worn += _noise(rng, size, channels)
    if has_light:
        worn += _uneven_light(rng, size)
    if has_contrast:
        contrast = between(rng, 0.6, 1.05)
        brightness = rng.normal(0, 10)
        worn = (worn - 128) * contrast + 128 + brightness
    clipped = np.clip(worn, 0, 255)
    return clipped.astype(np.uint8)
