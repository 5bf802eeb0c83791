"""Pictures: checked by their header, decoded, padded to a square and normalised.

The header is checked before a pixel is decoded, because a few kilobytes can unpack to gigabytes, and LLaVA's
pad-to-square turns a 65000 x 2 strip into 17 GB (so the longest side is resized first and the padding added after).
Decoding follows one policy: EXIF orientation is applied, of an animation the first frame counts, 16-bit grey is
rescaled, transparency is composited on the mean colour. Only Pillow is used, so pixels do not depend on what else is
installed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hidecmoe_jax.core.errors import DataError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What Pillow's decoders raise for damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Limits:
    """Limits of a picture: sides in px, aspect as longest over shortest side, Pillow's names of formats."""

    max_pixels: int = 40_000_000
    max_side: int = 16_384
    min_side: int = 2
    max_aspect: float = 20.0
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """Size (sides in px), mode and format of a picture file, read without decoding it."""

    width: int
    height: int
    mode: str
    format: str


def inspect(path: str | Path, limits: Limits = LIMITS) -> Header:
    """Returns the header of a picture that may be decoded.

    Raises:
      DataError: missing, not a regular file (folder, FIFO, device), empty, not a picture of an allowed
        format, too many pixels, a side too long or too short, too extreme an aspect.
    """
    _check_file(path)
    with _open(path, limits) as image:
        return _checked_header(path, image, limits)


def load(
    path: str | Path, size: int, mean: tuple[float, float, float] = CLIP_MEAN, *, limits: Limits = LIMITS
) -> np.ndarray:
    """Returns a picture as uint8 [size, size, 3]: longest side resized to `size` (bicubic), rest in the mean colour.

    Raises:
      DataError: everything `inspect` refuses, and damaged or cut-off files; nothing is replaced by zeros.
    """
    _check_file(path)
    ground = tuple(int(channel * 255) for channel in mean)
    with _open(path, limits) as image:
        _checked_header(path, image, limits)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _square(_rgb(upright, ground), size, ground)
        except _DAMAGE as error:
            raise DataError(
                "cannot decode a picture",
                where=str(path),
                why=f"damaged or cut off: {error}",
                remedy="replace the file, or remove the records that use it",
            ) from error


def normalise(
    pixels: np.ndarray,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> np.ndarray:
    """Returns (x / 255 - mean) / std of uint8 pixels [..., 3], float32; CLIP's constants by default."""
    # All operands are float32: a float64 constant would change the last bit of the result.
    centre = np.asarray(mean, np.float32)
    spread = np.asarray(std, np.float32)
    return (pixels.astype(np.float32) / np.float32(255) - centre) / spread


def file_digest(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: str | Path) -> None:
    """Refuses what is not a regular file with content; opening a pipe or a device could block forever."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(
            "cannot read a picture",
            where=str(path),
            why=error.strerror or str(error),
            remedy="check the name; `hidecmoe data check DIR` lists all missing pictures",
        ) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise DataError(
            "cannot read a picture",
            where=str(path),
            why=f"it is {kind}, only regular files are read",
            remedy="name an image file",
        )
    if status.st_size == 0:
        raise DataError(
            "cannot read a picture",
            where=str(path),
            why="the file has 0 bytes",
            remedy="copy or download it again",
        )


def _open(path: str | Path, limits: Limits) -> Image.Image:
    try:
        return Image.open(path, formats=limits.formats)
    except _BOMBS as error:
        raise DataError(
            "a picture is too large",
            where=str(path),
            why=f"{error}; at most {limits.max_pixels} pixels are decoded",
            remedy="scale it down",
        ) from None
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            head = file.read(64).lstrip()
        is_page = head[:1] == b"<"
        why = "it holds a web page or XML (a failed download?)" if is_page else f"it begins with {head[:12]!r}"
        raise DataError(
            "not a picture of a known format",
            where=str(path),
            why=why,
            remedy=f"allowed are {', '.join(limits.formats)}",
        ) from None
    except _DAMAGE as error:
        raise DataError(
            "cannot read the header of a picture",
            where=str(path),
            why=f"damaged or cut off: {error}",
            remedy="replace the file",
        ) from error


def _checked_header(path: str | Path, image: Image.Image, limits: Limits) -> Header:
    """The header of an opened picture that is within the limits."""
    width, height = image.size
    pixels = width * height
    short, long = sorted((width, height))
    verdicts = (
        (pixels > limits.max_pixels, f"{pixels} pixels, at most {limits.max_pixels} are decoded"),
        (long > limits.max_side, f"{long} px on a side, at most {limits.max_side}"),
        (short < limits.min_side, f"{short} px on a side, at least {limits.min_side}"),
        (long > limits.max_aspect * max(short, 1), f"aspect {long}:{short}, at most {limits.max_aspect:g}:1"),
    )
    # The first limit that is exceeded is reported.
    for refused, why in verdicts:
        if refused:
            raise DataError(
                "a picture is outside the limits",
                where=str(path),
                why=f"{width} x {height}: {why}",
                remedy="scale or crop it, or remove the records that use it",
            )
    return Header(width, height, image.mode, image.format or "")


def _rgb(image: Image.Image, ground: tuple[int, ...]) -> Image.Image:
    """A decoded picture of any mode in RGB, transparency on `ground`."""
    if image.mode.startswith("I"):
        # Pillow's own convert clips 16-bit grey at 255: nearly everything would turn white.
        grey = np.rint(np.asarray(image).astype(np.float64) / 257.0)
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*ground, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int, ground: tuple[int, ...]) -> np.ndarray:
    """The picture scaled into the middle of a square; its short side is at least one pixel."""
    # Scaled before it is padded: the other order needs memory for the square of the longest side.
    longest = max(image.size)
    width, height = (max(1, round(side * size / longest)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (size, size), ground)
    canvas.paste(small, ((size - width) // 2, (size - height) // 2))
    return np.asarray(canvas)
