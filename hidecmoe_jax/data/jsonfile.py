"""Strict reader of hand-written JSON files, with errors that name the line and the correction.

What `core/json_text.py` does not accept, other encodings, archives and malformed text are each a `DataError` here with
file, line and remedy.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError, counted
from hidecmoe_jax.core.json_text import RECORDS, SETTINGS, Bounds, JsonFault, json_value
from hidecmoe_jax.core.regular_files import read_regular

LINES = ".jsonl"  # one JSON value a line
# First bytes of other encodings and archives: the magic bytes, the name, and the remedy.
_OTHER_FORMATS = (
    (b"\x1f\x8b", "gzip-compressed data", "unpack it first: gunzip FILE"),
    (b"PK\x03\x04", "a zip archive", "unpack it first: unzip FILE"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", "save it as UTF-8: iconv -f UTF-32 -t UTF-8 FILE > NEW"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "save it as UTF-8: iconv -f UTF-32 -t UTF-8 FILE > NEW"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
)


def read_json(path: str | Path, bounds: Bounds = SETTINGS) -> Any:
    """Returns the value in a UTF-8 JSON file (a byte-order mark is accepted).

    Args:
      bounds: what the file may be; `RECORDS` for one of any size.

    Raises:
      DataError: missing or not a regular file, another encoding, malformed JSON (line, column, the line and
        a hint), a key twice in one object, NaN or Infinity, an integer of more than 200 digits, or more bytes, values
        or depth than `bounds` allow.
    """
    path = Path(path)
    return parse_json(read_text(path, at_most=bounds.size), path, bounds)


def read_items(path: str | Path) -> Any:
    """Returns the value of a JSON file, or the list of values of a `.jsonl` file, one a line; empty lines are skipped.

    Raises:
      DataError: as `read_json`; the name has the number of the line.
    """
    path = Path(path)
    if path.suffix.lower() != LINES:
        return read_json(path, RECORDS)
    items = []
    # Split at line feeds alone: other separators of Unicode may stand inside a text.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            items.append(parse_json(line, path.with_name(f"{path.name}, line {number}")))
    return items


def json_or_lines(path: Path) -> Path:
    """Returns the path of a JSON file, or that of the `.jsonl` file beside it where there is only this one.

    Raises:
      DataError: both are there.
    """
    lines = path.with_suffix(LINES)
    if path.suffix != ".json" or not lines.is_file():
        return path
    if path.is_file():
        raise DataError(
            f"two files of the same records: {path.name} and {lines.name}", where=str(path.parent),
            why="only one of them would be read", remedy="move one of them elsewhere",
        )  # fmt: skip
    return lines


def read_text(path: Path, *, at_most: int | None = None) -> str:
    """Returns the text of a regular UTF-8 file; other encodings and archives are refused by name.

    Args:
      at_most: bytes that it may have; None for any number.
    """
    if not path.is_file():
        raise DataError(f"cannot read {path.name}", where=str(path), why=_why_no_file(path), remedy=_siblings(path))
    # Bytes first: a decoder's error would not name an archive or another encoding.
    try:
        raw = read_regular(path, at_most=at_most)
    except OSError as error:
        raise DataError(
            f"cannot read {path.name}", where=str(path), why=error.strerror or str(error),
            remedy="look at the file and at its permissions",
        ) from None  # fmt: skip
    for magic, name, remedy in _OTHER_FORMATS:
        if raw.startswith(magic):
            raise DataError(f"{path.name} is not JSON text", where=str(path), why=f"it holds {name}", remedy=remedy)
    if not raw.strip():
        raise DataError(
            f"{path.name} is empty",
            where=str(path),
            why=f"it has {len(raw)} bytes and no JSON value",
            remedy="write a JSON array of records",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} is not UTF-8 text",
            where=f"{path}:{line}",
            why=f"byte 0x{raw[error.start]:02x} at offset {error.start} is no UTF-8 (Latin-1 perhaps)",
            remedy="save it as UTF-8: iconv -f LATIN1 -t UTF-8 FILE > NEW",
        ) from None
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise DataError(
            f"{path.name} is not UTF-8 text",
            where=f"{path}:{line}",
            why="it holds NUL bytes (UTF-16 without a mark perhaps)",
            remedy="save it as UTF-8",
        )
    return text


def _why_no_file(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    return "it is not a regular file" if path.exists() else "it does not exist"


def parse_json(text: str, path: Path, bounds: Bounds = RECORDS) -> Any:
    """Returns the value of JSON text.

    Args:
      path: the file, for errors.

    Raises:
      DataError: as `read_json`, for everything that concerns the text.
    """
    try:
        return json_value(text, bounds)
    except json.JSONDecodeError as error:
        raise _malformed(text, path, error) from None
    except JsonFault as error:
        raise DataError(
            f"{counted(len(error.problems), 'problem')} in the JSON of {path.name}",
            where=str(path),
            why="\n         ".join(error.problems[:20]),
            remedy="correct the file; Python's own reader would accept most of this without a warning",
        ) from None


def _malformed(text: str, path: Path, error: json.JSONDecodeError) -> DataError:
    """The error for text that is no JSON, with the line and a mark under the place."""
    start = text.rfind("\n", 0, error.pos) + 1
    end = text.find("\n", error.pos)
    line = text[start : len(text) if end < 0 else end]
    column = error.pos - start
    # A file of one long line would fill the terminal, so only the surroundings are shown.
    left = max(0, column - 60)
    shown = line[left : left + 100]
    mark = " " * (column - left) + "^"
    why = f"{error.msg}\n         {shown}\n         {mark}"
    return DataError(
        f"{path.name} is not valid JSON",
        where=f"{path}:{error.lineno}:{error.colno}",
        why=why,
        remedy=_hint(text, error),
    )


def _hint(text: str, error: json.JSONDecodeError) -> str:
    """The likely cause of a syntax error, from the text before and after it."""
    before = text[: error.pos].rstrip()
    after = text[error.pos :].lstrip()
    if error.msg == "Extra data":
        if before.endswith("}") and after.startswith("{"):
            return f"this looks like JSON lines; name the file with the ending {LINES}"
        return "remove what stands after the end of the array"
    if before.endswith("...") or after.startswith("..."):
        return "'...' stands for more records in LLaVA's documentation; remove it (and the comma before it)"
    if (before.endswith(",") and after[:1] in "]}") or re.match(r",\s*[\]}]", after):
        return "trailing comma: remove the ',' before the closing bracket"
    if after.startswith("'"):
        return 'JSON wants double quotes: "text"'
    if re.match(r"(None|True|False)\b", after):
        return "JSON spells these null, true, false"
    if not after:
        return "the file ends too early: was it cut off while copying?"
    if before[-1:] in '"}]' or before[-1:].isalnum():
        return "a ',' or ':' may be missing before this place"
    return "correct the file at the place shown"


def _siblings(path: Path) -> str:
    """The remedy for a missing file: what is in its folder."""
    folder = path.parent
    if path.exists():
        return "give the path of a file"
    if not folder.is_dir():
        return f"there is no folder {folder} either; give the path of an existing folder"
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".json", ".jsonl", ".gz"))
    return f"found there: {', '.join(names[:8])}" if names else f"put {path.name} into {folder}"
