"""Orientation of a picture: the one EXIF tag that is read.

Cameras and phones write EXIF blocks whose other tags are often of a wrong type or length. Pillow's own transposition
parses and rewrites all of them and fails on such files, although their pixels are sound. So the orientation is looked
up in the raw block, and nothing else of it is parsed.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREFIX = b"Exif\0\0"
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_FORMATS = {1: "B", 3: "H", 4: "L"}  # TIFF's numbers of unsigned types
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_APP1 = 0xE1
_SCAN = 0xDA


def load_upright(image: Image.Image) -> Image.Image:
    """Decodes an opened picture and turns it upright.

    Raises:
      Exception: whatever Pillow's decoder raises for damaged pixels.
    """
    if image.format == "TIFF":
        # Pillow turns a TIFF while it loads it; it is given the orientation alone, so that it parses no other tag.
        only = Image.Exif()
        only[ORIENTATION] = image.tag_v2.get(ORIENTATION, 1)
        image.getexif = lambda: only
        image.load()
        return image
    # A PNG may have its EXIF block after the pixels, so it is looked up when these are decoded.
    image.load()
    turn = _UPRIGHT.get(orientation(image.info))
    return image if turn is None else image.transpose(turn)


def orientation(info: dict) -> int:
    """Returns EXIF's orientation, 1 to 8, from what Pillow keeps of a file's metadata; 1 where none can be read."""
    value = _of_block(_exif_block(info))
    if value is not None:
        return value
    for key in ("xmp", "XML:com.adobe.xmp"):
        text = info.get(key, b"")
        if isinstance(text, str):
            text = text.encode("utf-8", "replace")
        match = _XMP.search(text)
        if match:
            return int(match.group(1))
    return 1


def orientation_only(jpeg: bytes) -> bytes:
    """Returns a JPEG file whose EXIF blocks hold the orientation and nothing else; all other bytes stay."""
    parts = [jpeg[:2]]
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF and jpeg[place + 1] != _SCAN:
        (length,) = struct.unpack_from(">H", jpeg, place + 2)
        end = place + 2 + length
        segment = jpeg[place:end]
        if segment[1] == _APP1 and segment[4:10] == _PREFIX:
            value = _of_block(segment[4:]) or 1
            # A TIFF header and one directory with one entry.
            block = _PREFIX + struct.pack("<2sHLHHHLHHL", b"II", 42, 8, 1, ORIENTATION, 3, 1, value, 0, 0)
            segment = struct.pack(">BBH", 0xFF, _APP1, len(block) + 2) + block
        parts.append(segment)
        place = end
    parts.append(jpeg[place:])
    return b"".join(parts)


def _exif_block(info: dict) -> bytes:
    """The raw EXIF block; empty where there is none."""
    block = info.get("exif")
    if isinstance(block, bytes):
        return block
    # ImageMagick writes the block into a PNG's text, in hex after three lines.
    profile = info.get("Raw profile type exif", "")
    digits = "".join(str(profile).split("\n")[3:])
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def _of_block(block: bytes) -> int | None:
    """The orientation in a raw EXIF block; None where it is absent, out of range or the block is cut off."""
    block = block.removeprefix(_PREFIX)
    order = _BYTE_ORDERS.get(block[:4])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}L", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, directory)
        for number in range(count):
            entry = directory + 2 + 12 * number
            tag, kind, values = struct.unpack_from(f"{order}HHL", block, entry)
            if tag == ORIENTATION and kind in _FORMATS and values == 1:
                (value,) = struct.unpack_from(order + _FORMATS[kind], block, entry + 8)
                return value if 1 <= value <= 8 else None
    except struct.error:
        return None
    return None
