"""Items of a stream as an audit compares them: one for every question, with its pictures by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.overlap import folded_text
from hidecmoe_jax.data.stream import Task

TRAIN = "train"
VAL = "val"
TEST = "test"
MIX = "mix"
SPLITS = (TRAIN, VAL, TEST)


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
      task: name of its task; of an instruction mix the name of its file.
      split: one of `SPLITS`, or `MIX`.
      id: of its record.
      question, answer: texts without `<image>`.
      references: accepted answers.
      files: paths of its pictures.
      pictures: SHA-256 of these files.
      folded: the question without differences of case and punctuation.
    """

    task: str
    split: str
    id: str
    question: str
    answer: str
    references: tuple[str, ...]
    files: tuple[str, ...]
    pictures: tuple[str, ...]
    folded: str

    @property
    def place(self) -> tuple[str, str]:
        """Task and split."""
        return self.task, self.split

    def shown(self) -> dict[str, Any]:
        """The item as JSON."""
        return {
            "task": self.task,
            "split": self.split,
            "id": self.id,
            "question": self.question,
            "answer": self.answer,
            "pictures": list(self.files),
        }


def make_item(
    task: str,
    split: str,
    name: str,
    question: str,
    answer: str,
    *,
    references: Sequence[str] = (),
    files: Sequence[str] = (),
    digests: Mapping[str, str],
) -> Item:
    """Returns an item; `digests` has the SHA-256 of every file."""
    text = question.replace(IMAGE, "").strip()
    pictures = tuple(digests[path] for path in files)
    accepted = tuple(references) or (answer,)
    return Item(task, split, name, text, answer, accepted, tuple(files), pictures, folded_text(text))


def items_of(tasks: Sequence[Task]) -> list[Item]:
    """Every question of a stream, in the order of tasks, splits and files."""
    items = []
    for task in tasks:
        for split in SPLITS:
            for record in getattr(task, split):
                # Of a test conversation the last turn is scored, and only its references count.
                for number, turn in enumerate(record.turns, start=1):
                    references = record.references if number == len(record.turns) else ()
                    item = make_item(
                        task.name, split, record.id, turn.question, turn.answer,
                        references=references, files=record.images, digests=task.digests,
                    )  # fmt: skip
                    items.append(item)
    return items
