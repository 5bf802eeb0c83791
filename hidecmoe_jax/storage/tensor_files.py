"""Safetensors files of unknown origin: what they say about themselves, before a library maps them into memory.

Such a file is eight bytes of length, a JSON header, and raw numbers. A 7B model has a header of 100 kB.
"""

from __future__ import annotations

from pathlib import Path

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.core.regular_files import check_regular

MOST_HEADER = 16 * 2**20
AGAIN = "download the file again and compare its SHA-256 with the publisher's"


def header_size(path: Path) -> int:
    """Returns the bytes of a file's header; no more of the file is read than its length.

    Raises:
      CheckpointError: missing, may not be read, no regular file, or a header that is larger than the file or than
        16 MiB.
    """
    try:
        size = check_regular(path).st_size
        with open(path, "rb") as stream:
            start = stream.read(8)
    except OSError as error:
        why = error.strerror or str(error)
        raise CheckpointError("a weight file cannot be read", where=str(path), why=why) from error
    length = int.from_bytes(start, "little") if len(start) == 8 else -1
    # Two bytes are an empty object.
    if not 2 <= length <= min(MOST_HEADER, size - 8):
        why = (
            f"its header would be {length} bytes of a file of {size}, at most {MOST_HEADER} are read: truncated, or no "
            "safetensors file"
        )
        raise CheckpointError("a weight file is damaged", where=str(path), why=why, remedy=AGAIN)
    return length
