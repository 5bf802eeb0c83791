"""Reader of result files: JSON lines or a JSON array, with the names that published scripts give to id and answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.json_text import RECORDS, json_value
from hidecmoe_jax.data.items import kind
from hidecmoe_jax.data.jsonfile import parse_json, read_text
from hidecmoe_jax.scoring.joining import Line
from hidecmoe_jax.storage.files import read_whole

ID_KEYS = ("question_id", "questionId", "id", "image_id")
TEXT_KEYS = ("text", "prediction", "pred", "answer", "caption", "response", "output")
PRINTED = "Result.text"
_MOST_PRINTED = 2**20  # bytes of such a file
_ACCURACY = re.compile(r"(?:Accuracy|Average|ANLS): *(-?[\d.]+)%")
_OCR_BENCH = re.compile(r"'Final Score Norm': *([\d.]+)")
_SAMPLES = re.compile(r"Samples: *(\d+)")


@dataclass(frozen=True)
class Result:
    """A result file.

    Attributes:
      path: the file, or the folder of its shards.
      lines: (id, answer) in the order of the file.
      torn: the last line is no JSON, as after a crash; it is left out.
      printed: score in the `Result.text` beside the file, None without one.
      printed_samples: number of samples there.
    """

    path: Path
    lines: tuple[Line, ...]
    torn: bool = False
    printed: float | None = None
    printed_samples: int | None = None


def read_result(path: Path, shards: tuple[Path, ...] = ()) -> Result:
    """Reads a result file, or its shards one after the other.

    Raises:
      DataError: no text, a line in the middle that is no JSON, or items without an id or an answer.
    """
    lines: list[Line] = []
    torn = False
    for file in shards or (path,):
        items, is_torn = _items(file)
        torn = torn or is_torn
        for place, item in enumerate(items, start=1):
            lines.append(_line(item, f"{file}:{place}"))
    folder = path if shards else path.parent
    return Result(path, tuple(lines), torn, *_printed(folder / PRINTED))


def _items(path: Path) -> tuple[list[Any], bool]:
    """The values of a file, and whether its last line is torn; a file of nothing has none."""
    if path.is_file() and not path.stat().st_size:
        return [], False
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        return parse_json(text, path), False
    items = []
    # Not `splitlines`, which also splits at marks that may stand inside an answer.
    rows = text.rstrip("\n").split("\n")
    for place, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            items.append(json_value(row, RECORDS))
        except ValueError as error:
            if place == len(rows) and isinstance(error, json.JSONDecodeError):
                return items, True
            raise DataError(
                f"a line of {path.name} is not valid JSON", where=f"{path}:{place}", why=str(error),
                remedy="repair the line, or generate the file again",
            ) from None  # fmt: skip
    return items, False


def _line(item: Any, where: str) -> Line:
    if not isinstance(item, Mapping):
        raise DataError("a line of a result file is no object", where=where, why=f"found {kind(item)}")
    name = _value(item, ID_KEYS, where)
    text = _value(item, TEXT_KEYS, where)
    if not isinstance(text, str | int | float):
        raise DataError("an answer must be text", where=where, why=f"found {kind(text)}")
    return str(name), str(text)


def _value(item: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Any:
    for key in keys:
        if item.get(key) is not None:
            return item[key]
    raise DataError(
        f"a line of a result file has no {keys[0]!r}", where=where, why=f"keys: {sorted(item)[:8]}",
        remedy=f"one of {', '.join(keys)} is read",
    )  # fmt: skip


def _printed(path: Path) -> tuple[float | None, int | None]:
    """Score and number of samples that an evaluation script wrote."""
    if not path.is_file():
        return None, None
    text = read_whole(path, at_most=_MOST_PRINTED).decode("utf-8", "replace")
    score = _ACCURACY.search(text) or _OCR_BENCH.search(text)
    samples = _SAMPLES.search(text)
    return (float(score.group(1)) if score else None, int(samples.group(1)) if samples else None)
