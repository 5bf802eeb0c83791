"""Questions of test files, in the forms that the public benchmarks have, and the files of truth beside them.

Pictures are not needed. A caption task takes its references from the COCO file beside the test file; TextVQA its ten
answers, GQA and ScienceQA theirs where the test file has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.benchmarks import StreamTask, folded
from hidecmoe_jax.data.items import kind
from hidecmoe_jax.data.jsonfile import read_items
from hidecmoe_jax.data.truths import GQA, SCIENCE, TEXT_VQA, caption_file, captions_of, folders_below, truth_of
from hidecmoe_jax.scoring.questions import Question

TESTS = ("test.json", "test.jsonl", "test_*.json", "val.json", "val.jsonl", "val_*.json")


@dataclass(frozen=True)
class Asked:
    """Questions of one task in the order of its test file.

    Attributes:
      path: the test file.
      notes: where references came from, and questions that have none and are left out.
    """

    path: Path
    questions: tuple[Question, ...]
    notes: tuple[str, ...] = ()


def task_folder(root: Path, task: StreamTask) -> Path:
    """The folder of a task below the folder of a benchmark: one of the task's names, with a test file in it.

    Raises:
      DataError: there is none.
    """
    if not root.is_dir():
        raise DataError("no such folder of a benchmark", where=str(root), why="it is no folder")
    candidates = []
    for folder in folders_below(root):
        if folded(folder.name) in task.names and _tests(folder):
            candidates.append(folder)
    if not candidates:
        raise DataError(
            f"the test file of {task.name} is missing", where=str(root),
            why=f"no folder named {task.name} or alike with one of {', '.join(TESTS)} in it",
            remedy=f"put it into {root / task.name / TESTS[0]}, or name the task folders with --tasks",
        )  # fmt: skip
    # MLLM-ACL keeps its test files in `OCR_test` beside `OCR`.
    return min(candidates, key=lambda folder: (not folder.name.endswith("_test"), len(folder.parts), folder.name))


def _tests(folder: Path) -> list[Path]:
    """Test files of a folder, the likeliest first."""
    files: dict[Path, None] = {}
    for pattern in TESTS:
        files |= dict.fromkeys(path for path in sorted(folder.glob(pattern)) if "coco" not in path.name.lower())
    return list(files)


def read_questions(folder: Path, *, test: str | None = None, root: Path | None = None, rule: str = "exact") -> Asked:
    """Questions of a task folder, or of a test file.

    Args:
      test: name of the test file in the folder; by default the first of `TESTS`.
      root: folder of the benchmark, where the files of truth may lie too.
      rule: name of the task's rule, which decides what file of truth holds.

    Raises:
      DataError: no test file, or an item that cannot be read.
    """
    files = [folder] if folder.is_file() else _tests(folder) if test is None else [folder / test]
    if not files:
        raise DataError(
            "the folder has no test file", where=str(folder), why=f"looked for {', '.join(TESTS)}",
            remedy="give the folder of a task with its test file",
        )  # fmt: skip
    return questions_of(read_items(files[0]), files[0], root=root, rule=rule)


def questions_of(items: Any, path: Path, *, root: Path | None = None, rule: str = "exact") -> Asked:
    """Questions of the JSON value of a test file, as `read_questions`."""
    if not isinstance(items, list) or not items:
        raise DataError("a test file must be an array of items", where=str(path), why=f"found {kind(items)}")
    questions = []
    for place, item in enumerate(items):
        questions.append(_question(item, f"{path.name}#{place}"))
    _refuse_repeated(questions, path)
    notes = []
    if rule == "caption6":
        questions, notes = _with_captions(questions, path.parent)
    else:
        questions, notes = _with_truth(questions, path.parent, root, rule)
    answered = tuple(question for question in questions if question.references)
    if len(answered) < len(questions):
        notes.append(f"{len(questions) - len(answered)} questions have no reference and are left out")
    if not answered:
        raise DataError(
            "no question has a reference answer", where=str(path), why=f"{len(questions)} items without `answer`",
            remedy=f"put {SCIENCE}, {GQA}, {TEXT_VQA} or a COCO file of captions beside it",
        )  # fmt: skip
    return Asked(path, answered, tuple(notes))


def _question(item: Any, where: str) -> Question:
    if not isinstance(item, Mapping):
        raise DataError("a test item must be an object", where=where, why=f"found {kind(item)}")
    name = item.get("question_id", item.get("id"))
    if name is None:
        raise DataError("a test item has no `question_id`", where=where, why=f"keys: {sorted(item)[:8]}")
    image = item.get("image")
    return Question(
        id=str(name),
        references=_references(item),
        text=str(item.get("text") or _turn(item, 0)),
        image=str(image[0] if isinstance(image, list) and image else image or ""),
        category=str(item.get("answer_type", "")),
    )


def _references(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Accepted answers of an item; none where its truth lies in another file."""
    for key in ("answers", "answer", "answer_bbox"):
        value = item.get(key)
        if value is None or value == []:
            continue
        if key == "answer_bbox" and isinstance(value, list):
            return (str(value).replace(" ", ""),)
        return tuple(map(str, value)) if isinstance(value, list) else (str(value),)
    answer = _turn(item, -1)
    return (answer,) if answer else ()


def _turn(item: Mapping[str, Any], place: int) -> str:
    """A message of a conversation, or nothing."""
    messages = item.get("conversations")
    if not isinstance(messages, list) or not messages:
        return ""
    message = messages[place]
    return str(message.get("value", "")) if isinstance(message, Mapping) else ""


def _refuse_repeated(questions: Sequence[Question], path: Path) -> None:
    seen = set()
    for question in questions:
        if question.id in seen:
            raise DataError(
                f"two test items share the id {question.id!r}", where=str(path),
                why="predictions are joined by it", remedy="give every item its own question_id",
            )  # fmt: skip
        seen.add(question.id)


def _with_captions(questions: list[Question], folder: Path) -> tuple[list[Question], list[str]]:
    """The questions with the captions of the COCO file in their folder, if there is one."""
    path = caption_file(folder)
    if path is None:
        return questions, []
    captions = captions_of(path, [(question.id, question.image) for question in questions])
    answered = []
    for question, references in zip(questions, captions, strict=True):
        answered.append(replace(question, references=references))
    return answered, [f"references of {path.name}"]


def _with_truth(
    questions: list[Question], folder: Path, root: Path | None, rule: str
) -> tuple[list[Question], list[str]]:
    """The questions with the answers of a benchmark's own file, in their folder or that of the benchmark."""
    name, truth = truth_of(rule, folder, root)
    answered = []
    for question in questions:
        answered.append(replace(question, references=truth.get(question.id, question.references)))
    return answered, [] if answered == questions else [f"references of {name}"]
