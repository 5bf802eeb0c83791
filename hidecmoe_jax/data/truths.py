"""Reference answers of the public benchmarks that lie in files of their own, by the ids of questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hidecmoe_jax.data.jsonfile import read_json

OPTIONS = "ABCDE"  # letters of ScienceQA's choices
DEEPEST = 3  # folders below that of a benchmark that are looked into
TEXT_VQA = "TextVQA_0.5.1_val.json"
GQA = "testdev_balanced_questions.json"
SCIENCE = "problems.json"

References = Mapping[str, tuple[str, ...]]


def folders_below(root: Path, depth: int = DEEPEST) -> Iterator[Path]:
    """Yields every folder down to a depth, each before those in it."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        yield folder
        if depth > 1:
            yield from folders_below(folder, depth - 1)


def truth_of(rule: str, folder: Path, root: Path | None) -> tuple[str, References]:
    """Returns the name of the file that holds a rule's references, and these; none where there is no such file.

    Args:
      folder: folder of the test file; its parent is looked into too.
      root: folder of the benchmark, which is searched last.
    """
    if rule not in _TRUTHS:
        return "", {}
    name, read = _TRUTHS[rule]
    places = [folder, folder.parent]
    if root is not None:
        places += [root, *folders_below(root)]
    path = next((place / name for place in places if (place / name).is_file()), None)
    return name, {} if path is None else read(read_json(path))


def caption_file(folder: Path) -> Path | None:
    """Returns the COCO file of captions in the folder of a test file, or None."""
    files = [path for path in sorted(folder.glob("*.json")) if "coco" in path.name.lower()]
    return files[0] if files else None


def captions_of(path: Path, questions: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Returns the captions of every question, none where the file has none.

    Args:
      questions: (id, path of the picture) in the order of the test file.
    """
    document = read_json(path)
    captions: dict[str, list[str]] = {}
    for annotation in document["annotations"]:
        captions.setdefault(str(annotation["image_id"]), []).append(str(annotation["caption"]))
    by_stem = {}
    for image in document.get("images", []):
        if image.get("file_name"):
            by_stem[Path(image["file_name"]).stem] = str(image["id"])
    references = []
    for place, (name, picture) in enumerate(questions, start=1):
        # The published files number pictures by the place of their question, where they have no file name.
        key = by_stem.get(Path(picture).stem, by_stem.get(name, str(place)))
        references.append(tuple(captions.get(key, ())))
    return references


def _text_vqa(document: Any) -> References:
    return {str(item["question_id"]): tuple(item["answers"]) for item in document["data"]}


def _gqa(document: Any) -> References:
    return {str(name): (str(item["answer"]),) for name, item in document.items()}


def _science(document: Any) -> References:
    return {str(name): (OPTIONS[int(item["answer"])],) for name, item in document.items()}


_TRUTHS: Mapping[str, tuple[str, Callable[[Any], References]]] = {
    "vqa": (TEXT_VQA, _text_vqa),
    "gqa": (GQA, _gqa),
    "choice": (SCIENCE, _science),
    "choice_prism": (SCIENCE, _science),
}
