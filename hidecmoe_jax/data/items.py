"""One item of LLaVA JSON: a `Record`, or a list of what is wrong with it.

Training items are conversations, test items a question with its reference answers; both become the same
type, with `<image>` markers kept where the pictures stand. Paths are resolved and must stay inside the
picture folder, text must be encodable, roles must alternate. What passes here is trusted from here on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import nearest

IMAGE = "<image>"


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


def parse_item(item: Any, source: str, home: Path, *, test: bool) -> tuple[Record | None, list[str]]:
    """A record of one JSON value, or None and every problem found.

    Args:
      source: names the item, as `train.json#12`.
      home: resolved folder that image paths are relative to and must not leave.
      test: the item may have the form of test files.
    """
    if not isinstance(item, Mapping):
        return None, [f"a record is an object, found {kind(item)}"]
    name, problems = _name(item)
    names, unnamed = _image_names(item)
    problems += unnamed
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
    problems += _marker_problems(turns, len(names)) if turns and not unnamed else []
    if problems:
        return None, problems
    return Record(name, tuple(images), turns, source, references), []


def _name(item: Mapping[str, Any]) -> tuple[str, list[str]]:
    value = item.get("id", item.get("question_id"))
    if value is None:
        return "", [f"no 'id' (or 'question_id'); keys: {sorted(item)[:8]}"]
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "", [f"the id must be text or an integer, found {kind(value)}"]
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
        return [], [f"'image' must be a path or a list of paths, found {kind(value)}"]
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
        return (), [f"'conversations' must be a list of turns, found {kind(said)}"]
    problems, texts = [], []
    for place, part in enumerate(said):
        role = ("human", "gpt")[place % 2]
        if (
            not isinstance(part, Mapping)
            or not isinstance(part.get("from"), str)
            or not isinstance(part.get("value"), str)
        ):
            problems.append(f"turn {place} must be {{'from': ..., 'value': text}}, found {kind(part)}")
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
        return (), (), [f"'text' must be the question, found {kind(text)}; {known}"]
    if answers is None and "answer" not in item:
        return (), (), [f"no 'answer' (or list 'answers'); keys: {sorted(map(str, item))[:8]}"]
    if answers is not None and not (isinstance(answers, list) and answers):
        return (), (), [f"'answers' must be a list of texts, found {kind(answers)}"]
    answer = item["answer"] if "answer" in item else answers[0]
    references = tuple(answers) if answers is not None else (answer,)
    problems = _text_problems(text, "'text'")
    for value in (answer, *references):
        if not isinstance(value, str):
            problems.append(f"an answer must be text, found {kind(value)} {value!r}; write it in quotes")
        else:
            problems += _text_problems(value, "the answer") + _answer_problems(value, "the answer")
    problems = list(dict.fromkeys(problems))
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
        return [f"{what} contains a lone surrogate U+{ord(text[error.start]):04X} at {error.start}"]
    return []


def kind(value: Any) -> str:
    """What JSON calls a value, for messages."""
    names = {
        dict: "an object",
        list: "an array",
        str: "text",
        int: "a number",
        float: "a number",
        bool: "true/false",
    }
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
