"""Public benchmarks in the trees that they are published in: CoIN, and MCITlib's UCIT, MLLM-DCL and MLLM-ACL.

A task's training and test file lie in a folder of its name, whatever is above it; MLLM-ACL keeps its test files in
`OCR_test` beside `OCR`. Pictures are looked for from that folder upwards, and in `datasets/`, `cl_dataset/` and
`images/` on the way. References that a test file lacks come from the benchmark's own files (`truths`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.data.benchmarks import STREAMS, StreamTask, folded
from hidecmoe_jax.data.imports.drafts import Drafting, Pictures
from hidecmoe_jax.data.imports.importing import Imported, changed_lines
from hidecmoe_jax.data.imports.tables import json_items
from hidecmoe_jax.data.names import folded_name
from hidecmoe_jax.data.task_writer import TaskDraft, refuse_existing, write_task, written_whole
from hidecmoe_jax.data.truths import GQA, SCIENCE, TEXT_VQA, caption_file, captions_of, folders_below, truth_of

# The benchmarks that a format may be.
FORMATS = {"mcitlib": ("ucit", "mllm_dcl", "mllm_acl"), "coin": ("coin",)}
TITLES = {"ucit": "UCIT", "mllm_dcl": "MLLM-DCL", "mllm_acl": "MLLM-ACL", "coin": "CoIN"}
_ORIGINAL = "Instructions_Original"
_PICTURE_FOLDERS = ("", "datasets", "cl_dataset", "images")
_OTHER_TESTS = ("test.json", "test_3000.json", "val.json")
# Rules that a task.json may name; all others compare whole answers while training, and `score --stream` has the
# published rule.
_SCORERS = {"caption6": "caption6", "vqa": "vqa", "choice": "choice", "iou": "iou", "acl_ocr": "contains"}
_ANSWER_KEYS = ("answer", "answers", "answer_bbox")


@dataclass(frozen=True)
class Tree:
    """A benchmark on disk.

    Attributes:
      stream: key of `benchmarks.STREAMS`.
      root: folder that pictures and files of truth lie below.
      images: folder of the pictures, where the user named one.
      folders: (task, folder of its training file) in the published order.
      missing: names of tasks that are not there.
    """

    stream: str
    root: Path
    images: Path | None
    folders: tuple[tuple[StreamTask, Path], ...]
    missing: tuple[str, ...]


def open_tree(kind: str, root: Path, *, images: Path | None = None, instructions: str | None = None) -> Tree:
    """Returns where the tasks of a benchmark lie below `root`.

    Args:
      kind: a key of `FORMATS`, or of `TITLES`.
      instructions: name of one of CoIN's folders of instructions; by default `Instructions_Original`.

    Raises:
      DataError: no folder, or none of its tasks, or tasks of several benchmarks.
      ConfigError: no such folder of instructions.
    """
    if not root.is_dir():
        raise DataError("no such folder of a benchmark", where=str(root), why="it is no folder")
    top = _instructions(root, instructions)
    places = [top, *folders_below(top)]
    trees = []
    for stream in FORMATS.get(kind, (kind,)):
        folders = []
        for task in STREAMS[stream]:
            folder = _folder_of(task, places)
            if folder is not None:
                folders.append((task, folder))
        names = {task.name for task, _ in folders}
        missing = tuple(task.name for task in STREAMS[stream] if task.name not in names)
        if folders:
            trees.append(Tree(stream, root, images, tuple(folders), missing))
    if len(trees) != 1:
        names = [f"{TITLES[tree.stream]} ({len(tree.folders)} tasks)" for tree in trees]
        raise DataError(
            "no benchmark there" if not trees else "several benchmarks there", where=str(top),
            why=f"found {' and '.join(names)}" if trees else "no folder has the name of a task and its train.json",
            remedy="give the folder of one of them, such as Domain_data, Ability_data, or the one of `instructions`",
        )  # fmt: skip
    return trees[0]


def _instructions(root: Path, name: str | None) -> Path:
    """The folder that the tasks' files lie below, where a benchmark has several wordings of them."""
    folders = {}
    for folder in folders_below(root):
        if folder.name.lower().startswith("instructions_"):
            folders.setdefault(folder.name, folder)
    if name is None and len(folders) < 2:
        return root
    name = name or _ORIGINAL
    if name not in folders:
        raise ConfigError("no such instructions", where=f"--instructions {name}", why=nearest(name, folders))
    return folders[name]


def _folder_of(task: StreamTask, places: Iterable[Path]) -> Path | None:
    """The folder of a task's training file: the nearest of its names."""
    matching = []
    for folder in places:
        if folded(folder.name) in task.names and _train_file(task, folder) is not None:
            matching.append(folder)
    return min(matching, key=lambda folder: (len(folder.parts), folder.name), default=None)


def _train_file(task: StreamTask, folder: Path) -> Path | None:
    paths = (folder / task.train, folder / "train.json")
    return next((path for path in paths if path.is_file()), None)


def _test_file(task: StreamTask, folder: Path) -> Path:
    """The test file of a task, in its folder or in that of the same name with `_test`."""
    places = [folder.with_name(f"{folder.name}_test"), folder]
    for name in dict.fromkeys((task.test, *_OTHER_TESTS)):
        for place in places:
            if (place / name).is_file():
                return place / name
    raise DataError(
        f"the test file of {task.name} is missing", where=str(folder), why=f"looked for {task.test}",
        remedy="fetch it, or move this task's folder elsewhere to import the others",
    )  # fmt: skip


def read_official(tree: Tree, task: StreamTask, folder: Path, staging: Path) -> tuple[TaskDraft, dict[str, int]]:
    """Returns a task of a benchmark, and the number of changes by what was changed.

    Raises:
      DataError: a file is missing, or records that cannot be read; all are named.
    """
    train = _train_file(task, folder)
    test = _test_file(task, folder)
    drafting = Drafting(Pictures(tree.images or tree.root, staging))
    items = list(json_items(test))
    splits = {
        "train": drafting.split(_placed(list(json_items(train)), train, tree), "train"),
        "test": drafting.split(_placed(_answered(items, task, test, tree, drafting.changes), test, tree), "test"),
    }
    drafting.refuse(train.parent)
    scorer = _SCORERS.get(task.rule, "exact")
    about = {"name": folded_name(task.name), "title": f"{TITLES[tree.stream]} {task.name}", "scorer": scorer}
    return TaskDraft(splits, drafting.names, about), dict(drafting.changes)


def _placed(items: list[tuple[str, Any]], path: Path, tree: Tree) -> Iterator[tuple[str, Any]]:
    """The items with paths of pictures below the folder that all pictures of the benchmark lie in."""
    home = tree.images or tree.root
    lead = _base_of(items, path, tree).relative_to(home).as_posix()
    for source, item in items:
        names = item.get("image") if isinstance(item, Mapping) else None
        if isinstance(names, str) and names.strip() and lead != ".":
            item = {**item, "image": f"{lead}/{names}"}
        elif isinstance(names, list) and lead != ".":
            item = {**item, "image": [f"{lead}/{name}" if isinstance(name, str) else name for name in names]}
        yield source, item


def _base_of(items: list[tuple[str, Any]], path: Path, tree: Tree) -> Path:
    """The folder that the paths of a file are relative to: the first that holds the first picture."""
    home = tree.images or tree.root
    name = None
    for _, item in items:
        value = item.get("image") if isinstance(item, Mapping) else None
        name = value[0] if isinstance(value, list) and value else value
        if isinstance(name, str) and name:
            break
    if not isinstance(name, str) or not name:
        return home
    above = [folder for folder in path.parents if folder.is_relative_to(tree.root)]
    for folder in above if tree.images is None else [home]:
        for inner in _PICTURE_FOLDERS:
            if (folder / inner / name).is_file():
                return folder / inner
    return home


def _answered(
    items: list[tuple[str, Any]], task: StreamTask, path: Path, tree: Tree, changes: dict[str, int]
) -> list[tuple[str, Any]]:
    """The test items with the references of the benchmark's own files; those without any are left out and counted."""
    references = _references(items, task, path, tree)
    answered = []
    for (source, item), texts in zip(items, references, strict=True):
        if texts:
            item = {**item, "answers": list(texts)}
            changes["reference taken from the benchmark's own file"] += 1
        elif isinstance(item, Mapping) and not any(item.get(key) for key in _ANSWER_KEYS + ("conversations",)):
            changes["test question without any reference left out"] += 1
            continue
        answered.append((source, item))
    if not answered:
        raise DataError(
            f"no test question of {task.name} has a reference", where=str(path), why=f"{len(items)} items without one",
            remedy=f"put {SCIENCE}, {GQA}, {TEXT_VQA} or the COCO file of captions beside it",
        )  # fmt: skip
    return answered


def _references(items: list[tuple[str, Any]], task: StreamTask, path: Path, tree: Tree) -> list[tuple[str, ...]]:
    """References from files of truth, none for items that these lack."""
    names = []
    for _, item in items:
        is_object = isinstance(item, Mapping)
        name = str(item.get("question_id", item.get("id"))) if is_object else ""
        names.append((name, str(item.get("image") or "") if is_object else ""))
    if task.rule == "caption6":
        captions = caption_file(path.parent)
        return [()] * len(items) if captions is None else captions_of(captions, names)
    _, truth = truth_of(task.rule, path.parent, tree.root)
    return [truth.get(name, ()) for name, _ in names]


@dataclass(frozen=True)
class ImportedBenchmark:
    """What was written of a benchmark: a task folder for each of its tasks.

    Attributes:
      missing: names of tasks that the tree lacks.
    """

    folder: Path
    title: str
    tasks: tuple[Imported, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.title} written: {self.folder}"]
        for task in self.tasks:
            counts = ", ".join(f"{count} {split}" for split, count in task.counts.items())
            lines.append(f"  {task.folder.name}: {counts}; pictures: {task.placed}")
            lines += [f"  {line}" for line in changed_lines(task.changes)]
        if self.missing:
            lines.append(f"not there, so left out: {', '.join(self.missing)}")
        return "\n".join(lines)


def import_benchmark(
    kind: str, source: str | Path, target: str | Path, *, images: Path | None = None, instructions: str | None = None
) -> ImportedBenchmark:
    """Writes a folder with a task folder for every task of a benchmark.

    Args:
      kind: a key of `FORMATS`.
      target: folder to write; must not exist.
      images, instructions: as in `open_tree`.

    Raises:
      ConfigError, DataError: as `open_tree` and `read_official`; nothing is written.
    """
    target = Path(target)
    refuse_existing(target)
    tree = open_tree(kind, Path(source), images=images, instructions=instructions)
    tasks = []
    with written_whole(target) as beside:
        for task, folder in tree.folders:
            draft, changes = read_official(tree, task, folder, beside / "pictures")
            name = draft.about["name"]
            placed = write_task(draft, beside / "task" / name)
            counts = {split: len(records) for split, records in draft.splits.items()}
            tasks.append(Imported(target / name, counts, placed, changes))
    return ImportedBenchmark(target, TITLES[tree.stream], tuple(tasks), tree.missing)
