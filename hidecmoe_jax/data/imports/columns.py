"""Items of parquet and Arrow files, as `datasets` and the Hugging Face hub write them.

pyarrow alone is used, and imported only when such a file is read. A column of class numbers becomes their names, which
the file's own schema holds; pictures that stand in the file keep their bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.paths import near_path
from hidecmoe_jax.data.imports.tables import files_of, split_of

PARQUET = ".parquet"
_ARROW = ".arrow"
_SAVED = "dataset_dict.json"  # of `DatasetDict.save_to_disk`
_ROWS = 64  # rows in memory at once; each may hold a picture


def parquet_files(source: Path) -> dict[str, list[Path]]:
    """Returns the parquet files of every split, as `tables.files_of`."""
    return files_of(source, (PARQUET,))


def hub_files(source: Path) -> dict[str, list[Path]]:
    """Returns the files of every split of a folder that `save_to_disk` wrote, or of a data set of the hub.

    Raises:
      DataError: the folder holds neither, or several configurations.
    """
    if not source.is_dir():
        raise DataError("nothing to import", where=str(source), why="it is no folder", remedy=near_path(str(source)))
    saved = {}
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        shards = sorted(folder.glob(f"*{_ARROW}"))
        if shards and (source / _SAVED).is_file():
            saved[_known_split(folder.name, source)] = shards
    if saved:
        return saved
    shards = sorted(source.glob(f"data-*{_ARROW}"))
    if shards:
        return {"train": shards}
    folders = [source, source / "data"]
    folders += sorted(path for path in source.iterdir() if path.is_dir() and path.name != "data")
    holding = [folder for folder in folders if folder.is_dir() and list(folder.glob(f"*{PARQUET}"))]
    if not holding:
        raise DataError(
            "nothing to import", where=str(source), why="no parquet and no Arrow file in it or in a folder of it",
            remedy="give the folder that `save_to_disk` wrote, or a copy of the data set's repository",
        )  # fmt: skip
    if len(holding) > 1:
        names = ", ".join(folder.name for folder in holding)
        raise DataError(
            "which data to import is unclear", where=str(source), why=f"found {names}",
            remedy="give the folder that holds the files of one configuration",
        )  # fmt: skip
    return parquet_files(holding[0])


def _known_split(name: str, source: Path) -> str:
    split = split_of(name)
    if split is None:
        raise DataError(
            "a split of an unknown name", where=str(source / name), why="known: train, val, validation, dev, test",
            remedy="rename its folder, or import the others alone",
        )  # fmt: skip
    return split


def column_items(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (source for messages, row) of a parquet or Arrow file.

    Raises:
      DataError: no such file, or pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            "parquet cannot be read", where=str(path), why="pyarrow is not installed", remedy="pip install pyarrow"
        ) from None
    try:
        schema, batches = _opened(path)
        names = _class_names(schema.metadata or {})
        position = 0
        for batch in batches:
            for row in batch.to_pylist():
                yield f"{path.name}#{position}", _plain(row, names)
                position += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path.name} cannot be read", where=str(path), why=str(error)[:200],
            remedy="fetch the file again; it may be cut off, or a pointer of git-lfs",
        ) from None  # fmt: skip


def _opened(path: Path) -> tuple[Any, Iterable[Any]]:
    """The schema and the batches of rows of a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == PARQUET:
        file = pq.ParquetFile(path)
        return file.schema_arrow, file.iter_batches(batch_size=_ROWS)
    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        return reader.schema, reader
    except pa.ArrowInvalid:
        # The other form of Arrow, with random access.
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes of every column that holds their numbers, from what `datasets` writes into the schema."""
    text = metadata.get(b"huggingface")
    if text is None:
        return {}
    features = json.loads(text).get("info", {}).get("features", {})
    names = {}
    for column, feature in features.items():
        if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
            names[column] = feature["names"]
    return names


def _plain(row: dict[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    """A row with names of classes, and nothing in place of NaN, which tables have for empty cells."""
    plain = {}
    for column, value in row.items():
        if isinstance(value, float) and math.isnan(value):
            value = None
        if column in names and isinstance(value, int) and 0 <= value < len(names[column]):
            value = names[column][value]
        plain[column] = value
    return plain
