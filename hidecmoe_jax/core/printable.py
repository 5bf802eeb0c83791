"""Text of unknown origin for terminals and pages, with its control characters spelled out."""

from __future__ import annotations

import json
import re

# Line feeds and tabs stay. Beside control characters: marks that reverse the order of what follows or end a line
# unseen, tags that no font shows, and halves of surrogate pairs, as names of files may hold, which no stream encodes.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """Returns a text in which every control character is written as JSON does (`\\u001b`), so JSON stays what it is."""
    return _CONTROLS.sub(lambda match: json.dumps(match[0])[1:-1], text)
