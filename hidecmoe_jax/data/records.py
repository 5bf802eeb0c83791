"""Training and test items: LLaVA JSON in, one frozen `Record` type out.

Everything about a record is checked here, once: ids are unique, roles alternate, every `<image>` has a picture and every
picture an `<image>`, paths stay inside the folder they belong to, text can be encoded. All problems of a file are collected
before it is refused, so a user corrects a file once and not line by line. What passes is trusted from here on.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.data.jsonfile import read_json

IMAGE = "<image>"
SHOWN = 20

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """One exchange. `question` keeps its `<image>` markers; `answer` is what the model should say."""

    question: str
    answer: str


@dataclass(frozen=True)
class Record:
    """One training or test item.

    Attributes:
      id: unique in its file; predictions are keyed by it.
      images: resolved paths of existing files, in the order of their `<image>` markers.
      turns: at least one; of several the last is the one that is scored.
      source: file and position, as `train.json#12`.
      references: the answers that count as right (several for captions); by default the last turn's answer.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    source: str
    references: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.references:
            object.__setattr__(self, "references", (self.turns[-1].answer,))


@dataclass(frozen=True)
class Policy:
    """What to do with bad records.

    Attributes:
      dedupe: "refuse" or "keep-first", for ids that occur more than once.
      max_bad: fraction of a file's records that may be skipped (announced and counted); 0 refuses the first.
      errors: where the full list of problems is written as JSON lines (`data_errors.jsonl`), or None.
    """

    dedupe: str = "refuse"
    max_bad: float = 0.0
    errors: str | None = None

    def __post_init__(self):
        if self.dedupe not in ("refuse", "keep-first"):
            raise ConfigError("unknown way to treat duplicate ids", where="dedupe", why=f"got {self.dedupe!r}",
                              remedy=nearest(str(self.dedupe), ("refuse", "keep-first")))
        if not 0.0 <= self.max_bad < 1.0:
            raise ConfigError("max_bad is a fraction", where="max_bad", why=f"got {self.max_bad}, allowed 0 <= x < 1",
                              remedy="--set data.max_bad=0.01 skips up to one record in a hundred")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one record."""

    source: str
    id: str | None
    problem: str

    def __str__(self) -> str:
        return f"{self.source}" + (f" (id {self.id!r})" if self.id is not None else "") + f": {self.problem}"


def read_train(path: str | Path, root: str | Path, *, policy: Policy = Policy()) -> tuple[Record, ...]:
    """Records of a LLaVA training file: `[{id, image?, conversations: [{from: human|gpt, value}, ...]}, ...]`.

    Args:
      path: the JSON file.
      root: folder that image paths are relative to and must stay in.

    Raises:
      DataError: the JSON is refused, there is no record, or more records are bad than `policy` allows.
    """
    return _read(Path(path), Path(root), policy, test=False)


def read_test(path: str | Path, root: str | Path, *, policy: Policy = Policy()) -> tuple[Record, ...]:
    """Records of a test file: `[{question_id, image?, text, answer, answers?}, ...]`; conversations are accepted too.

    `text` has no `<image>` (then one is put before it for every picture) or exactly one for every picture.

    Raises:
      DataError: as `read_train`.
    """
    return _read(Path(path), Path(root), policy, test=True)


def refuse(problems: list[Problem], path: Path, *, errors: str | None) -> DataError:
    """The error for a list of problems: the first 20 in its text, all of them in the file `errors` if it is named."""
    shown = [str(problem) for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        shown.append(f"... and {len(problems) - SHOWN} more")
    if errors is None:
        remedy = "`hidecmoe data check DIR` writes the full list to data_errors.jsonl"
    else:
        write_problems(problems, errors)
        remedy = f"all are listed in {errors}"
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    return DataError(f"{count} in {path.name}", where=str(path), why="\n         ".join(shown), remedy=remedy)


def write_problems(problems: Iterable[Problem], path: str | Path) -> None:
    """Writes problems as JSON lines, replacing the file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for problem in problems:
            line = {"source": problem.source, "id": problem.id, "problem": problem.problem}
            file.write(json.dumps(line, ensure_ascii=True) + "\n")


def _read(path: Path, root: Path, policy: Policy, *, test: bool) -> tuple[Record, ...]:
    items = read_json(path)
    if not isinstance(items, list):
        why = f"found {_kind(items)}" + (f" with keys {sorted(items)[:6]}" if isinstance(items, dict) else "")
        raise DataError(f"{path.name} is not an array of records", where=str(path), why=why,
                        remedy="write [ {...}, {...} ]; one record alone also needs the brackets")
    if not items:
        raise DataError(f"{path.name} has no records", where=str(path), why="the array is empty",
                        remedy="a task needs at least one record")
    records, problems, seen = [], [], {}
    bad, home = 0, root.resolve()
    for position, item in enumerate(items):
        source = f"{path.name}#{position}"
        record, found = _parse(item, source, home, test=test)
        if record is not None and record.id in seen:
            if policy.dedupe == "keep-first":
                _LOG.warning("%s: id %r again, first in %s; kept the first", source, record.id, seen[record.id])
                continue
            found = [f"duplicate id, first in {seen[record.id]}; ids name predictions (--dedupe=keep-first keeps the first)"]
        if found:
            bad += 1
            problems += [Problem(source, _id_of(item), text) for text in found]
        elif record is not None:
            seen[record.id] = source
            records.append(record)
    if bad > policy.max_bad * len(items) or not records:
        raise refuse(problems, path, errors=policy.errors)
    if bad:
        if policy.errors is not None:
            write_problems(problems, policy.errors)
        _LOG.warning("%s: skipped %d of %d records; first: %s", path.name, bad, len(items), problems[0])
    return tuple(records)


def _parse(item: Any, source: str, home: Path, *, test: bool) -> tuple[Record | None, list[str]]:
    if not isinstance(item, Mapping):
        return None, [f"a record is an object, found {_kind(item)}"]
    name, problems = _name(item)
    names, found = _image_names(item)
    problems += found
    images = []
    for image in names:
        path, problem = _locate(image, home)
        images.append(path)
        problems += [problem] if problem else []
    if test and "conversations" not in item:
        turns, references, found = _test_turns(item, len(names))
    else:
        turns, found = _train_turns(item)
        references = ()
    problems += found
    problems += _marker_problems(turns, len(names)) if turns else []
    if problems:
        # The id alone is still worth knowing: a bad record must not hide that its id occurs twice.
        return None, problems
    return Record(name, tuple(images), turns, source, references), []


def _id_of(item: Any) -> str | None:
    if not isinstance(item, Mapping):
        return None
    value = item.get("id", item.get("question_id"))
    return None if value is None else str(value)[:200]


def _name(item: Mapping[str, Any]) -> tuple[str, list[str]]:
    value = item.get("id", item.get("question_id"))
    if value is None:
        return "", [f"no 'id' (or 'question_id'); keys: {sorted(item)[:8]}"]
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "", [f"the id must be text or an integer, found {_kind(value)}"]
    name = str(value)
    if not name.strip() or len(name) > 200:
        return "", [f"the id must have 1 to 200 characters, found {len(name)}"]
    return name, _text_problems(name, "the id")


def _image_names(item: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    value = item.get("image")
    if value is None:
        wrong = [key for key in ("images", "image_path", "img") if key in item]
        return [], [f"key {wrong[0]!r} is not read; did you mean 'image'?"] if wrong else []
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        return [], [f"'image' must be a path or a list of paths, found {_kind(value)}"]
    return names, []


def _locate(name: str, home: Path) -> tuple[str, str | None]:
    if "://" in name or name.startswith("data:"):
        return "", f"image {name[:80]!r} is an address; pictures are read from files only, download it first"
    found = _text_problems(name, "the image path")
    if found:
        return "", found[0]
    if Path(name).is_absolute() or "\\" in name:
        return "", f"image {name!r} must be a path relative to {home}, with forward slashes"
    try:
        path = (home / name).resolve()
        inside = path.is_relative_to(home)
        status = os.stat(path) if inside else None
    except FileNotFoundError:
        return "", f"image {name!r} does not exist under {home}"
    except (OSError, RuntimeError) as error:
        return "", f"image {name!r} cannot be read: {error}"
    if status is None:
        return "", f"image {name!r} leads out of {home} (to {path})"
    if not stat.S_ISREG(status.st_mode):
        return "", f"image {name!r} is not a regular file"
    return str(path), None


def _train_turns(item: Mapping[str, Any]) -> tuple[tuple[Turn, ...], list[str]]:
    said = item.get("conversations")
    if said is None:
        test_item = "text" in item and "answer" in item
        hint = "it looks like a test item (text, answer)" if test_item else nearest("conversations", map(str, item))
        return (), [f"no 'conversations'; {hint}"]
    if not isinstance(said, list) or not said:
        return (), [f"'conversations' must be a list of turns, found {_kind(said)}"]
    problems, texts = [], []
    for place, (part, role) in enumerate(zip(said, ("human", "gpt") * len(said))):
        if not isinstance(part, Mapping) or not isinstance(part.get("from"), str) or not isinstance(part.get("value"), str):
            problems.append(f"turn {place} must be {{'from': ..., 'value': text}}, found {_kind(part)}")
            continue
        if part["from"] not in ("human", "gpt"):
            problems.append(f"turn {place} is from {part['from']!r}; {nearest(part['from'], ('human', 'gpt'))}")
        elif part["from"] != role:
            problems.append(f"turn {place} is from {part['from']!r} where {role!r} should speak")
        problems += _text_problems(part["value"], f"turn {place}")
        if role == "gpt":
            problems += _answer_problems(part["value"], f"the answer in turn {place}")
        texts.append(part["value"])
    if len(said) % 2:
        problems.append(f"{len(said)} turns: the last question has no answer")
    return (() if problems else tuple(map(Turn, texts[::2], texts[1::2]))), problems


def _test_turns(item: Mapping[str, Any], pictures: int) -> tuple[tuple[Turn, ...], tuple[str, ...], list[str]]:
    text, answers = item.get("text"), item.get("answers")
    if not isinstance(text, str):
        known = nearest("text", map(str, item))
        return (), (), [f"'text' must be the question, found {_kind(text)}; {known}"]
    if answers is None and "answer" not in item:
        return (), (), [f"no 'answer' (or list 'answers'); keys: {sorted(map(str, item))[:8]}"]
    if answers is not None and not (isinstance(answers, list) and answers):
        return (), (), [f"'answers' must be a list of texts, found {_kind(answers)}"]
    answer = item["answer"] if "answer" in item else answers[0]
    references = tuple(answers) if answers is not None else (answer,)
    problems = _text_problems(text, "'text'")
    for reference in dict.fromkeys(map(repr, (answer, *references))):
        value = next(one for one in (answer, *references) if repr(one) == reference)
        if not isinstance(value, str):
            problems.append(f"an answer must be text, found {_kind(value)} {value!r}; write it in quotes")
        else:
            problems += _text_problems(value, "the answer") + _answer_problems(value, "the answer")
    question = text if IMAGE in text else f"{IMAGE}\n" * pictures + text
    return (() if problems else (Turn(question, answer),)), references, problems


def _marker_problems(turns: tuple[Turn, ...], pictures: int) -> list[str]:
    markers = sum(turn.question.count(IMAGE) for turn in turns)
    if markers == pictures:
        return []
    return [f"{markers} {IMAGE} in the questions but {pictures} pictures; each picture needs exactly one"]


def _answer_problems(text: str, what: str) -> list[str]:
    problems = [] if text.strip() else [f"{what} is empty"]
    return problems + ([f"{what} contains {IMAGE}; only questions may show pictures"] if IMAGE in text else [])


def _text_problems(text: str, what: str) -> list[str]:
    if "\x00" in text:
        return [f"{what} contains a NUL character at {text.index(chr(0))}"]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return [f"{what} contains a lone surrogate U+{ord(text[error.start]):04X} at {error.start}, which is no text"]
    return []


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", int: "a number", float: "a number", bool: "true/false"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
