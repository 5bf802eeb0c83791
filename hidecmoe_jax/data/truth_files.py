"""Files of truth beside a test file, as the public benchmarks have them: do they name the same items?

A scorer that reads answers from such a file leaves out, or shifts, what the two files do not share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.jsonfile import read_json

TEXT_VQA = "TextVQA_0.5.1_val.json"
GQA = "testdev_balanced_questions.json"
SCIENCE = "problems.json"


@dataclass(frozen=True)
class Alignment:
    """A file of truth against the test items of its task.

    Attributes:
      without_truth: number of test items that the file has no answer for.
      without_item: number of answered items of the file that the test does not ask.
      by_place: the file's items are joined by position, because it has neither file names nor the test's ids.
    """

    file: str
    without_truth: int
    without_item: int
    by_place: bool = False

    @property
    def is_aligned(self) -> bool:
        """Whether every test item has its truth."""
        return not self.without_truth

    def __str__(self) -> str:
        place = ", joined by position" if self.by_place else ""
        return (
            f"{self.file}{place}: {self.without_truth} test items have no answer in it, {self.without_item} answers in "
            "it belong to no test item"
        )


def alignments(folder: Path, ids: list[str], pictures: list[str]) -> list[Alignment]:
    """Compares every known file of truth in a folder with test items.

    Args:
      ids: of the test items, in the order of the file.
      pictures: path of the picture of each item, "" for none.

    Raises:
      DataError: a file that is no JSON, or not of the form its name stands for.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            if path.name in _READERS:
                answered = _READERS[path.name](read_json(path))
                found.append(_by_id(path.name, ids, answered))
            elif "coco" in path.name.lower():
                found.append(_captions(path.name, read_json(path), ids, pictures))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                "a file of truth is not of its form", where=str(path), why=f"{type(error).__name__}: {error}",
                remedy="give the file as its benchmark published it, or move it elsewhere",
            ) from error  # fmt: skip
    return found


def _by_id(name: str, ids: list[str], answered: set[str]) -> Alignment:
    asked = set(ids)
    return Alignment(name, len(asked - answered), len(answered - asked))


def _captions(name: str, document: Any, ids: list[str], pictures: list[str]) -> Alignment:
    """A COCO file of captions: joined by file name or id, else by position, as the published scripts do."""
    answered = {str(annotation["image_id"]) for annotation in document["annotations"]}
    by_stem = {}
    for image in document.get("images", []):
        if image.get("file_name"):
            by_stem[Path(image["file_name"]).stem] = str(image["id"])
    keys = []
    by_place = False
    for place, (item, picture) in enumerate(zip(ids, pictures, strict=True), start=1):
        key = by_stem.get(Path(picture).stem, by_stem.get(item))
        by_place |= key is None
        keys.append(str(place) if key is None else key)
    aligned = _by_id(name, keys, answered)
    return Alignment(name, aligned.without_truth, aligned.without_item, by_place)


def _text_vqa(document: Mapping[str, Any]) -> set[str]:
    return {str(item["question_id"]) for item in document["data"]}


def _by_key(document: Mapping[str, Any]) -> set[str]:
    return set(map(str, document.keys()))


_READERS = {TEXT_VQA: _text_vqa, GQA: _by_key, SCIENCE: _by_key}
