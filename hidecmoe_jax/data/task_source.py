"""What a task is read from: a folder of task files, or a data set that was prepared from one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.data.images import file_digest
from hidecmoe_jax.data.jsonfile import json_or_lines, read_json
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.prepared import Prepared, prepared
from hidecmoe_jax.data.records import Contents, Policy, check_items, read_file

ABOUT_KEYS = ("name", "title", "scorer", "description")
NAMES = {"train": "train.json", "val": "val.json", "test": "test.json"}


@dataclass(frozen=True)
class TaskSource(ABC):
    """Records of a task by split.

    Attributes:
      root: folder that paths of pictures are relative to.
      inner: where `root` lies in a task folder of the same data, as `Prepared.inner`.
      files: name of the file of every split that has one.
    """

    root: Path
    inner: str
    files: Mapping[str, str]

    @abstractmethod
    def read(self, split: str, policy: Policy, pictures: Pictures | None = None) -> Contents:
        """The records of a split; arguments and errors as of `records.read_file`."""

    @abstractmethod
    def digest(self, split: str) -> str:
        """SHA-256 of the file of a split."""


@dataclass(frozen=True)
class FolderSource(TaskSource):
    """Task files in a folder."""

    folder: Path

    def read(self, split: str, policy: Policy, pictures: Pictures | None = None) -> Contents:
        path = self.folder / self.files[split]
        return read_file(path, self.root, test=split != "train", policy=policy, pictures=pictures)

    def digest(self, split: str) -> str:
        return file_digest(self.folder / self.files[split])


@dataclass(frozen=True)
class PreparedSource(TaskSource):
    """A data set of tensorflow-datasets."""

    task: Prepared

    def read(self, split: str, policy: Policy, pictures: Pictures | None = None) -> Contents:
        path = self.task.folder / self.files[split]
        items = self.task.items(split)
        return check_items(items, path, self.root, test=split != "train", policy=policy, pictures=pictures)

    def digest(self, split: str) -> str:
        return self.task.digests[split]


def open_source(folder: Path, names: Mapping[str, str | None], images: str | None) -> TaskSource:
    """Returns the source of a task.

    Args:
      folder: an existing folder.
      names: file name of every split; None where the default one is read if it is there.
      images: folder of the pictures, relative to `folder`; None for the usual one.

    Raises:
      ConfigError: file names for a prepared data set, whose splits are fixed.
    """
    data_set = prepared(folder)
    if data_set is None:
        root = folder if images is None else folder / images
        return FolderSource(root, "", _files(folder, names), folder)
    for split, name in names.items():
        if name not in (None, NAMES[split]):
            raise ConfigError(
                "a prepared data set has no files to choose", where=str(folder), why=f"{split}: {name}",
                remedy=f"leave {split} out, or give the folder that it was built from",
            )  # fmt: skip
    root = Path(data_set.pictures) if images is None else folder / images
    if not root.is_dir():
        raise DataError(
            "the pictures of a prepared data set are not there", where=str(root), why="it is no folder",
            remedy="name their new place as `images` of this task in the config's stream.tasks",
        )  # fmt: skip
    return PreparedSource(root, data_set.inner, data_set.files, data_set)


def about_of(folder: Path) -> Mapping[str, str]:
    """Returns what `task.json` says, or the metadata of a prepared data set; nothing where there is neither.

    Raises:
      DataError: unknown keys, or values that are no texts.
    """
    data_set = prepared(folder)
    if data_set is not None:
        return data_set.about
    path = folder / "task.json"
    return _checked(read_json(path), path) if path.is_file() else {}


def _checked(about: Any, path: Path) -> Mapping[str, str]:
    unknown = [key for key in about if key not in ABOUT_KEYS] if isinstance(about, dict) else []
    if unknown:
        raise DataError(
            "unknown key in task.json",
            where=f"{path}: {unknown[0]}",
            why=nearest(unknown[0], ABOUT_KEYS),
            remedy="epochs, rates and limits belong into the config's stream entry",
        )
    is_object_of_texts = isinstance(about, dict) and all(isinstance(value, str) for value in about.values())
    if not is_object_of_texts:
        raise DataError(
            "task.json must be an object of texts",
            where=str(path),
            why=f"found {str(about)[:80]}",
            remedy='write {"name": "digits", "scorer": "exact"}',
        )
    return about


def _files(folder: Path, names: Mapping[str, str | None]) -> dict[str, str]:
    """The file of every split that has one; a file that the user named is listed even where it is missing."""
    files = {}
    for split, name in names.items():
        path = json_or_lines(folder / (name or NAMES[split]))
        is_optional = split != "train" and name in (None, NAMES[split])
        if path.is_file() or not is_optional:
            files[split] = path.name if path.parent == folder else str(path.relative_to(folder))
    return files
