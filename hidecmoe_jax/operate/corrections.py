"""What people said about answers, as records: a set of questions for gates and thresholds, or a new task's folder."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, DataError, counted
from hidecmoe_jax.data.items import Record, Turn
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.picture_folder import INNER
from hidecmoe_jax.data.task_writer import DraftRecord, TaskDraft, refuse_existing, write_task, written_whole
from hidecmoe_jax.operate.decision_log import read_log
from hidecmoe_jax.operate.entries import is_answer
from hidecmoe_jax.operate.kept_pictures import find_picture

LEAST = 2  # records of a task: one to learn from, one to test


@dataclass(frozen=True)
class Correction:
    """A reviewed question.

    Attributes:
      id: of the request.
      task: the right one.
      answer: the right answer; None where nobody said it.
    """

    id: str
    task: str
    question: str
    answer: str | None
    pictures: tuple[Path, ...]

    def record(self) -> Record:
        """The question as a record, with a marker for every picture."""
        markers = f"{IMAGE}\n" * len(self.pictures)
        turn = Turn(markers + self.question, self.answer or "")
        return Record(self.id, tuple(map(str, self.pictures)), (turn,), f"the log, request {self.id}")


@dataclass(frozen=True)
class Corrections:
    """Reviewed questions of a log; `left_out` counts those that cannot be used, by the reason."""

    usable: tuple[Correction, ...]
    left_out: Mapping[str, int]


def corrections(log: Path) -> Corrections:
    """The reviewed questions of a log, one for each picture and question, by the last review.

    Raises:
      CheckpointError: the log is broken.
    """
    answers = {}
    reviews = {}
    for line in read_log(log):
        if is_answer(line):
            answers[line["id"]] = line
        elif line["kind"] == "review":
            # Moved to the end: the last review of a question counts.
            reviews.pop(line["of"], None)
            reviews[line["of"]] = line
    usable: dict[Any, Correction] = {}
    left_out: Counter[str] = Counter()
    for of, review in reviews.items():
        answer = answers.get(of)
        reason = _unusable(answer, review)
        pictures = () if reason else tuple(find_picture(log, digest) for digest in answer["pictures"])
        if None in pictures:
            reason = "a picture was not kept (serve --keep-pictures DAYS)"
        if reason:
            left_out[reason] += 1
            continue
        same = (tuple(answer["pictures"]), answer["question"])
        usable[same] = Correction(of, _task(answer, review), answer["question"], _answer(answer, review), pictures)
    return Corrections(tuple(usable.values()), dict(left_out))


def _unusable(answer: Mapping[str, Any] | None, review: Mapping[str, Any]) -> str | None:
    """Why a reviewed question is no record; None where it is one."""
    if answer is None:
        return "of no answer in the log"
    if review["decision"] == "bad_picture":
        return "a bad picture"
    if answer["question"] is None:
        return "the question was not kept (serve --private)"
    return None if _task(answer, review) else "of no task"


def _task(answer: Mapping[str, Any], review: Mapping[str, Any]) -> str | None:
    return review["task"] if review["decision"] in ("other_task", "new_task") else answer["task"]


def _answer(answer: Mapping[str, Any], review: Mapping[str, Any]) -> str | None:
    return answer["answer"] if review["decision"] == "right" else review["answer"]


@dataclass(frozen=True)
class WrittenCorrections:
    """What `write_corrections` wrote: records by split, and what was left out, by the reason."""

    folder: Path
    counts: Mapping[str, int]
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        lines = [f"task written: {self.folder}"]
        lines += [f"  {count:>6}  {split} records" for split, count in self.counts.items()]
        lines += [f"  {count:>6}  left out: {reason}" for reason, count in self.left_out.items()]
        return "\n".join(lines)


def write_corrections(
    log: str | Path, target: str | Path, *, task: str, golden: bool = False, test: float = 0.2, scorer: str = "exact"
) -> WrittenCorrections:
    """Writes the reviewed questions of one task as a task folder.

    Args:
      target: folder to write; must not exist.
      task: the right task of the questions; of a new one the name that reviewers gave it.
      golden: all of them become test.json, for gates and `calibrate --data`; else train.json and test.json of a new
        task.
      test: part of the records for test.json.

    Raises:
      ConfigError: `target` exists, or `test` is no share.
      DataError: too few questions of this task with a right answer.
    """
    target = Path(target)
    refuse_existing(target)
    if not 0 < test < 1:
        raise ConfigError("no such part for testing", where="--test", why=f"got {test:g}, allowed 0 < x < 1")
    reviewed = corrections(Path(log))
    of_task = [correction for correction in reviewed.usable if correction.task == task]
    answered = [correction for correction in of_task if correction.answer]
    left_out = dict(reviewed.left_out)
    if len(answered) < len(of_task):
        left_out[f"{task}, and nobody has typed the right answer"] = len(of_task) - len(answered)
    if len(answered) < (1 if golden else LEAST):
        _refuse(Path(log), task, answered, reviewed, left_out)
    splits = _splits(answered, golden=golden, test=test)
    names = {}
    for correction in answered:
        names |= {str(path): f"{INNER}/{path.name}" for path in correction.pictures}
    about = {"name": task, "scorer": scorer}
    with written_whole(target) as beside:
        write_task(TaskDraft(splits, names, about), beside / "task")
    counts = {split: len(records) for split, records in splits.items()}
    return WrittenCorrections(target, counts, left_out)


def _refuse(
    log: Path, task: str, answered: Sequence[Correction], reviewed: Corrections, left_out: Mapping[str, int]
) -> None:
    """Raises the error of too few questions; names the tasks that have some."""
    others = Counter(correction.task for correction in reviewed.usable)
    have = ", ".join(f"{name} {count}" for name, count in others.most_common()) or "none"
    reasons = "; ".join(f"{count} left out: {reason}" for reason, count in left_out.items())
    raise DataError(
        "too few corrections for a task", where=str(log),
        why=f"{counted(len(answered), 'question')} of {task} with a right answer; reviewed: {have}"
        + (f"; {reasons}" if reasons else ""),
        remedy="review more answers: hidecmoe review LOG, or the page of `hidecmoe serve`",
    )  # fmt: skip


def _splits(answered: Sequence[Correction], *, golden: bool, test: float) -> dict[str, list[DraftRecord]]:
    records = [DraftRecord(correction.record()) for correction in answered]
    if golden:
        return {"test": records}
    # By pictures, so that one picture is not in both parts.
    groups: dict[tuple[Path, ...], list[DraftRecord]] = {}
    for correction, record in zip(answered, records, strict=True):
        groups.setdefault(correction.pictures or (Path(correction.id),), []).append(record)
    order = list(groups.values())
    random.Random(0).shuffle(order)
    count = min(max(1, round(test * len(order))), len(order) - 1)
    return {"train": _flat(order[count:]), "test": _flat(order[:count])}


def _flat(groups: Iterable[Sequence[DraftRecord]]) -> list[DraftRecord]:
    records: list[DraftRecord] = []
    for group in groups:
        records += group
    return records
