"""Parser of one item of LLaVA JSON: returns a `Record`, or all problems of the item.

Training items are conversations, test items a question with its reference answers; both become a `Record`, which keeps
the `<image>` markers in its questions. Paths are resolved and must be inside the picture folder, text must be
encodable, roles must alternate. Code that receives a `Record` relies on these checks.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hidecmoe_jax.core.errors import nearest
from hidecmoe_jax.data.media import IMAGE, key_problems, marker_problems, turn_key_problems
from hidecmoe_jax.data.picture_folder import PictureFolder


@dataclass(frozen=True)
class Turn:
    """One question, with its `<image>` markers, and its target answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Record:
    """One training or test item.

    Attributes:
      id: unique in its file; predictions are keyed by it.
      images: resolved paths of existing files, in the order of their `<image>` markers.
      turns: at least one; the last one is scored.
      source: file and position, as `train.json#12`.
      references: accepted answers (several for captions); by default the last turn's answer.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    source: str
    references: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.references:
            # The usual way to set a field of a frozen dataclass.
            object.__setattr__(self, "references", (self.turns[-1].answer,))


def parse_item(item: Any, source: str, folder: PictureFolder, *, test: bool) -> tuple[Record | None, list[str]]:
    """Returns the record of one JSON value, or None and all problems of the value.

    Args:
      source: name of the item in messages, as `train.json#12`.
      folder: folder that image paths are relative to and must not leave.
      test: the item may have the form of test files.
    """
    if not isinstance(item, Mapping):
        return None, [f"a record is an object, found {kind(item)}"]
    name, problems = _name(item)
    image_names, image_problems = _image_names(item)
    problems += image_problems + key_problems(item, image_names)
    images = []
    for image_name in image_names:
        path, problem = _locate(image_name, folder)
        images.append(path)
        if problem:
            problems.append(problem)
    references: tuple[str, ...] = ()
    if test and "conversations" not in item:
        turns, references, turn_problems = _test_turns(item, len(image_names))
    else:
        turns, turn_problems = _train_turns(item)
    problems += turn_problems
    # Without readable turns or image names the numbers could not agree, and a second message would confuse.
    if turns and not image_problems:
        problems += _marker_problems(turns, len(image_names))
    if problems:
        return None, problems
    return Record(name, tuple(images), turns, source, references), []


def _name(item: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The item's id as text, and its problems."""
    # LLaVA's training files use `id`, its evaluation files `question_id`.
    value = item.get("id", item.get("question_id"))
    if value is None:
        keys = sorted(item)[:8]
        return "", [f"no 'id' (or 'question_id'); keys: {keys}"]
    # A bool is an int in Python.
    if isinstance(value, bool) or not isinstance(value, str | int):
        shown = f" {value!r}; write it without a fraction, or in quotes" if isinstance(value, float) else ""
        return "", [f"the id must be text or an integer, found {kind(value)}{shown}"]
    name = str(value)
    if not name.strip() or len(name) > 200:
        return "", [f"the id must have 1 to 200 characters, found {len(name)}"]
    return name, _text_problems(name, "the id")


def _image_names(item: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the item's pictures as written, and their problems; null, "" and [] are no picture."""
    value = item.get("image")
    # LLaVA writes one path; several pictures are a list.
    names = value if isinstance(value, list) else [value]
    if all(name is None or (isinstance(name, str) and not name.strip()) for name in names):
        return [], []
    if not all(isinstance(name, str) and name.strip() for name in names):
        return [], [f"'image' must be a path or a list of paths, found {kind(value)}"]
    return names, []


def _locate(name: str, folder: PictureFolder) -> tuple[str, str | None]:
    """The resolved path of a picture and None, or an empty text and the problem."""
    text_problems = _text_problems(name, "the image path")
    if text_problems:
        return "", text_problems[0]
    return folder.locate(name)


_ROLES = ("human", "gpt")


def _train_turns(item: Mapping[str, Any]) -> tuple[tuple[Turn, ...], list[str]]:
    """Turns of a training item, or none and all problems."""
    messages = item.get("conversations")
    if messages is None:
        hint = _misnamed("conversations", item)
        if "text" in item and "answer" in item:
            hint = "it looks like a test item (text, answer)"
        return (), [f"no 'conversations'; {hint}"]
    if not isinstance(messages, list) or not messages:
        return (), [f"'conversations' must be a list of turns, found {kind(messages)}"]
    problems = []
    texts = []
    for number, message in enumerate(messages):
        problems += _message_problems(message, number)
        if _is_message(message):
            texts.append(message["value"])
    if len(messages) % 2:
        problems.append(f"{len(messages)} turns: the last question has no answer")
    if problems:
        return (), problems
    questions = texts[::2]
    answers = texts[1::2]
    return tuple(map(Turn, questions, answers)), []


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping):
        return False
    has_sender = isinstance(message.get("from"), str)
    has_text = isinstance(message.get("value"), str)
    return has_sender and has_text


# Names that other formats have for a key of ours.
_OTHER_NAMES = {
    "text": ("question", "prompt", "query", "instruction", "input"),
    "answer": ("label", "target", "gt", "ground_truth", "reference", "output", "response", "solution"),
    "conversations": ("conversation", "messages", "dialog", "dialogue", "turns"),
}


def _misnamed(key: str, item: Mapping[str, Any]) -> str:
    """What the item has in place of a missing key: which of its keys to rename, and all of them."""
    keys = sorted(map(str, item))
    similar = [name for name in keys if name.lower() in _OTHER_NAMES[key]]
    similar += difflib.get_close_matches(key, keys, n=1)
    rename = f"rename {similar[0]!r} to {key!r}; " if similar else ""
    return f"{rename}keys: {keys[:8]}"


def _message_problems(message: Any, number: int) -> list[str]:
    """Problems of one message of a conversation; questions and answers alternate, a question is first."""
    if not _is_message(message):
        return [f"turn {number} must be {{'from': ..., 'value': text}}, found {kind(message)}"]
    problems = []
    sender = message["from"]
    role = _ROLES[number % 2]
    if sender not in _ROLES:
        problems.append(f"turn {number} is from {sender!r}; {nearest(sender, _ROLES)}")
    elif sender != role:
        problems.append(f"turn {number} is from {sender!r} where {role!r} is expected")
    text = message["value"]
    problems += turn_key_problems(message, number)
    problems += _text_problems(text, f"turn {number}")
    if role == "human":
        problems += marker_problems(text, f"turn {number}")
    if role == "gpt":
        problems += _answer_problems(text, f"the answer in turn {number}")
    return problems


def _test_turns(item: Mapping[str, Any], pictures: int) -> tuple[tuple[Turn, ...], tuple[str, ...], list[str]]:
    """The turn and the references of a test item, or none and all problems."""
    text = item.get("text")
    answers = item.get("answers")
    if not isinstance(text, str):
        found = f"no 'text', the question; {_misnamed('text', item)}"
        if "text" in item:
            found = f"'text' must be the question, found {kind(text)}"
        return (), (), [found]
    if answers is None and "answer" not in item:
        return (), (), [f"no 'answer' (or list 'answers'); {_misnamed('answer', item)}"]
    is_filled_list = isinstance(answers, list) and bool(answers)
    if answers is not None and not is_filled_list:
        return (), (), [f"'answers' must be a list of texts, found {kind(answers)}"]
    answer = item["answer"] if "answer" in item else answers[0]
    references = (answer,) if answers is None else tuple(answers)
    problems = _text_problems(text, "'text'") + marker_problems(text, "'text'")
    for value in (answer, *references):
        if not isinstance(value, str):
            problems.append(f"an answer must be text, found {kind(value)} {value!r}; write it in quotes")
        else:
            problems += _text_problems(value, "the answer")
            problems += _answer_problems(value, "the answer")
    if problems:
        # The answer is usually one of the references, so its problems stand twice.
        return (), references, list(dict.fromkeys(problems))
    # LLaVA's test files write no markers; training files do.
    question = text
    if IMAGE not in text:
        question = f"{IMAGE}\n" * pictures + text
    return (Turn(question, answer),), references, []


def _marker_problems(turns: tuple[Turn, ...], pictures: int) -> list[str]:
    markers = 0
    for turn in turns:
        markers += turn.question.count(IMAGE)
    if markers == pictures:
        return []
    return [f"{markers} {IMAGE} in the questions but {pictures} pictures; each picture needs exactly one"]


def _answer_problems(text: str, what: str) -> list[str]:
    problems = []
    if not text.strip():
        problems.append(f"{what} is empty")
    if IMAGE in text:
        problems.append(f"{what} contains {IMAGE}; only questions may show pictures")
    return problems


def _text_problems(text: str, what: str) -> list[str]:
    if "\x00" in text:
        place = text.index("\x00")
        return [f"{what} contains a NUL character at {place}"]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return [f"{what} contains a lone surrogate U+{code:04X} at {error.start}"]
    return []


def kind(value: Any) -> str:
    """Returns the JSON name of a value's type, for messages."""
    if value is None:
        return "nothing"
    names = {
        dict: "an object",
        list: "an array",
        str: "text",
        int: "a number",
        float: "a number",
        bool: "true/false",
    }
    return names.get(type(value), type(value).__name__)
