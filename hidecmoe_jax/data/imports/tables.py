"""Files of items by split: JSON, JSON lines, CSV and TSV, one file or a folder of files named by their splits."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.paths import near_path
from hidecmoe_jax.data.items import kind
from hidecmoe_jax.data.jsonfile import read_items, read_text

JSON = (".json", ".jsonl")
CSV = (".csv", ".tsv")
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
# Files that lie in a folder of records and are none.
_OTHER = re.compile(r"task|dataset_infos?|dataset_dict|state|features|metadata_schema", re.IGNORECASE)


def files_of(source: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
    """Returns the files of every split below `source`: itself as `train`, or those of a folder by their names.

    Raises:
      DataError: no such path, no file with one of these endings, or one whose split is unclear.
    """
    if source.is_file():
        if source.suffix.lower() not in endings:
            raise DataError(
                "a file of another format", where=str(source), why=f"expected {' or '.join(endings)}",
                remedy="hidecmoe data import --help lists the formats",
            )  # fmt: skip
        return {"train": [source]}
    if not source.is_dir():
        raise DataError("nothing to import", where=str(source), why="it does not exist", remedy=near_path(str(source)))
    paths = []
    for path in sorted(source.iterdir()):
        if path.suffix.lower() in endings and path.is_file() and not _OTHER.fullmatch(path.stem):
            paths.append(path)
    if not paths:
        raise DataError(
            "nothing to import", where=str(source), why=f"no file in it ends in {' or '.join(endings)}",
            remedy="give the file of the records, or the folder that it lies in",
        )  # fmt: skip
    return _by_split(paths, source)


def split_of(name: str) -> str | None:
    """Returns the split that a name begins with (`train-00000-of-00002`, `validation`), or None."""
    word = re.match(r"[a-z]*", name.lower())[0]
    return next((split for split, words in _SPLITS.items() if word in words), None)


def _by_split(paths: Sequence[Path], source: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    unclear = []
    for path in paths:
        split = split_of(path.stem)
        if split is None:
            unclear.append(path.name)
        else:
            files.setdefault(split, []).append(path)
    if not files and len(paths) == 1:
        return {"train": list(paths)}
    if unclear or "train" not in files:
        raise DataError(
            "which file holds which split is unclear", where=str(source),
            why=f"found {', '.join(path.name for path in paths[:8])}",
            remedy="name them train, val and test, or import one file alone",
        )  # fmt: skip
    return files


def json_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (source for messages, item) of a JSON or JSON lines file.

    Raises:
      DataError: as `read_items`, or the value is no array.
    """
    items = read_items(path)
    if not isinstance(items, list) or not items:
        raise DataError(
            f"{path.name} is not an array of records", where=str(path),
            why=f"found {kind(items) if items else 'no record'}",
            remedy=f"write [ {{...}}, {{...}} ], or one record a line into a file that ends in {JSON[1]}",
        )  # fmt: skip
    for position, item in enumerate(items):
        yield f"{path.name}#{position}", item


def csv_items(path: Path) -> Iterator[tuple[str, Mapping[str, str | None]]]:
    """Yields (source for messages, cells by column) of the rows of a table whose first line names the columns.

    Commas, semicolons and tabs separate cells; whichever the first line has most of.

    Raises:
      DataError: no UTF-8 text, no rows, a row with more or fewer cells than columns.
    """
    text = read_text(path)
    head = text.split("\n", 1)[0]
    separator = max(",;\t", key=head.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    is_empty = True
    try:
        for row in rows:
            is_empty = False
            if None in row or None in row.values():
                raise DataError(
                    f"{path.name} has a row of another length", where=f"{path}:{rows.line_num}",
                    why=f"its first line has {len(rows.fieldnames)} columns: {', '.join(rows.fieldnames)[:120]}",
                    remedy='put a cell that holds a separator or a line break in quotes: "a, b"',
                )  # fmt: skip
            yield f"{path.name}, line {rows.line_num}", row
    except csv.Error as error:
        raise DataError(
            f"{path.name} cannot be read as a table", where=f"{path}:{rows.line_num}", why=str(error),
            remedy='write a quote inside a cell twice: "a ""b"" c"',
        ) from None  # fmt: skip
    if is_empty:
        raise DataError(
            f"{path.name} has no rows", where=str(path), why="there is at most the line that names the columns",
            remedy="write a first line image,question,answer and a line for every record",
        )  # fmt: skip
