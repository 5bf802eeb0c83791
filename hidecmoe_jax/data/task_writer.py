"""Writer of task folders: LLaVA JSON, `task.json`, and the pictures as hard links.

Everything is written beside the folder first and renamed into place, so that there is all or nothing. A picture is
linked, not copied, where source and folder lie on one file system: it takes no space, and whoever changes the bytes of
one changes the other's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, DataError, ResourceError
from hidecmoe_jax.core.full_disks import disk_full
from hidecmoe_jax.data.items import Record
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.picture_folder import INNER, place_of

OWN_KEYS = ("id", "image", "conversations")  # never among the keys that are not read
_TEST_KEYS = ("text", "answer", "answers")


@dataclass(frozen=True)
class DraftRecord:
    """A record to be written.

    Attributes:
      rest: keys of its source that are not read; they are written as they are. None of `OWN_KEYS`.
    """

    record: Record
    rest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskDraft:
    """A task to be written.

    Attributes:
      splits: records by name of the split; `train` is one of them.
      names: path of every picture as items have it, by its file.
      about: content of `task.json`.
    """

    splits: Mapping[str, Sequence[DraftRecord]]
    names: Mapping[str, str]
    about: Mapping[str, str] = field(default_factory=dict)

    def text(self, split: str) -> str:
        """The file of a split, as it is written."""
        items = [self.item(draft, split) for draft in self.splits[split]]
        return json.dumps(items, ensure_ascii=False, indent=1) + "\n"

    def item(self, draft: DraftRecord, split: str) -> dict[str, Any]:
        """The JSON object of a record; a test item of one question has the short form."""
        record = draft.record
        names = [self.names[image] for image in record.images]
        question = _plain_question(record)
        is_short = split != "train" and question is not None and not set(_TEST_KEYS) & set(draft.rest)
        # Of the two names the reader takes `id`.
        has_question_id = is_short and "question_id" not in draft.rest
        item: dict[str, Any] = {"question_id" if has_question_id else "id": record.id}
        if names:
            item["image"] = names[0] if len(names) == 1 else names
        if is_short:
            item["text"] = question
            item["answer"] = record.turns[-1].answer
            if record.references != (item["answer"],):
                item["answers"] = list(record.references)
        else:
            item["conversations"] = _conversation(record)
        return {**item, **draft.rest}


@dataclass(frozen=True)
class Placed:
    """Number of pictures that were linked, and that were copied because no link was possible."""

    linked: int = 0
    copied: int = 0

    def __add__(self, other: Placed) -> Placed:
        return Placed(self.linked + other.linked, self.copied + other.copied)

    def __str__(self) -> str:
        if not self.copied:
            return f"{self.linked} linked"
        return f"{self.linked} linked, {self.copied} copied, as they lie on another file system"


def _plain_question(record: Record) -> str | None:
    """The question of a record of one turn in the form of test files; None where they cannot hold it."""
    if len(record.turns) != 1:
        return None
    question = record.turns[0].question
    lead = f"{IMAGE}\n" * len(record.images)
    if question.startswith(lead):
        question = question[len(lead) :]
    # Markers in other places stay; the form allows all of them or none.
    return question if question.strip() else None


def _conversation(record: Record) -> list[dict[str, str]]:
    messages = []
    for turn in record.turns:
        messages.append({"from": "human", "value": turn.question})
        messages.append({"from": "gpt", "value": turn.answer})
    return messages


def refuse_existing(folder: Path) -> None:
    """Raises a ConfigError if there is something at the place of a folder that is to be written."""
    if os.path.lexists(folder):
        raise ConfigError(
            "the folder is not overwritten", where=str(folder), why="it exists", remedy="give another folder"
        )


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yields a new folder beside `target` to write into; its `task` becomes `target` where no error leaves the block.

    Raises:
      ConfigError: `target` exists.
      DataError: the system refused a file.
    """
    refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}_", dir=target.parent) as beside:
            yield Path(beside)
            (Path(beside) / "task").rename(target)
    except OSError as error:
        kind = DataError if disk_full(error) is None else ResourceError
        raise kind(
            "the task cannot be written", where=error.filename or str(target), why=error.strerror or str(error),
            remedy="give a folder on a disk with space where you may write",
        ) from None  # fmt: skip


def write_task(draft: TaskDraft, folder: Path) -> Placed:
    """Writes one task folder, which must not exist, and returns what became of its pictures.

    Raises:
      DataError: two pictures would have one place.
    """
    folder.mkdir(parents=True)
    placed = _place_pictures(draft.names, folder)
    for split in draft.splits:
        (folder / f"{split}.json").write_text(draft.text(split), encoding="utf-8")
    if draft.about:
        text = json.dumps(draft.about, ensure_ascii=False, indent=1)
        (folder / "task.json").write_text(text + "\n", encoding="utf-8")
    return placed


def _place_pictures(names: Mapping[str, str], folder: Path) -> Placed:
    linked = 0
    sources: dict[str, str] = {}
    for source, name in names.items():
        place = place_of(name, INNER)
        other = sources.setdefault(place, source)
        if other != source:
            raise DataError(
                "two pictures would have one place", where=place, why=f"{other} and {source}",
                remedy="rename one of them in its folder and in its records",
            )  # fmt: skip
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        linked += _linked(source, target)
    return Placed(linked, len(names) - linked)


def _linked(source: str, target: Path) -> bool:
    """Whether `target` is a link; it is a copy where the file system, or the border of two, allows none."""
    try:
        # A link to a symbolic link would break with it.
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True
