"""Reference answers of the public benchmarks that lie in files of their own, by the ids of questions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.json_text import RECORDS
from hidecmoe_jax.data.jsonfile import read_json

OPTIONS = "ABCDE"  # letters of ScienceQA's choices
DEEPEST = 3  # folders below that of a benchmark that are looked into
TEXT_VQA = "TextVQA_0.5.1_val.json"
GQA = "testdev_balanced_questions.json"
SCIENCE = "problems.json"

References = Mapping[str, tuple[str, ...]]


def folders_below(root: Path, depth: int = DEEPEST) -> Iterator[Path]:
    """Yields every folder down to a depth, each before those in it."""
    # Of a folder of a hundred thousand pictures no file is looked at.
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    for name in names:
        folder = root / name
        yield folder
        if depth > 1:
            yield from folders_below(folder, depth - 1)


def truth_of(rule: str, folder: Path, root: Path | None) -> tuple[str, References]:
    """Returns the name of the file that holds a rule's references, and these; none where there is no such file.

    Args:
      folder: folder of the test file; its parent is looked into too.
      root: folder of the benchmark, which is searched last.

    Raises:
      DataError: as `read_truth`.
    """
    if rule not in _FILES:
        return "", {}
    name = _FILES[rule]
    places = [folder, folder.parent]
    if root is not None:
        places += [root, *folders_below(root)]
    path = next((place / name for place in places if (place / name).is_file()), None)
    return name, {} if path is None else read_truth(path)


def read_truth(path: Path) -> References:
    """Returns the references in a file of one of the names in `READERS`.

    Raises:
      DataError: no JSON, or not of the form that its name stands for.
    """
    document = read_json(path, RECORDS)
    with of_its_form(path):
        return READERS[path.name](document)


@contextlib.contextmanager
def of_its_form(path: Path) -> Iterator[None]:
    """Turns the errors of reading a value of another form into a DataError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise DataError(
            "a file of truth is not of its form", where=str(path), why=f"{type(error).__name__}: {error}",
            remedy="give the file as its benchmark published it, or move it elsewhere",
        ) from error  # fmt: skip


def caption_file(folder: Path) -> Path | None:
    """Returns the COCO file of captions in the folder of a test file, or None."""
    files = [path for path in sorted(folder.glob("*.json")) if "coco" in path.name.lower()]
    return files[0] if files else None


def captions_of(path: Path, questions: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Returns the captions of every question, none where the file has none.

    Args:
      questions: (id, path of the picture) in the order of the test file.

    Raises:
      DataError: as `read_truth`.
    """
    document = read_json(path, RECORDS)
    captions: dict[str, list[str]] = {}
    with of_its_form(path):
        for annotation in document["annotations"]:
            captions.setdefault(str(annotation["image_id"]), []).append(str(annotation["caption"]))
        keys = caption_keys(document, questions)
    references = []
    for number, key in enumerate(keys, start=1):
        # The published files number pictures by the place of their question, where they have no file name.
        references.append(tuple(captions.get(str(number) if key is None else key, ())))
    return references


def caption_keys(document: Mapping[str, Any], questions: Iterable[tuple[str, str]]) -> list[str | None]:
    """Returns the number of every question's picture by its file name or id; None where the file has neither."""
    by_stem = {}
    for image in document.get("images", []):
        if image.get("file_name"):
            by_stem[Path(image["file_name"]).stem] = str(image["id"])
    return [by_stem.get(Path(picture).stem, by_stem.get(name)) for name, picture in questions]


def _text_vqa(document: Any) -> References:
    return {str(item["question_id"]): tuple(item["answers"]) for item in document["data"]}


def _gqa(document: Any) -> References:
    return {str(name): (str(item["answer"]),) for name, item in document.items()}


def _science(document: Any) -> References:
    return {str(name): (OPTIONS[int(item["answer"])],) for name, item in document.items()}


READERS: Mapping[str, Callable[[Any], References]] = {TEXT_VQA: _text_vqa, GQA: _gqa, SCIENCE: _science}
_FILES = {"vqa": TEXT_VQA, "gqa": GQA, "choice": SCIENCE, "choice_prism": SCIENCE}
