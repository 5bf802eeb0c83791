"""Media that are not read: keys of a record and markers in questions, refused by name.

A record with a video or a sound that is left out would be trained as text without a warning. Keys that only describe
(`image_id`, `source`, `model`) are left alone, and so is a media key without a value, as tables with empty columns
have.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

IMAGE = "<image>"

_PICTURES = frozenset("image images img imgs picture pictures pic pics photo photos".split())
_OTHER_MEDIA = frozenset(
    "video videos vid audio audios sound sounds speech voice music frame frames clip clips gif depth "
    "pointcloud pcd pdf pixel_values point_cloud".split()
)
# What may follow the name of a medium in a key that holds the medium itself: `video_path`, `image_2`, `audio-url`.
_HOLDERS = re.compile(r"(?:path|file|filename|name|url|uri|dir|folder|list|bytes|base64|b64|data|\d)+s?|")
# Keys that other trainers act on; left out, the record would be trained as something else.
_INSTRUCTIONS = {
    "system": "write the instruction into the first question, or set template.system in the config",
    "history": "write earlier turns into 'conversations'",
    "tools": "calls of tools are not trained; remove the key",
    "rejected": "preferences are not trained; remove the key",
    "rejected_response": "preferences are not trained; remove the key",
}
# Keys that other trainers weigh or leave out answers by, at a record or at a turn.
_WEIGHTS = ("loss", "loss_scale", "loss_mask", "loss_weight", "weight", "sample_weight", "train", "training")
_UNWEIGHTED = (
    "every answer counts with equal weight; remove the key, or the record where nothing is to be learned from it"
)
_NO_LOSS = ("false", "none", "no", "off")
_NUMBER = re.compile(r"0?\.\d+|0")
_MARKER = re.compile(
    # Also with blanks or a stroke inside, in full-width brackets, or escaped as in HTML.
    r"(?:[<\uff1c]|&lt;)\s*\|?(?:image|img|picture|pic|video|vid|audio|speech|sound|frame|point_?cloud|pcd|pdf)s?"
    r"(?:[ _-]?(?:here|placeholder|pad|start|end|token|\d+))*\s*/?\|?(?:[>\uff1e]|&gt;)"
    r"|<\|?vision_(?:start|end|pad)\|?>|<im_(?:start|end|patch)>",
    re.IGNORECASE,
)


def key_problems(item: Mapping[str, Any], pictures: list[str]) -> list[str]:
    """Returns a problem for every key of a record that holds something to be learned from and is not read.

    Args:
      pictures: names that the key `image` holds.
    """
    problems = []
    for key, value in item.items():
        name = _snake(str(key))
        if name in _WEIGHTS and _weighs(value):
            problems.append(f"key {key!r} is not read: {_UNWEIGHTED}")
        if key == "image" or _is_empty(value):
            continue
        medium = _medium(name)
        if medium in _OTHER_MEDIA:
            problems.append(f"key {key!r} is not read: only pictures are, in 'image'; remove the key or the record")
        elif medium in _PICTURES or _is_misspelled(name, value):
            is_address = name.endswith(("url", "urls", "uri"))
            if not _names_the_same(value, pictures, is_address=is_address):
                problems.append(f"key {key!r} is not read; did you mean 'image'?")
        elif name in _INSTRUCTIONS:
            problems.append(f"key {key!r} is not read; {_INSTRUCTIONS[name]}")
    return problems


def turn_key_problems(message: Mapping[str, Any], number: int) -> list[str]:
    """Returns a problem for every key of one turn that holds a medium, or changes its loss, and is not read."""
    problems = []
    for key, value in message.items():
        name = _snake(str(key))
        # A question carries no loss, so whatever weight it is given changes nothing.
        if name in _WEIGHTS and number % 2 and _weighs(value):
            problems.append(f"turn {number}: key {key!r} is not read: {_UNWEIGHTED}")
        if _is_empty(value):
            continue
        medium = _medium(name)
        if medium in _PICTURES:
            problems.append(f"turn {number}: key {key!r} is not read; pictures belong into the record's 'image'")
        elif medium in _OTHER_MEDIA:
            problems.append(f"turn {number}: key {key!r} is not read: only pictures are, in the record's 'image'")
    return problems


def marker_problems(question: str, what: str) -> list[str]:
    """Returns a problem for every marker of a question that stands for a medium and is not `<image>`."""
    others = {marker: None for marker in _MARKER.findall(question) if marker != IMAGE}
    return [f"{what} contains {marker}; the only marker that is read is {IMAGE}" for marker in others]


def has_marker(text: str) -> bool:
    """Whether a text holds a marker of a medium, of whatever spelling."""
    return _MARKER.search(text) is not None


def question_problems(question: str, pictures: int) -> list[str]:
    """Returns all problems of a question as a user asks it, with its number of pictures; empty where it can be asked.

    A question without `<image>` shows its pictures before its text.
    """
    problems = marker_problems(question, "the question")
    if not question.replace(IMAGE, "").strip() and not pictures:
        problems.append("the question is empty and shows no picture")
    marks = question.count(IMAGE)
    if marks and marks != pictures:
        problems.append(f"{marks} {IMAGE} in the question but {pictures} pictures")
    return problems


def _snake(key: str) -> str:
    """A key in lower case with words joined by `_`: `VideoPath`, `video-path` and `video path` are `video_path`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.strip())
    return re.sub(r"[\s.-]+", "_", parted).lower()


def _medium(name: str) -> str:
    """The medium that a key in snake case holds, or an empty text."""
    if name in _OTHER_MEDIA:
        return name
    word, _, rest = name.partition("_")
    # `image2` holds a picture as `image_2` does.
    word = word.rstrip("0123456789")
    is_held = all(_HOLDERS.fullmatch(part) for part in rest.split("_"))
    return word if is_held and word in _PICTURES | _OTHER_MEDIA else ""


def _is_misspelled(name: str, value: Any) -> bool:
    """Whether a key is `image` with a wrong letter and holds texts; its pictures would be lost."""
    texts = value if isinstance(value, list) else [value]
    holds_texts = all(isinstance(text, str) for text in texts)
    return holds_texts and bool(difflib.get_close_matches(name, ("image",), n=1, cutoff=0.8))


def _names_the_same(value: Any, pictures: list[str], *, is_address: bool) -> bool:
    """Whether a key beside `image` only repeats where the record's pictures are or came from."""
    names = value if isinstance(value, list) else [value]
    if not pictures or len(names) != len(pictures):
        return False
    if not all(isinstance(name, str) for name in names):
        return False
    if is_address:
        return True
    return [PurePosixPath(name).name for name in names] == [PurePosixPath(name).name for name in pictures]


def _weighs(value: Any) -> bool:
    """Whether a value, or one of a list, is a weight other than 1 or such a word; "3 kg" only describes."""
    values = value if isinstance(value, list) else [value]
    for weight in values:
        if isinstance(weight, str) and (weight.strip().lower() in _NO_LOSS or _NUMBER.fullmatch(weight.strip())):
            return True
        if isinstance(weight, bool | int | float) and weight != 1:
            return True
    return False


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is False or value == [] or value == {}
