"""Pictures of requests: data URLs to bytes, and bytes to files that may be decoded. Nothing is ever fetched."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.serve.refusal import Refusal

_SCHEME = "data:"
_SHOWN = 24


def picture_bytes(address: str, where: str) -> bytes:
    """Returns the bytes of a data URL in base64.

    Args:
      where: place in the request, for messages.

    Raises:
      Refusal: any other address (none is fetched), or no base64.
    """
    if not address[: len(_SCHEME)].lower() == _SCHEME:
        scheme = address[:_SHOWN].partition(":")[0] if ":" in address[:_SHOWN] else "no scheme"
        shown = scheme.encode("ascii", "backslashreplace").decode()
        raise Refusal(
            400, f"{where}: only data URLs are read (data:image/png;base64,...), got {shown}; nothing is fetched",
            code="not_a_data_url", param=where,
        )  # fmt: skip
    head, comma, content = address.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise Refusal(
            400, f"{where}: a data URL must be in base64: data:image/png;base64,...", code="not_base64", param=where
        )
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{where}: the data URL is no valid base64", code="not_base64", param=where) from None


def write_pictures(contents: Sequence[bytes], folder: Path, pictures: Pictures) -> tuple[str, ...]:
    """Writes pictures to files of `folder` and returns their paths.

    `pictures` reads each, its header first: here, where a damaged one is alone, and not again in the batch.

    Raises:
      Refusal: a picture is outside the limits, of another format, or damaged.
    """
    paths = []
    for number, content in enumerate(contents):
        path = folder / f"picture_{number}"
        path.write_bytes(content)
        problem = pictures.read([str(path)])[str(path)].problem
        if problem is not None:
            why = f"picture {number}: {': '.join(map(str, problem))}"
            raise Refusal(400, why, code="invalid_picture", param="messages")
        paths.append(str(path))
    return tuple(paths)
