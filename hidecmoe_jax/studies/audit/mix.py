"""An instruction mix that a base was trained on (LLaVA JSON) as items, to be compared with a stream's tests.

A mix often comes without its pictures. Then names of files are compared, which says little where both number theirs,
and questions with their answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.json_text import RECORDS
from hidecmoe_jax.data.items import kind
from hidecmoe_jax.data.jsonfile import read_json
from hidecmoe_jax.data.overlap import folded_text
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.studies.audit.items import MIX, TEST, Item, make_item


def read_mix(path: Path, images: Path | None = None, pictures: Pictures | None = None) -> tuple[list[Item], set[str]]:
    """Reads a mix: every question as an item, and the names of all pictures that it mentions.

    Args:
      path: a JSON array of `{id, image?, conversations: [{from, value}]}`.
      images: folder of its pictures, by default that of the file; a picture that is not there has only a name.
      pictures: reads the others, for whoever compares them later.

    Raises:
      DataError: no such file, or no array of conversations.
    """
    records = read_json(path, RECORDS)
    if not isinstance(records, list) or not records:
        raise DataError(
            "an instruction mix must be an array of conversations", where=str(path), why=f"it is {kind(records)}",
            remedy='give LLaVA JSON: [{"id": ..., "image": ..., "conversations": [...]}, ...]',
        )  # fmt: skip
    root = images or path.parent
    items: list[Item] = []
    names: set[str] = set()
    turns: list[list[tuple[str, str]]] = []
    files: list[list[str]] = []
    for number, record in enumerate(records):
        turns.append(_turns(record, f"{path}: item {number}"))
        shown = _pictures(record)
        names |= {Path(picture).name for picture in shown}
        files.append([str(root / picture) for picture in shown if (root / picture).is_file()])
    # Many records may show one picture.
    facts = (pictures or Pictures()).read(chain.from_iterable(files))
    digests = {file: facts[file].digest for file in facts}
    for number, record in enumerate(records):
        name = str(record.get("id", number))
        for question, answer in turns[number]:
            items.append(make_item(path.name, MIX, name, question, answer, files=files[number], digests=digests))
    return items, names


def mix_overlap(stream: Sequence[Item], mix: Sequence[Item], names: set[str]) -> list[dict[str, Any]]:
    """For every task, how many test items have their picture's name, question, or question and answer in the mix."""
    questions = {item.folded for item in mix}
    pairs = {(item.folded, folded_text(item.answer)) for item in mix}
    rows: dict[str, dict[str, Any]] = {}
    for item in stream:
        if item.split != TEST:
            continue
        row = rows.setdefault(item.task, {"task": item.task, "items": 0, "names": 0, "questions": 0, "answered": 0})
        row["items"] += 1
        row["names"] += any(Path(file).name in names for file in item.files)
        row["questions"] += item.folded in questions
        row["answered"] += any((item.folded, folded_text(reference)) in pairs for reference in item.references)
    return list(rows.values())


def _turns(record: Any, where: str) -> list[tuple[str, str]]:
    """Pairs of question and answer."""
    messages = record.get("conversations") if isinstance(record, Mapping) else None
    is_list = isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages)
    if not is_list:
        raise DataError(
            "an item of an instruction mix has no conversation", where=where, why=f"it is {kind(record)}",
            remedy='write "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]',
        )  # fmt: skip
    texts = [str(message.get("value", "")) for message in messages if message.get("from") != "system"]
    return list(zip(texts[::2], texts[1::2], strict=False))


def _pictures(record: Mapping[str, Any]) -> list[str]:
    """Paths of its pictures as written."""
    value = record.get("image")
    values = value if isinstance(value, list) else [value]
    return [name for name in values if isinstance(name, str) and name]
