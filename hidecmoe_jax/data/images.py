"""Pictures: checked by their header, decoded, made square and normalised.

The header is checked before a pixel is decoded, because a few kilobytes can unpack to gigabytes. Decoding follows one
policy: EXIF orientation is applied, of an animation or a document the first frame counts, 16-bit grey is rescaled,
transparency is composited on the mean colour. Only Pillow is used, so pixels do not depend on what else is installed.

A picture is made square by one of two rules, which give the bytes of the tools that checkpoints were trained with:
`pad` is LLaVA-1.5's (padded with the mean colour, then resized), `crop` is CLIP's (the short side is resized, then the
centre cut out).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.strict import YOUNGER
from hidecmoe_jax.data.colour import UnreadPixels, raw_mode, to_rgb
from hidecmoe_jax.data.exif import load_upright, orientation_only
from hidecmoe_jax.models.config import Fit

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_JPEG = ("JPEG", "MPO")  # several JPEG pictures in one file are an MPO, which phones write
_REDUCTIONS = (1, 2, 4, 8)  # fractions of its sides at which a JPEG can be decoded
_BAND = 256  # rows that are padded and resized at once
_PREVIEW = 254  # TIFF tag whose lowest bit marks a reduced version of another picture in the file
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Limits:
    """Limits of a picture: sides in px, aspect as longest over shortest side, Pillow's names of formats.

    Attributes:
      max_pixels: largest picture that is decoded whole.
      max_reduced_pixels: largest JPEG that is decoded at a half, a quarter or an eighth of its sides, the largest of
        these with at most `max_pixels`; of a progressive one, which needs memory for the whole, half as many.
    """

    max_pixels: int = 40_000_000
    max_reduced_pixels: int = field(default=170_000_000, metadata=YOUNGER)
    max_side: int = 16_384
    min_side: int = 2
    max_aspect: float = 20.0
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


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
    with open_file(path) as file:
        return header_of(path, file, limits)


def header_of(path: str | Path, file: BinaryIO, limits: Limits = LIMITS) -> Header:
    """As `inspect`, of a file that is open at its start."""
    with _open(path, file, limits) as image:
        return _checked_header(path, image, limits)


def load(
    path: str | Path,
    size: int,
    mean: tuple[float, float, float] = CLIP_MEAN,
    *,
    fit: Fit = "pad",
    limits: Limits = LIMITS,
) -> np.ndarray:
    """Returns a picture as uint8 [size, size, 3], resized bicubically.

    Args:
      mean: colour of padding and behind transparent pixels, 0 to 1.
      fit: rule that makes it square, "pad" or "crop".

    Raises:
      DataError: everything `inspect` refuses, and damaged or cut-off files; nothing is replaced by zeros.
    """
    return squared(open_upright(path, mean, limits=limits), size, mean, fit=fit)


def squared(
    image: Image.Image, size: int, mean: tuple[float, float, float] = CLIP_MEAN, *, fit: Fit = "pad"
) -> np.ndarray:
    """Returns a picture of `open_upright` as `load` does."""
    return _FITS[fit](image, size, _ground(mean))


def open_upright(
    path: str | Path, mean: tuple[float, float, float] = CLIP_MEAN, *, limits: Limits = LIMITS
) -> Image.Image:
    """Returns a whole picture in RGB, upright; arguments and errors as of `load`."""
    with open_file(path) as file:
        return upright_of(path, file, mean, limits=limits)


def upright_of(
    path: str | Path, file: BinaryIO, mean: tuple[float, float, float] = CLIP_MEAN, *, limits: Limits = LIMITS
) -> Image.Image:
    """As `open_upright`, of a file that is open at its start."""
    with _open(path, file, limits) as image:
        _checked_header(path, image, limits)
        return _decoded(path, image, _ground(mean), limits)


def open_file(path: str | Path) -> BinaryIO:
    """Opens a regular file with content.

    Raises:
      DataError: there is none, or it may not be read.
    """
    _check_file(path)
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(
            "cannot read a picture",
            where=str(path),
            why=error.strerror or str(error),
            remedy="give this user the right to read it",
        ) from None


def _ground(mean: tuple[float, float, float]) -> tuple[int, ...]:
    """The colour of padding as bytes."""
    return tuple(int(channel * 255) for channel in mean)


def _decoded(path: str | Path, image: Image.Image, ground: tuple[int, ...], limits: Limits) -> Image.Image:
    """The pixels of an opened picture, upright and in RGB."""
    try:
        raw = raw_mode(image)
        reduction = _reduction(image, limits)
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        return to_rgb(load_upright(image), raw, ground)
    except UnreadPixels as error:
        raise DataError(
            "cannot read the pixels of a picture",
            where=str(path),
            why=str(error),
            remedy="save it with 8 or 16 bits a channel",
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise nearly any class for damaged files.
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


def _open(path: str | Path, file: BinaryIO, limits: Limits) -> Image.Image:
    try:
        return _opened(file, limits)
    except _BOMBS as error:
        raise DataError(
            "a picture is too large",
            where=str(path),
            why=f"{error}; at most {limits.max_pixels} pixels are decoded",
            remedy="scale it down",
        ) from None
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(64).lstrip()
        is_page = head[:1] == b"<"
        why = "it holds a web page or XML (a failed download?)" if is_page else f"it begins with {head[:12]!r}"
        raise DataError(
            "not a picture of a known format",
            where=str(path),
            why=why,
            remedy=f"allowed are {', '.join(limits.formats)}: save it as one of these, or begin a run that allows more "
            "by `--set stream.policy.limits.formats=[...]`",
        ) from None
    except Exception as error:
        # As in decoding; whatever is left of a MemoryError is passed on.
        if isinstance(error, MemoryError):
            raise
        raise DataError(
            "cannot read the header of a picture",
            where=str(path),
            why=f"damaged or cut off: {error}",
            remedy="replace the file",
        ) from error


def _opened(file: BinaryIO, limits: Limits) -> Image.Image:
    """The picture with its header read; of a JPEG that Pillow refuses for a tag of its EXIF, without that tag."""
    try:
        return Image.open(file, formats=limits.formats)
    except _BOMBS:
        raise
    except Exception:
        file.seek(0)
        content = file.read()
        is_jpeg = content.startswith(b"\xff\xd8") and "JPEG" in limits.formats
        if not is_jpeg:
            raise
        return Image.open(io.BytesIO(orientation_only(content)), formats=("JPEG",))


def _reduction(image: Image.Image, limits: Limits) -> int:
    """The divisor of its sides at which a picture is decoded; 0 where no divisor is within the limits."""
    pixels = image.width * image.height
    if pixels <= limits.max_pixels:
        return 1
    most = limits.max_reduced_pixels
    if image.info.get("progressive"):
        most //= 2
    if image.format not in _JPEG or pixels > most:
        return 0
    for divisor in _REDUCTIONS:
        if pixels <= limits.max_pixels * divisor**2:
            return divisor
    return 0


def _checked_header(path: str | Path, image: Image.Image, limits: Limits) -> Header:
    """The header of an opened picture that is within the limits."""
    width, height = image.size
    short, long = sorted((width, height))
    verdicts = (
        (_reduction(image, limits) == 0, _too_many(image, limits)),
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
                remedy="scale or crop it, remove its records, or change `stream.policy.limits` in the config",
            )
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PREVIEW, 0) == 1:
        raise DataError(
            "the first picture of a file is only a preview of another one",
            where=str(path),
            why="TIFF tag 254 says so; camera raw files are built like this",
            remedy="export it as JPEG, PNG or TIFF",
        )
    return Header(width, height, image.mode, image.format or "")


def _too_many(image: Image.Image, limits: Limits) -> str:
    """Why a picture has too many pixels."""
    pixels = image.width * image.height
    if image.format not in _JPEG:
        return (
            f"{pixels} pixels, at most {limits.max_pixels} are decoded "
            f"(of a JPEG, which can be read at a fraction of its size, {limits.max_reduced_pixels})"
        )
    kind = "progressive JPEG, at most half of " if image.info.get("progressive") else "JPEG, at most "
    return f"{pixels} pixels in a {kind}{limits.max_reduced_pixels} are read"


def _pad(image: Image.Image, size: int, ground: tuple[int, ...]) -> np.ndarray:
    """LLaVA's rule: in the middle of a square of its longest side, then resized."""
    # The square itself may need a gigabyte. Pillow resizes rows first and columns after, so bands of rows that are
    # padded and narrowed one by one give its bytes.
    side = max(image.size)
    left = (side - image.width) // 2
    top = (side - image.height) // 2
    narrow = Image.new("RGB", (size, side), ground)
    for start in range(0, image.height, _BAND):
        stop = min(start + _BAND, image.height)
        rows = image.crop((0, start, image.width, stop))
        band = Image.new("RGB", (side, stop - start), ground)
        band.paste(rows, (left, 0))
        narrow.paste(band.resize((size, stop - start), Image.Resampling.BICUBIC), (0, top + start))
    return np.asarray(narrow.resize((size, size), Image.Resampling.BICUBIC))


def _crop(image: Image.Image, size: int, ground: tuple[int, ...]) -> np.ndarray:
    """CLIP's rule: the short side resized to `size`, then the centre."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left = (width - size) // 2
    top = (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


_FITS = {"pad": _pad, "crop": _crop}
