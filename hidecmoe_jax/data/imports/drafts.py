"""Records of imported items: checked as those of a task folder are, with all problems collected."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError, listed
from hidecmoe_jax.data.images import inspect
from hidecmoe_jax.data.imports.spelling import Spelled, Unreadable, spelled
from hidecmoe_jax.data.items import Record, kind, parse_item
from hidecmoe_jax.data.picture_folder import PictureFolder
from hidecmoe_jax.data.records import Policy, damage
from hidecmoe_jax.data.task_writer import OWN_KEYS, DraftRecord

_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif"}
_HEADER = Policy(pictures="header")


@dataclass
class Pictures:
    """Pictures of an import: files of one folder, and bytes that become files of another.

    Attributes:
      home: folder that paths are relative to.
      staging: new folder for pictures that stand as bytes in the source.

    Raises:
      DataError: there is no such folder.
    """

    home: Path
    staging: Path
    _staged: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not self.home.is_dir():
            raise DataError("no such folder of pictures", where=str(self.home), why="it is no folder")
        self.home = self.home.resolve()
        self._folder = PictureFolder(self.home)

    def locate(self, name: str) -> tuple[str, str | None]:
        """As `PictureFolder.locate`, but that symbolic links in the folder may lead to other disks."""
        if name in self._staged:
            return self._staged[name], None
        path, problem = self._folder.locate(name)
        place = self.home / name
        # The task folder gets the file itself, so that its own pictures never lead out of it.
        is_below = not Path(name).is_absolute() and ".." not in Path(name).parts
        if problem is not None and is_below and place.is_file():
            return str(place.resolve()), None
        return path, problem

    def name(self, value: Any, changes: Counter[str]) -> str:
        """Returns the path that stands for a picture in items: that of its file, or of a new file of its bytes.

        Raises:
          Unreadable: no path and no bytes of a picture.
        """
        data = _bytes_of(value)
        if data is not None:
            changes["picture written from its bytes"] += 1
            return self._stage(data)
        if isinstance(value, Mapping):
            value = value.get("path")
        if not isinstance(value, str):
            raise Unreadable(f"a picture must be a path or its bytes, found {str(value)[:60]}")
        path = Path(value)
        if path.is_absolute() and path.is_relative_to(self.home):
            changes["absolute path of a picture made relative"] += 1
            return path.relative_to(self.home).as_posix()
        return value

    def written_name(self, name: str) -> str:
        """The path that a picture of a name has in the written items."""
        if name in self._staged:
            return Path(self._staged[name]).name
        return posixpath.normpath(name)

    def _stage(self, data: bytes) -> str:
        """The name of the file that holds these bytes; equal bytes are one file."""
        name = hashlib.sha256(data).hexdigest()[:20]
        if name in self._staged:
            return name
        self.staging.mkdir(parents=True, exist_ok=True)
        path = self.staging / name
        path.write_bytes(data)
        try:
            header = inspect(path)
        except DataError as error:
            raise Unreadable(f"bytes of a picture: {error.what}: {error.why}") from None
        path = path.rename(path.with_suffix(_ENDINGS[header.format]))
        self._staged[name] = str(path)
        return name


def _bytes_of(value: Any) -> bytes | None:
    """The bytes of a picture that stands in its item; None where a path does."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.startswith("data:"):
        _, _, text = value.partition("base64,")
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise Unreadable(f"the data of a picture is not base64: {error}") from None
    return None


@dataclass
class Drafting:
    """Settings of an import, and what it gathers over all files of a task.

    Attributes:
      fields, question: as in `spelling.spelled`.
      changes: number of changes by a line for the user.
      problems: one line each.
      names: path of every picture as items have it, by its file.
    """

    pictures: Pictures
    fields: Mapping[str, str] = field(default_factory=dict)
    question: str | None = None
    changes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def split(self, items: Iterable[tuple[str, Any]], split: str) -> list[DraftRecord]:
        """The records of a split; what is wrong with others is appended to `problems`.

        Args:
          items: (source for messages, JSON object) of every item.
        """
        drafts = []
        first: dict[str, str] = {}
        for position, (source, item) in enumerate(items):
            try:
                draft = self._draft(item, source, split, position, first)
            except Unreadable as problem:
                self.problems.append(f"{source}: {problem}")
                continue
            if draft is not None:
                drafts.append(draft)
        self._check_pictures(drafts)
        return drafts

    def refuse(self, where: Path) -> None:
        """Raises a DataError of all problems, if there are any."""
        if self.problems:
            count = len(self.problems)
            raise DataError(
                f"{count} problems; nothing was written" if count > 1 else "1 problem; nothing was written",
                where=str(where), why=listed(self.problems), remedy="correct these in the source and import it again",
            )  # fmt: skip

    def _draft(self, item: Any, source: str, split: str, position: int, first: dict[str, str]) -> DraftRecord | None:
        if not isinstance(item, Mapping):
            raise Unreadable(f"a record is an object, found {kind(item)}")
        out = spelled(item, self.changes, self.fields, self.question)
        doubled = [key for key in OWN_KEYS if key in out.rest]
        if doubled:
            raise Unreadable(f"key {doubled[0]!r} stands beside the one that --fields names; remove or rename it")
        name = self._name(out, split, position, first)
        first[str(name)] = source
        images = [self.pictures.name(value, self.changes) for value in out.pictures]
        messages = [{"from": role, "value": text} for role, text in out.messages]
        plain = {**out.rest, "id": name, "image": images, "conversations": messages}
        record, problems = parse_item(plain, source, self.pictures, test=False)
        unwritable = _unwritable(out.rest)
        if unwritable is not None:
            problems.append(unwritable)
        self.problems += [f"{source}: {text}" for text in problems]
        if problems:
            return None
        references = tuple(out.answers)
        if references:
            record = replace(record, references=references)
        if split != "train" and len(references) > 1 and len(record.turns) > 1:
            raise Unreadable("a conversation of a test file has one reference, its last answer")
        for path, image in zip(record.images, images, strict=True):
            self.names.setdefault(path, self.pictures.written_name(image))
        return DraftRecord(record, out.rest)

    def _name(self, out: Spelled, split: str, position: int, first: Mapping[str, str]) -> Any:
        """The id of an item: its own, a number where it has none, its own with a number where training repeats it."""
        if out.name is None:
            self.changes["record without an id numbered"] += 1
            return f"{split}_{position:06d}"
        if str(out.name) not in first:
            return out.name
        if split != "train":
            raise Unreadable(f"id {out.name!r} is that of {first[str(out.name)]} too; predictions are keyed by ids")
        self.changes["repeated id of a training record numbered"] += 1
        return f"{out.name}_{position:06d}"

    def _check_pictures(self, drafts: list[DraftRecord]) -> None:
        """Looks at the header of every picture; pixels are decoded by `data check` and by every run."""
        records: list[Record] = [draft.record for draft in drafts]
        damaged = damage(records, _HEADER)
        for record in records:
            for image in record.images:
                if damaged[image]:
                    self.problems.append(f"{record.source}: {damaged[image]}")


def _unwritable(rest: Mapping[str, Any]) -> str | None:
    """What is wrong with the unread keys of an item, if JSON cannot hold one of them."""
    for key, value in rest.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            return f"key {key!r} holds {type(value).__name__}, which JSON cannot hold; drop the column"
    return None
