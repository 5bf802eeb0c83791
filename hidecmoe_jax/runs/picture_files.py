"""Pictures that a caller gives as paths, bytes or PIL images, as files: every picture is then read in one way."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.exif import ORIENTATION, orientation
from hidecmoe_jax.data.images import LIMITS, Limits, inspect

_MODES_OF_PNG = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
_KINDS = "a path, the bytes of a picture file, or a PIL image"


@contextlib.contextmanager
def picture_files(images: Sequence[Any], limits: Limits = LIMITS) -> Iterator[list[list[str]]]:
    """Yields the picture files of every prompt; those that had to be written exist until the block ends.

    Args:
      images: for every prompt a picture, a list of pictures or None; a picture is a path, the bytes of a picture file,
        or a PIL image.

    Raises:
      DataError: something else than these, or bytes that are no picture within `limits`.
    """
    with tempfile.TemporaryDirectory(prefix="hidecmoe_pictures_") as folder:
        files = []
        for number, value in enumerate(images):
            pictures = _as_list(value)
            paths = []
            for position, picture in enumerate(pictures):
                where = f"prompt {number}, picture {position}"
                target = Path(folder) / f"prompt_{number}_picture_{position}"
                paths.append(_file_of(picture, target, where, limits))
            files.append(paths)
        yield files


def _as_list(value: Any) -> list[Any]:
    """The pictures of one prompt."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(value)
    return [value]


def _file_of(picture: Any, target: Path, where: str, limits: Limits) -> str:
    """Path of a picture, which is written to `target` unless it is a file already."""
    if isinstance(picture, str | Path):
        return str(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        target.write_bytes(picture)
    elif isinstance(picture, Image.Image):
        _write_image(picture, target, where)
    else:
        raise DataError(
            "this is no picture", where=where, why=f"found {type(picture).__name__}, allowed are {_KINDS}",
            remedy="convert an array with PIL.Image.fromarray",
        )  # fmt: skip
    try:
        inspect(target, limits)
    except DataError as error:
        # The temporary file's name would mean nothing to the caller.
        raise DataError(error.what, where=where, why=error.why, remedy=error.remedy) from None
    return str(target)


def _write_image(image: Image.Image, target: Path, where: str) -> None:
    """A PIL image as a PNG file of the same pixels and the same orientation."""
    try:
        image.load()
        drawn = image if image.mode in _MODES_OF_PNG else image.convert(_nearest_mode(image.mode))
        exif = Image.Exif()
        exif[ORIENTATION] = orientation(image.info)
        drawn.save(target, format="PNG", exif=exif, compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            "cannot read a PIL image", where=where, why=str(error), remedy="open the image again, and do not close it"
        ) from None


def _nearest_mode(mode: str) -> str:
    """The mode of PNG that an image of another mode is converted to; transparency is kept."""
    return "RGBA" if mode in ("La", "PA", "RGBa") else "RGB"
