"""From any of Pillow's modes to 8-bit RGB, transparency shown on one colour.

Where Pillow's own conversion is silent and wrong, the pixels are computed here: 16-bit grey (clipped at 255), 12-bit
grey (read as if it had 16), inverted 16-bit grey of a TIFF, and a transparent colour that is stored in another depth
than the pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

Colour = tuple[int, ...]

_TRANSPARENT = ("LA", "PA", "RGBA", "RGBa")
# Step between two levels, by Pillow's raw mode of a PNG with fewer than 8 bits of grey.
_GREY_STEPS = {"L;2": 85, "L;4": 17}
_PHOTOMETRIC = 262  # TIFF tag
_WHITE_IS_ZERO = 0
_DEEPEST = 65535


class UnreadPixels(ValueError):
    """Pixels without a defined brightness: floats, or integers beyond 16 bits."""


def raw_mode(image: Image.Image) -> str:
    """Returns Pillow's name of how pixels are stored in an opened file; read it before the picture is loaded."""
    if not image.tile:
        return ""
    args = image.tile[0][3]
    if isinstance(args, tuple):
        args = args[0] if args else ""
    return str(args or "")


def to_rgb(image: Image.Image, raw: str, ground: Colour) -> Image.Image:
    """Returns a decoded picture in RGB.

    Args:
      raw: its `raw_mode`.
      ground: colour that shows where the picture is transparent.

    Raises:
      UnreadPixels: floats, or integers beyond 16 bits.
    """
    if image.mode == "F":
        raise UnreadPixels("its pixels are floats, whose brightness is not defined")
    if image.mode.startswith("I"):
        return _deep_grey(image, raw, ground)
    key = image.info.get("transparency")
    if image.mode in ("1", "L", "RGB") and isinstance(key, int | tuple):
        return _keyed(image, raw, key, ground)
    if image.mode == "La":
        # Pillow converts premultiplied grey to nothing but this.
        image = image.convert("LA")
    if image.mode in _TRANSPARENT or key is not None:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*ground, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image, raw: str, ground: Colour) -> Image.Image:
    """Grey of 12 or 16 bits, rescaled to 8."""
    levels = np.asarray(image).astype(np.int64)
    top = 4095 if raw == "I;12" else _DEEPEST
    if levels.min() < 0 or levels.max() > top:
        raise UnreadPixels(f"its grey levels are {levels.min()} to {levels.max()}, read are 0 to {top}")
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = top - levels
    grey = np.rint(levels / (top / 255)).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    key = image.info.get("transparency")
    if isinstance(key, int):
        rgb[levels == key] = ground
    return Image.fromarray(rgb)


def _keyed(image: Image.Image, raw: str, key: int | Colour, ground: Colour) -> Image.Image:
    """A picture in which one colour is transparent; the colour is given in the depth of the file."""
    if isinstance(key, int):
        key = (key * _GREY_STEPS.get(raw, 1),) * 3
    if ";16" in raw:
        # Pillow keeps the upper 8 of 16 bits.
        key = tuple(level >> 8 for level in key)
    rgb = np.array(image.convert("RGB"))
    is_clear = (rgb == np.array(key)).all(axis=-1)
    rgb[is_clear] = ground
    return Image.fromarray(rgb)
