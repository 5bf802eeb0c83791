"""Tables of questions as VLMEvalKit has them, and tables of answers as its evaluation reads them.

A table is tab-separated with a line of names: `index`, `question`, pictures as base64 in `image` (one, a list, or the
index of a row that has the same picture) or as paths in `image_path`, options in `A`, `B`, ..., and more that a table
of answers repeats. It has no `image` and one column more, `prediction`.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.data.jsonfile import read_text
from hidecmoe_jax.runs.questions import Question

PREDICTION = "prediction"
_NUMBERED = re.compile(r"<image (\d+)>")
_LONGEST_REFERENCE = 64  # a shorter text in `image` is the index of another row, not a picture
# The lines that LLaVA-1.5 was trained with, in both languages of these benchmarks.
_LETTER_LINE = "Answer with the option's letter from the given choices directly."
_LETTER_LINE_CHINESE = "请直接回答选项字母。"


@dataclass(frozen=True)
class Table:
    """Questions of a table with their rows, which are without pictures; `problems` names every one that is wrong."""

    questions: tuple[Question, ...]
    ids: tuple[str | int, ...]
    rows: tuple[Mapping[str, Any], ...]
    problems: tuple[str, ...]


def read_table(path: Path, pictures: Path, folder: Path) -> Table:
    """Reads a table of questions.

    Args:
      pictures: folder that the pictures of the table are written to.
      folder: what paths of pictures are relative to.

    Raises:
      DataError: the file cannot be read, or lacks a column.
    """
    rows = _rows(path)
    encoded = {row["index"]: row.get("image", "") for row in rows}
    questions = []
    problems = []
    for number, row in enumerate(rows, start=1):
        source = f"{path.name}, row {number}"
        name = f"picture_{number}"
        try:
            images = _pictures(row, encoded, pictures / name, folder)
        except ValueError as error:
            problems.append(f"{source}: {error}")
            images = ()
        questions.append(Question(prompt_of(row), images, "", source))
    ids = tuple(int(row["index"]) if row["index"].isdecimal() else row["index"] for row in rows)
    without_pictures = []
    for row in rows:
        without_pictures.append({key: value for key, value in row.items() if key != "image"})
    return Table(tuple(questions), ids, tuple(without_pictures), tuple(problems))


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table as texts; an empty cell is an empty text."""
    text = read_text(path)
    # A picture is one cell, and longer than the module allows by default.
    before = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
        columns = reader.fieldnames or []
        for column in ("index", "question"):
            if column not in columns:
                raise DataError(
                    f"the table has no column {column!r}", where=str(path), why=nearest(column, columns),
                    remedy="write tab-separated columns with their names in the first line: index, image, question",
                )  # fmt: skip
        rows = list(reader)
    except csv.Error as error:
        raise DataError("the table cannot be read", where=str(path), why=str(error)) from None
    finally:
        csv.field_size_limit(before)
    wrong = [number for number, row in enumerate(rows, start=1) if None in row or None in row.values()]
    if wrong or not rows:
        why = f"row {wrong[0]} has more or fewer cells than there are columns" if wrong else "it has no row"
        raise DataError("the table cannot be read", where=str(path), why=why)
    return rows


def prompt_of(row: Mapping[str, str]) -> str:
    """The question of a row as LLaVA-1.5 is asked it: hint, question, options with their letters, and the line that
    asks for a letter; a question without options stands alone."""
    parts = [row[column] for column in ("hint", "question") if _has(row, column)]
    options = [f"{letter}. {row[letter]}" for letter in ascii_uppercase if _has(row, letter)]
    text = _marked("\n".join([*parts, *options]))
    if not options:
        return text
    is_chinese = any("一" <= letter <= "鿿" for letter in text)
    return f"{text}\n{_LETTER_LINE_CHINESE if is_chinese else _LETTER_LINE}"


def _marked(text: str) -> str:
    """The text with `<image>` for MMMU's `<image 1>`, `<image 2>`, ..., where these stand in the pictures' order."""
    numbers = [int(number) for number in _NUMBERED.findall(text)]
    in_order = numbers == list(range(1, len(numbers) + 1))
    return _NUMBERED.sub("<image>", text) if in_order else text


def _has(row: Mapping[str, str], column: str) -> bool:
    # Tables that pandas wrote may spell an empty cell.
    return row.get(column, "").strip() not in ("", "nan")


def _pictures(row: Mapping[str, str], encoded: Mapping[str, str], target: Path, folder: Path) -> tuple[str, ...]:
    """Picture files of a row; those that it holds itself are written to `target` with a number.

    Raises:
      ValueError: what the row holds is no picture.
    """
    if not _has(row, "image"):
        paths = _listed(row["image_path"]) if _has(row, "image_path") else []
        return tuple(str(folder / path) for path in paths)
    text = row["image"].strip()
    if len(text) <= _LONGEST_REFERENCE:
        if len(encoded.get(text, "")) <= _LONGEST_REFERENCE:
            raise ValueError(f"'image' is neither a picture nor the index of a row with one: {text!r}")
        text = encoded[text]
    files = []
    for number, picture in enumerate(_listed(text)):
        path = target.with_name(f"{target.name}_{number}")
        try:
            path.write_bytes(base64.b64decode(picture, validate=True))
        except binascii.Error as error:
            raise ValueError(f"'image' is no base64 text: {error}") from None
        files.append(str(path))
    return tuple(files)


def _listed(text: str) -> list[str]:
    """The texts of a cell that holds a list as Python writes it, or the cell's text alone."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [text]
    return [str(value) for value in values]


def table_text(rows: Sequence[Mapping[str, Any]], predictions: Iterable[str]) -> str:
    """A table of answers: the rows with a column `prediction`, every cell in quotes."""
    columns = list(dict.fromkeys(column for row in rows for column in row if column != PREDICTION))
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow([*columns, PREDICTION])
    for row, prediction in zip(rows, predictions, strict=True):
        writer.writerow([*(row.get(column, "") for column in columns), prediction])
    return out.getvalue()
