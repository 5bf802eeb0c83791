"""A task of class folders (pictures in one folder for each answer): LLaVA JSON and a copy of the pictures."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, DataError, listed
from hidecmoe_jax.data.images import LIMITS, file_digest, inspect
from hidecmoe_jax.data.media import IMAGE


@dataclass(frozen=True)
class MadeTask:
    """What was written.

    Attributes:
      counts: (training, test) pictures by answer.
      copies: pictures that were left out, because their bytes equal those of an earlier one of the same answer.
    """

    folder: Path
    counts: dict[str, tuple[int, int]]
    copies: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"task written: {self.folder}"]
        for answer, (train, test) in self.counts.items():
            lines.append(f"  {answer}: {train} training, {test} test")
        if self.copies:
            lines.append(f"  left out as copies of another picture: {len(self.copies)}, first {self.copies[0]}")
        return "\n".join(lines)


def task_from_folders(
    source: str | Path, task: str | Path, *, question: str, test: float = 0.2, seed: int = 0
) -> MadeTask:
    """Writes a task folder of `source`, which holds one folder of pictures for each answer.

    The folder's name is the answer. Of every answer the same part of the pictures is kept for testing. Hidden files and
    folders are left alone.

    Args:
      task: folder to write; must not exist.
      question: the question about every picture, without `<image>`.
      test: part of every answer's pictures for test.json, above 0 and below 1.
      seed: decides which pictures these are.

    Raises:
      ConfigError: `test` or the question cannot be used, or `task` exists.
      DataError: fewer than two answers, fewer than two pictures of an answer, a file that is no picture, or one picture
        under two answers; nothing is written.
    """
    source = Path(source)
    task = Path(task)
    _check_request(task, question, test)
    pictures, copies = _distinct(_pictures_of(source))
    train_items = []
    test_items = []
    counts = {}
    sources = {}
    # A generator of its own: the split depends on the seed and the names alone.
    draw = random.Random(seed)
    for number, (answer, paths) in enumerate(pictures.items()):
        tested = set(draw.sample(range(len(paths)), _tested(len(paths), test)))
        counts[answer] = (len(paths) - len(tested), len(tested))
        for position, path in enumerate(paths):
            # Numbers, because names of files and folders may be of any script and length.
            name = f"{number:03d}_{position:05d}"
            image = f"images/{name}{path.suffix.lower()}"
            sources[image] = path
            if position in tested:
                test_items.append({"question_id": name, "image": image, "text": question, "answer": answer})
            else:
                train_items.append(_training_item(name, image, question, answer))
    files = {"train.json": train_items, "test.json": test_items, "task.json": {"scorer": "exact"}}
    _write(task, files, sources)
    return MadeTask(task, counts, tuple(copies))


def _check_request(task: Path, question: str, test: float) -> None:
    """Refuses what cannot be written, before a picture is read."""
    if not 0 < test < 1:
        raise ConfigError("no such part for testing", where="--test", why=f"got {test:g}, allowed 0 < x < 1")
    if not question.strip() or IMAGE in question:
        raise ConfigError(
            "this is no question for every picture", where="--question", why=f"got {question!r}",
            remedy=f"write text without {IMAGE}, which is added",
        )  # fmt: skip
    if os.path.lexists(task):
        raise ConfigError(
            "the task folder is not overwritten", where=str(task), why="it exists", remedy="give another folder"
        )


def _pictures_of(source: Path) -> dict[str, list[Path]]:
    """Picture files by answer, both in order of their names."""
    if not source.is_dir():
        raise DataError("no folder of pictures", where=str(source), why="it is not a folder")
    answers = [path for path in _visible(source) if path.is_dir()]
    if len(answers) < 2:
        raise DataError(
            "a task needs at least two answers", where=str(source), why=f"found {len(answers)} folders in it",
            remedy="put the pictures of every answer into a folder of its own: photos/cat/1.jpg, photos/dog/1.jpg",
        )  # fmt: skip
    problems = []
    for path in _visible(source):
        if not path.is_dir():
            problems.append(f"{path}: lies beside the folders of answers, so it has no answer")
    pictures = {}
    for folder in answers:
        paths = _visible(folder)
        for path in paths:
            try:
                inspect(path, LIMITS)
            except DataError as error:
                problems.append(f"{path}: {error.what}: {error.why}")
        pictures[folder.name] = paths
    _refuse(problems, source)
    return pictures


def _visible(folder: Path) -> list[Path]:
    """Content of a folder by name, without hidden files such as .DS_Store."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _distinct(pictures: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], list[str]]:
    """The pictures without copies, and the copies: a copy in training of a test picture would be a leak."""
    first: dict[str, tuple[str, Path]] = {}
    distinct: dict[str, list[Path]] = {}
    copies = []
    problems = []
    for answer, paths in pictures.items():
        distinct[answer] = []
        for path in paths:
            digest = file_digest(path)
            if digest not in first:
                first[digest] = (answer, path)
                distinct[answer].append(path)
                continue
            other, earlier = first[digest]
            if other == answer:
                copies.append(str(path))
            else:
                problems.append(f"{path}: is {earlier} under another answer")
        if len(distinct[answer]) < 2:
            problems.append(f"{answer}: {len(distinct[answer])} pictures; one to train on and one to test are needed")
    _refuse(problems, None)
    return distinct, copies


def _tested(count: int, part: float) -> int:
    """Number of test pictures among `count`: the part, but at least one and not all."""
    return min(max(1, math.floor(part * count + 0.5)), count - 1)


def _training_item(name: str, image: str, question: str, answer: str) -> dict:
    """An item of train.json."""
    asked = {"from": "human", "value": f"{IMAGE}\n{question}"}
    return {"id": name, "image": image, "conversations": [asked, {"from": "gpt", "value": answer}]}


def _write(task: Path, files: dict[str, object], sources: dict[str, Path]) -> None:
    """Writes everything beside the task folder first and renames it into place, so that there is all or nothing."""
    try:
        task.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{task.name}_", dir=task.parent) as beside:
            made = Path(beside) / "task"
            (made / "images").mkdir(parents=True)
            for image, path in sources.items():
                shutil.copyfile(path, made / image)
            for name, value in files.items():
                text = json.dumps(value, ensure_ascii=False, indent=1)
                (made / name).write_text(text + "\n", encoding="utf-8")
            made.rename(task)
    except OSError as error:
        raise DataError(
            "the task cannot be written", where=error.filename or str(task), why=error.strerror or str(error),
            remedy="give a folder on a disk with space where you may write",
        ) from None  # fmt: skip


def _refuse(problems: Sequence[str], where: Path | None) -> None:
    """Raises a DataError that lists all problems, if there are any."""
    if not problems:
        return
    raise DataError(
        f"{len(problems)} problems with the pictures; nothing was written",
        where=None if where is None else str(where), why=listed(problems),
        remedy="move these files elsewhere, or replace them",
    )  # fmt: skip
