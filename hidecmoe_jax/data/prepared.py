"""Tasks that tensorflow-datasets has prepared: `tfds:NAME/CONFIG[@VERSION]` is such a folder, read without TensorFlow.

A record is stored as the JSON object that a task file would hold, pictures as paths. What a data set was made of stands
in its metadata: `task.json`, the folder of the pictures, the digests of the files and of the records. A task has the
same fingerprint as a folder and as a data set, and a data set whose records differ from its metadata is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.data.jsonfile import read_json

SCHEME = "tfds:"
KEY = "hidecmoe"  # of the metadata
ITEM = "item"  # feature that holds the JSON object of a record
_WORD = re.compile(r"(?P<name>\w+)/(?P<config>[\w.-]+?)(@(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_METADATA = "metadata.json"


@dataclass(frozen=True)
class Prepared:
    """A prepared task, as its metadata describes it.

    Attributes:
      about: content of `task.json`, always with a name.
      pictures: folder that paths of pictures are relative to.
      inner: where these lie in a task folder of the same data: `images`, or an empty text.
      files: name of the file of every split.
      digests: SHA-256 of these files.
      contents: SHA-256 over the records of every split (`digest_of`).
    """

    folder: Path
    about: Mapping[str, str]
    pictures: str
    inner: str
    files: Mapping[str, str]
    digests: Mapping[str, str]
    contents: Mapping[str, str]

    def items(self, split: str) -> list[Any]:
        """The JSON objects of a split.

        Raises:
          DataError: the data set is damaged, or was written by another program.
        """
        # Not at the top: it takes seconds, and most tasks are folders.
        import tensorflow_datasets as tfds

        try:
            source = tfds.builder_from_directory(str(self.folder)).as_data_source(split=split)
            texts = [source[number][ITEM].decode("utf-8") for number in range(len(source))]
        except Exception as error:  # array_record raises errors of its own, of no common class
            raise DataError(
                "a prepared data set cannot be read", where=str(self.folder), why=str(error)[:300],
                remedy="remove its folder and build it again: hidecmoe data build --help",
            ) from None  # fmt: skip
        if digest_of(texts) != self.contents[split]:
            raise DataError(
                "a prepared data set is not what its metadata says", where=f"{self.folder}: {split}",
                why="the records have another digest", remedy="remove its folder and build it again",
            )  # fmt: skip
        return [json.loads(text) for text in texts]

    def metadata(self) -> dict[str, Any]:
        """What is stored of it."""
        values = {name: getattr(self, name) for name in ("pictures", "inner")}
        for name in ("about", "files", "digests", "contents"):
            values[name] = dict(getattr(self, name))
        return values


def digest_of(texts: Iterable[str]) -> str:
    """Returns the SHA-256 over the records of a split, in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def prepared(folder: Path) -> Prepared | None:
    """Returns the prepared task in a folder, None where the folder is something else; reads its metadata alone."""
    path = folder / _METADATA
    if not path.is_file() or not (folder / "dataset_info.json").is_file():
        return None
    metadata = read_json(path)
    values = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    return None if values is None else Prepared(folder=folder, **values)


def place(word: str | Path) -> str:
    """Returns the folder that is meant: that of `tfds:NAME/CONFIG[@VERSION]`, without a version the newest one.

    Anything else is returned as it is. Data sets lie in the folder TFDS_DATA_DIR, by default ~/tensorflow_datasets.

    Raises:
      DataError: there is no such data set.
    """
    text = str(word)
    if not text.startswith(SCHEME):
        return text
    match = _WORD.fullmatch(text.removeprefix(SCHEME))
    if match is None:
        raise DataError(
            "no name of a prepared task", where=text, why="expected tfds:NAME/CONFIG or tfds:NAME/CONFIG@1.0.0",
            remedy="tfds:hidecmoe_ucit/imagenet-r is the first task of UCIT",
        )  # fmt: skip
    folder = data_dir() / match["name"] / match["config"]
    versions = sorted(map(_numbers, _names(folder, _VERSION)))
    version = match["version"] or (".".join(map(str, versions[-1])) if versions else "")
    if not version or not (folder / version).is_dir():
        raise DataError(
            "no such prepared task", where=text, why=f"not in {folder / version}; {_near(match)}",
            remedy="hidecmoe data build makes it; TFDS_DATA_DIR names another folder of data sets",
        )  # fmt: skip
    return str(folder / version)


def data_dir() -> Path:
    """Returns the folder of prepared data sets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """Names in a folder that match; none where there is no folder."""
    if not folder.is_dir():
        return []
    return [entry.name for entry in folder.iterdir() if pattern.fullmatch(entry.name)]


def _near(match: re.Match[str]) -> str:
    """The names that there are, at the first part that is not there."""
    names = re.compile(r"\w[\w.-]*")
    for folder, name in (
        (data_dir(), match["name"]),
        (data_dir() / match["name"], match["config"]),
        (data_dir() / match["name"] / match["config"], match["version"] or ""),
    ):
        there = _names(folder, names)
        if name not in there:
            return nearest(name, there) if there else f"{folder} holds none"
    return "it holds no version"
