"""Reader of files of records: all problems of a file are reported at once.

Problems are those of `items` for every record, ids that occur twice, and pictures that do not decode. They are
collected before the file is refused, so that a user corrects it once. A `Policy` may allow a fraction of bad records;
they are then left out, counted and shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, DataError, listed, nearest
from hidecmoe_jax.data.images import Limits
from hidecmoe_jax.data.items import Record as Record
from hidecmoe_jax.data.items import Turn as Turn
from hidecmoe_jax.data.items import kind, parse_item
from hidecmoe_jax.data.jsonfile import read_items
from hidecmoe_jax.data.picture_folder import PictureFolder
from hidecmoe_jax.data.pictures import Pictures


@dataclass(frozen=True)
class Policy:
    """How bad records are treated.

    Attributes:
      dedupe: "refuse" or "keep-first", for ids that occur more than once.
      max_bad: fraction of a file's records that may be bad and are left out; 0 allows none.
      errors: file that all problems are appended to as JSON lines (`data_errors.jsonl`), or None.
      pictures: "decode" every picture once while reading, or only the "header" (faster; damage shows later).
      limits: limits of a picture.
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
        record = self.source if self.id is None else f"{self.source} (id {self.id!r})"
        return f"{record}: {self.problem}"


@dataclass(frozen=True)
class Contents:
    """Records of a file, and what was left out.

    Attributes:
      problems: those of the bad records.
      skipped: number of bad records.
      duplicates: number of records with a repeated id.
    """

    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()
    skipped: int = 0
    duplicates: int = 0


class BadRecords(DataError):
    """Error of a refused file; `problems` holds all problems of its records."""

    def __init__(self, problems: list[Problem], path: Path, errors: str | None):
        self.problems = tuple(problems)
        full = "`hidecmoe data check DIR` writes the full list" if errors is None else f"all are listed in {errors}"
        bad = len({problem.source for problem in problems})
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        super().__init__(
            f"{count} in {path.name}",
            where=str(path),
            why=listed(problems),
            remedy=f"correct {bad} records; {full}; --set stream.policy.max_bad=0.01 skips up to 1 %",
        )


def read_train(path: str | Path, root: str | Path, *, policy: Policy = POLICY) -> tuple[Record, ...]:
    """Returns the records of a LLaVA training file: `[{id, image?, conversations: [{from: human|gpt, value}]}, ...]`.

    Args:
      path: the JSON file, or a `.jsonl` file with one record a line.
      root: folder that image paths are relative to and must be in; a file that is not there is looked for in its
        `images/`. Without `image`, or with null, "" or [] there, a record is text alone.

    Raises:
      DataError: the JSON is refused, there is no record, or more records are bad than `policy` allows.
    """
    return read_file(path, root, test=False, policy=policy).records


def read_test(path: str | Path, root: str | Path, *, policy: Policy = POLICY) -> tuple[Record, ...]:
    """Returns the records of a test file: `[{question_id, image?, text, answer, answers?}, ...]`, or of conversations.

    `text` contains no `<image>` (then one for every picture is put before it) or exactly one for every picture.

    Raises:
      DataError: as `read_train`.
    """
    return read_file(path, root, test=True, policy=policy).records


def write_problems(problems: Iterable[Problem], path: str | Path) -> None:
    """Appends problems to a file as JSON lines."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps(asdict(problem), ensure_ascii=True) + "\n")


def read_file(
    path: str | Path, root: str | Path, *, test: bool, policy: Policy = POLICY, pictures: Pictures | None = None
) -> Contents:
    """Returns the records of a training or test file, and what was left out.

    Args:
      pictures: reads the pictures; by default as `policy` says.

    Raises:
      DataError: as `read_train`.
    """
    path = Path(path)
    return check_items(_items(path), path, root, test=test, policy=policy, pictures=pictures)


def check_items(
    items: list[Any],
    path: Path,
    root: str | Path,
    *,
    test: bool,
    policy: Policy = POLICY,
    pictures: Pictures | None = None,
) -> Contents:
    """The records of JSON values that were read from `path`, as `read_file`."""
    folder = PictureFolder(Path(root).resolve())
    parsed, duplicates = _parse_all(items, path, folder, test=test, policy=policy)
    # Only pictures of records without other problems are decoded; the rest is refused anyway.
    usable = [item.record for item in parsed if item.record is not None and not item.problems]
    damaged = damage(usable, policy, pictures)
    records = []
    problems = []
    bad = 0
    for item in parsed:
        texts = list(item.problems)
        for image in item.record.images if item.record else ():
            if damaged.get(image):
                texts.append(damaged[image])
        if texts:
            bad += 1
            problems += [Problem(item.source, item.name, text, str(path)) for text in texts]
        else:
            records.append(item.record)
    if problems and policy.errors is not None:
        write_problems(problems, policy.errors)
    # Counted over all items of the file; a file without a good record is refused whatever is allowed.
    if bad > policy.max_bad * len(items) or not records:
        raise BadRecords(problems, path, policy.errors)
    return Contents(tuple(records), tuple(problems), bad, duplicates)


@dataclass(frozen=True)
class _Parsed:
    """One item of a file: its position, its id if it has one, and its record or its problems."""

    source: str
    name: str | None
    record: Record | None
    problems: list[str]


def _parse_all(
    items: list[Any], path: Path, folder: PictureFolder, *, test: bool, policy: Policy
) -> tuple[list[_Parsed], int]:
    """All items parsed, and the number of repeated ids that were left out."""
    parsed: list[_Parsed] = []
    first_source: dict[str | None, str] = {}
    duplicates = 0
    for position, item in enumerate(items):
        source = f"{path.name}#{position}"
        name = _id_of(item)
        record, problems = parse_item(item, source, folder, test=test)
        if name is not None and name in first_source:
            if policy.dedupe == "keep-first":
                duplicates += 1
                continue
            remedy = "--set stream.policy.dedupe=keep-first takes the first"
            problems.append(f"duplicate id, first in {first_source[name]}; predictions are keyed by ids ({remedy})")
        first_source.setdefault(name, source)
        parsed.append(_Parsed(source, name, record, problems))
    return parsed, duplicates


def _items(path: Path) -> list[Any]:
    """The items of a file, which must be a non-empty JSON array."""
    items = read_items(path)
    if isinstance(items, list) and items:
        return items
    what = f"{path.name} is not an array of records"
    why = f"found {kind(items)}"
    if items == []:
        what = f"{path.name} has no records"
        why = "the array is empty"
    elif isinstance(items, dict):
        why += f" with keys {sorted(items)[:6]}"
    remedy = "write [ {...}, {...} ]; one record alone also needs the brackets"
    raise DataError(what, where=str(path), why=why, remedy=remedy)


def pictures_for(policy: Policy) -> Pictures:
    """A reader of pictures that looks at them as a policy says."""
    return Pictures(policy.limits, decode=policy.pictures == "decode")


def damage(records: Iterable[Record], policy: Policy, pictures: Pictures | None = None) -> dict[str, str | None]:
    """Returns every picture of the records with its problem, or None where it can be read."""
    # A dict rather than a set: every picture once, in the order of the file.
    images: dict[str, None] = {}
    for record in records:
        images |= dict.fromkeys(record.images)
    if pictures is None:
        pictures = pictures_for(policy)
    damaged: dict[str, str | None] = {}
    for image, facts in pictures.read(images).items():
        damaged[image] = None
        if facts.problem is not None:
            what, why = facts.problem
            damaged[image] = f"{what}: {image}: {why}"
    return damaged


def _id_of(item: Any) -> str | None:
    """The id as written, valid or not, for messages and to find duplicates."""
    if not isinstance(item, Mapping):
        return None
    value = item.get("id", item.get("question_id"))
    return None if value is None else str(value)[:200]
