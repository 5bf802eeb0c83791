"""A task of class folders: pictures in one folder for each answer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, DataError, listed
from hidecmoe_jax.data.images import LIMITS, file_digest, inspect
from hidecmoe_jax.data.items import Record, Turn
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.picture_folder import INNER
from hidecmoe_jax.data.task_writer import DraftRecord, Placed, TaskDraft, refuse_existing, write_task, written_whole


@dataclass(frozen=True)
class MadeTask:
    """What was written.

    Attributes:
      counts: (training, test) pictures by answer.
      placed: what became of the files of the pictures.
      copies: pictures that were left out, because their bytes equal those of an earlier one of the same answer.
    """

    folder: Path
    counts: dict[str, tuple[int, int]]
    copies: tuple[str, ...]
    placed: Placed

    def __str__(self) -> str:
        lines = [f"task written: {self.folder}"]
        for answer, (train, test) in self.counts.items():
            lines.append(f"  {answer}: {train} training, {test} test")
        lines.append(f"  pictures: {self.placed}")
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
    splits: dict[str, list[DraftRecord]] = {"train": [], "test": []}
    counts = {}
    names = {}
    # A generator of its own: the split depends on the seed and the names alone.
    draw = random.Random(seed)
    for number, (answer, paths) in enumerate(pictures.items()):
        tested = set(draw.sample(range(len(paths)), _tested(len(paths), test)))
        counts[answer] = (len(paths) - len(tested), len(tested))
        for position, path in enumerate(paths):
            # Numbers, because names of files and folders may be of any script and length.
            name = f"{number:03d}_{position:05d}"
            names[str(path)] = f"{INNER}/{name}{path.suffix.lower()}"
            turn = Turn(f"{IMAGE}\n{question}", answer)
            record = Record(name, (str(path),), (turn,), str(path))
            splits["test" if position in tested else "train"].append(DraftRecord(record))
    with written_whole(task) as beside:
        placed = write_task(TaskDraft(splits, names, {"scorer": "exact"}), beside / "task")
    return MadeTask(task, counts, tuple(copies), placed)


def _check_request(task: Path, question: str, test: float) -> None:
    """Refuses what cannot be written, before a picture is read."""
    if not 0 < test < 1:
        raise ConfigError("no such part for testing", where="--test", why=f"got {test:g}, allowed 0 < x < 1")
    if not question.strip() or IMAGE in question:
        raise ConfigError(
            "this is no question for every picture", where="--question", why=f"got {question!r}",
            remedy=f"write text without {IMAGE}, which is added",
        )  # fmt: skip
    refuse_existing(task)


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


def _refuse(problems: Sequence[str], where: Path | None) -> None:
    """Raises a DataError that lists all problems, if there are any."""
    if not problems:
        return
    raise DataError(
        f"{len(problems)} problems with the pictures; nothing was written",
        where=None if where is None else str(where), why=listed(problems),
        remedy="move these files elsewhere, or replace them",
    )  # fmt: skip
