"""Files of records: read whole, judged whole.

All problems of a file are collected before it is refused, so a user corrects a file once and not line by
line: what `items` says about each record, ids that occur twice, pictures that do not decode. A `Policy` may
let a stated fraction be skipped, which is then counted and shown, never silent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.data.images import Limits, inspect, load
from hidecmoe_jax.data.items import Record as Record
from hidecmoe_jax.data.items import Turn as Turn
from hidecmoe_jax.data.items import kind, parse_item
from hidecmoe_jax.data.jsonfile import read_json

SHOWN = 20


@dataclass(frozen=True)
class Policy:
    """What to do with bad records.

    Attributes:
      dedupe: "refuse" or "keep-first", for ids that occur more than once.
      max_bad: fraction of a file's records that may be skipped (announced and counted); 0 refuses the first.
      errors: where the full list of problems is appended as JSON lines (`data_errors.jsonl`), or None.
      pictures: "decode" every picture once while reading, or only the "header" (faster; damage shows later).
      limits: what a picture may be.
    """

    dedupe: str = "refuse"
    max_bad: float = 0.0
    errors: str | None = None
    pictures: str = "decode"
    limits: Limits = Limits()

    def __post_init__(self):
        for key, choices in (("dedupe", ("refuse", "keep-first")), ("pictures", ("decode", "header"))):
            value = getattr(self, key)
            if value not in choices:
                raise ConfigError(
                    f"unknown value of {key}",
                    where=key,
                    why=f"got {value!r}",
                    remedy=nearest(str(value), choices),
                )
        if not 0.0 <= self.max_bad < 1.0:
            raise ConfigError(
                "max_bad is a fraction",
                where="max_bad",
                why=f"got {self.max_bad}, allowed 0 <= x < 1",
                remedy="--set stream.policy.max_bad=0.01 skips up to one record in a hundred",
            )


POLICY = Policy()


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one record of `file`."""

    source: str
    id: str | None
    problem: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.source}" + (f" (id {self.id!r})" if self.id is not None else "") + f": {self.problem}"


@dataclass(frozen=True)
class Contents:
    """Records of a file, and what was left out: problems of `skipped` bad records, and repeated ids."""

    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()
    skipped: int = 0
    duplicates: int = 0


class BadRecords(DataError):
    """A refused file, with everything that is wrong with its records in `problems`."""

    def __init__(self, problems: list[Problem], path: Path, errors: str | None):
        self.problems = tuple(problems)
        shown = [str(problem) for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            shown.append(f"... and {len(problems) - SHOWN} more")
        full = "`hidecmoe data check DIR` writes the full list" if errors is None else f"all are listed in {errors}"
        bad = len({problem.source for problem in problems})
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        super().__init__(
            f"{count} in {path.name}",
            where=str(path),
            why="\n         ".join(shown),
            remedy=f"correct {bad} records; {full}; --set stream.policy.max_bad=0.01 skips up to 1 %",
        )


def read_train(path: str | Path, root: str | Path, *, policy: Policy = POLICY) -> tuple[Record, ...]:
    """Records of a LLaVA training file: `[{id, image?, conversations: [{from: human|gpt, value}]}, ...]`.

    Args:
      path: the JSON file.
      root: folder that image paths are relative to and must stay in.

    Raises:
      DataError: the JSON is refused, there is no record, or more records are bad than `policy` allows.
    """
    return read_file(path, root, test=False, policy=policy).records


def read_test(path: str | Path, root: str | Path, *, policy: Policy = POLICY) -> tuple[Record, ...]:
    """Records of a test file: `[{question_id, image?, text, answer, answers?}, ...]`, or of conversations.

    `text` has no `<image>` (then one is put before it for every picture) or exactly one for every picture.

    Raises:
      DataError: as `read_train`.
    """
    return read_file(path, root, test=True, policy=policy).records


def write_problems(problems: Iterable[Problem], path: str | Path) -> None:
    """Appends problems as JSON lines."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps(asdict(problem), ensure_ascii=True) + "\n")


def read_file(path: str | Path, root: str | Path, *, test: bool, policy: Policy = POLICY) -> Contents:
    """As `read_train` and `read_test`, with what was left out."""
    path, parsed, seen, duplicates, home = Path(path), [], {}, 0, Path(root).resolve()
    items = _items(path)
    for position, item in enumerate(items):
        source, name = f"{path.name}#{position}", _id_of(item)
        record, found = parse_item(item, source, home, test=test)
        if name is not None and name in seen:
            if policy.dedupe == "keep-first":
                duplicates += 1
                continue
            remedy = "--set stream.policy.dedupe=keep-first takes the first"
            found.append(f"duplicate id, first in {seen[name]}; predictions are keyed by ids ({remedy})")
        seen.setdefault(name, source)
        parsed.append((source, name, record, found))
    damage = _damage([record for _, _, record, found in parsed if record is not None and not found], policy)
    records, problems, bad = [], [], 0
    for source, name, record, found in parsed:
        found += [damage[image] for image in (record.images if record else ()) if damage.get(image)]
        problems += [Problem(source, name, text, str(path)) for text in found]
        bad += bool(found)
        records += [] if found else [record]
    if problems and policy.errors is not None:
        write_problems(problems, policy.errors)
    if bad > policy.max_bad * len(items) or not records:
        raise BadRecords(problems, path, policy.errors)
    return Contents(tuple(records), tuple(problems), bad, duplicates)


def _items(path: Path) -> list[Any]:
    items = read_json(path)
    if isinstance(items, list) and items:
        return items
    keys = f" with keys {sorted(items)[:6]}" if isinstance(items, dict) else ""
    raise DataError(
        f"{path.name} has no records" if items == [] else f"{path.name} is not an array of records",
        where=str(path),
        why="the array is empty" if items == [] else f"found {kind(items)}{keys}",
        remedy="write [ {...}, {...} ]; one record alone also needs the brackets",
    )


def _damage(records: Iterable[Record], policy: Policy) -> dict[str, str | None]:
    def look(image: str) -> str | None:
        try:
            if policy.pictures == "decode":
                load(image, 8, limits=policy.limits)
            else:
                inspect(image, policy.limits)
        except DataError as error:
            return f"{error.what}: {image}: {error.why}"
        return None

    images = dict.fromkeys(image for record in records for image in record.images)
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(images, pool.map(look, images), strict=True))


def _id_of(item: Any) -> str | None:
    if not isinstance(item, Mapping):
        return None
    value = item.get("id", item.get("question_id"))
    return None if value is None else str(value)[:200]
