"""Files of truth beside a test file, as the public benchmarks have them: do they name the same items?

A scorer that reads answers from such a file leaves out, or shifts, what the two files do not share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hidecmoe_jax.core.json_text import RECORDS
from hidecmoe_jax.data.jsonfile import read_json
from hidecmoe_jax.data.truths import READERS, caption_keys, of_its_form, read_truth


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
    compared = []
    for path in sorted(folder.glob("*.json")):
        if path.name in READERS:
            compared.append(_by_id(path.name, ids, set(read_truth(path))))
        elif "coco" in path.name.lower():
            compared.append(_captions(path, ids, pictures))
    return compared


def _by_id(name: str, ids: list[str], answered: set[str]) -> Alignment:
    asked = set(ids)
    return Alignment(name, len(asked - answered), len(answered - asked))


def _captions(path: Path, ids: list[str], pictures: list[str]) -> Alignment:
    """A COCO file of captions: joined by file name or id, else by position, as the published scripts do."""
    document = read_json(path, RECORDS)
    with of_its_form(path):
        answered = {str(annotation["image_id"]) for annotation in document["annotations"]}
        keys = caption_keys(document, zip(ids, pictures, strict=True))
    numbered = [str(place) if key is None else key for place, key in enumerate(keys, start=1)]
    aligned = _by_id(path.name, numbered, answered)
    return Alignment(path.name, aligned.without_truth, aligned.without_item, None in keys)
