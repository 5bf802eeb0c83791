"""One item of another format in the keys and roles of LLaVA JSON.

Names that are known to mean the same are read as such and counted: `question` or `prompt` for the question, `assistant`
for `gpt`, `content` for `value`. Of two keys that could both be meant none is taken. Nothing is left out: a key that
has no meaning here stays in the written file as it is, and one that would change what is learned is refused later, by
the check that every record passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hidecmoe_jax.data.media import IMAGE, has_marker

# The first name of each is that of LLaVA JSON.
ALIASES = {
    "id": ("id", "question_id", "questionid", "qid", "sample_id", "uid", "uuid", "idx", "index"),
    "image": (
        "image", "images", "image_path", "image_paths", "image_file", "file_name", "filename", "img", "img_path",
        "picture", "pictures", "photo",
    ),
    "question": ("text", "question", "prompt", "query", "instruction", "problem"),
    "answer": (
        "answer", "answers", "label", "target", "gt", "ground_truth", "gt_answer", "reference", "references", "output",
        "response", "solution", "caption", "captions", "answer_bbox",
    ),
    "conversations": ("conversations", "conversation", "messages", "dialog", "dialogue", "turns"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
}  # fmt: skip
_HUMAN = ("human", "user")
_ASSISTANT = ("gpt", "assistant", "bot", "model", "chatgpt", "bard", "bing")
_SYSTEM = ("system",)
_ROLE_KEYS = ("from", "role", "speaker")
_TEXT_KEYS = ("value", "content", "text")
_CORNERS = 4  # numbers of a box


class Unreadable(Exception):
    """What is wrong with one item, for the list of problems."""


@dataclass
class Spelled:
    """An item in LLaVA's words.

    Attributes:
      pictures: what the source has for every picture: a path, or an object with its bytes.
      messages: (role, text) pairs, roles `human`, `gpt` and `system`.
      answers: accepted answers, where the item has a question and no conversation.
      rest: keys that are not read.
    """

    name: Any = None
    pictures: list[Any] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    rest: dict[str, Any] = field(default_factory=dict)


def spelled(item: Mapping[str, Any], changes: Counter[str], fields: Mapping[str, str], question: str | None) -> Spelled:
    """Returns an item in LLaVA's words.

    Args:
      changes: counts what is changed, by a line for the user.
      fields: key of the source by field (`id`, `image`, `question`, `answer`), where the user said it.
      question: that of every item without one of its own.

    Raises:
      Unreadable: two keys could be meant, a role or a text that is none.
    """
    rest = dict(item)
    taken = {}
    has_conversation = _key_of("conversations", rest, fields) is not None
    for name in ALIASES:
        # Beside a conversation a question or an answer only repeats it.
        if has_conversation and name in ("question", "answer", "history"):
            continue
        key = _key_of(name, rest, fields)
        if key is not None:
            taken[name] = rest.pop(key)
            if key != ALIASES[name][0] and name != "id":
                changes[f"key {key!r} read as the {name}"] += 1
    out = Spelled(name=taken.get("id"), rest=rest, pictures=_pictures(taken.get("image")))
    if has_conversation:
        out.messages = _messages(taken["conversations"], out.pictures, changes)
    else:
        _ask(out, taken, changes, question)
    if taken.get("system"):
        out.messages.insert(0, ("system", _text(taken["system"], "the system text")))
    out.messages = _with_system(out.messages, changes)
    _mark_pictures(out, changes)
    return out


def _key_of(name: str, item: Mapping[str, Any], fields: Mapping[str, str]) -> str | None:
    """The key of an item that holds a field, or None."""
    if name in fields:
        if fields[name] not in item:
            raise Unreadable(f"no key {fields[name]!r}, which --fields names for the {name}; keys: {list(item)[:8]}")
        return fields[name]
    # What the user named for one field is none of another's.
    usable = [key for key in item if key not in fields.values() and not _is_missing(item[key])]
    matching = [key for key in usable if _folded(key) in ALIASES[name]]
    exact = [key for key in matching if key == ALIASES[name][0]]
    if exact or not matching:
        return exact[0] if exact else None
    if len(matching) > 1:
        names = " and ".join(map(repr, matching))
        raise Unreadable(f"{names} could each be the {name}; say which: --fields {name}={matching[0]}")
    return matching[0]


def _lack_of(name: str, rest: Mapping[str, Any]) -> str:
    """Why an item has no field: the key that would hold it is empty, or there is none."""
    empty = [key for key in rest if _folded(key) in ALIASES[name]]
    if empty:
        return f"no {name}: {empty[0]!r} is empty"
    return f"no {name}; keys: {list(rest)[:8]}"


def _folded(key: Any) -> str:
    return str(key).strip().lower().replace(" ", "_").replace("-", "_")


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or value == []


def _pictures(value: Any) -> list[Any]:
    """The pictures of a field; empty texts are none, as tables have them."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if not _is_missing(each)]


def _text(value: Any, what: str) -> str:
    """A value as text; numbers and true/false are written out, anything else is no text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    raise Unreadable(f"{what} must be text, found {str(value)[:60]}")


def _ask(out: Spelled, taken: Mapping[str, Any], changes: Counter[str], question: str | None) -> None:
    """Fills the messages of an item that has a question and an answer."""
    if "question" not in taken and question is None:
        raise Unreadable(f"{_lack_of('question', out.rest)}; --fields question=KEY or --question TEXT gives one")
    asked = _text(taken.get("question", question), "the question")
    if "question" not in taken:
        changes["question of --question"] += 1
    # Alpaca's form: what the instruction is about stands in a key of its own.
    extra = out.rest.pop("input", None) if "question" in taken else None
    if isinstance(extra, str) and extra.strip():
        asked = f"{asked}\n{extra}"
        changes["key 'input' put behind the question"] += 1
    if "answer" not in taken:
        raise Unreadable(f"{_lack_of('answer', out.rest)}; --fields answer=KEY gives one")
    out.answers = _answers(taken["answer"], changes)
    common = _most_frequent(out.answers, changes)
    if _is_filled_list(out.rest.get("answers")):
        # Beside `answer`, all that are accepted.
        out.answers = _answers(out.rest.pop("answers"), changes)
    for pair in taken.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unreadable(f"'history' must be pairs of question and answer, found {str(pair)[:60]}")
        changes["pairs of 'history' read as earlier turns"] += 1
        out.messages += [("human", _text(pair[0], "a question")), ("gpt", _text(pair[1], "an answer"))]
    out.messages += [("human", asked), ("gpt", common)]


def _is_filled_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _most_frequent(answers: list[str], changes: Counter[str]) -> str:
    """The answer to learn where annotators differ; of equally frequent ones the first."""
    if len(set(answers)) > 1:
        changes["several answers: the most frequent is the one that is learned"] += 1
    return Counter(answers).most_common(1)[0][0]


def _answers(value: Any, changes: Counter[str]) -> list[str]:
    values = value if isinstance(value, list) else [value]
    are_numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    if are_numbers and len(values) == _CORNERS:
        changes["list of four numbers written as one answer"] += 1
        return ["[" + ",".join(map(str, values)) + "]"]
    if are_numbers and values:
        changes["number of an answer written as text"] += 1
    answers = []
    for each in values:
        # VQA v2 has an object for every annotator.
        answers.append(_text(each.get("answer") if isinstance(each, Mapping) else each, "an answer"))
    if not answers:
        raise Unreadable("the list of answers is empty")
    return answers


def _messages(value: Any, pictures: list[Any], changes: Counter[str]) -> list[tuple[str, str]]:
    """(role, text) of a conversation; pictures that stand inside messages are appended to `pictures`."""
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        raise Unreadable(f"the conversation must be a list of messages, found {str(value)[:60]}")
    messages = []
    for number, message in enumerate(value):
        what = f"turn {number}"
        if not isinstance(message, Mapping):
            raise Unreadable(f"{what} must be an object, found {str(message)[:60]}")
        role_key = next((key for key in _ROLE_KEYS if key in message), None)
        text_key = next((key for key in _TEXT_KEYS if key in message), None)
        if role_key is None or text_key is None:
            raise Unreadable(f"{what} has no role or no text; keys: {list(message)[:8]}")
        unread = [key for key in message if key not in (role_key, text_key) and not _is_missing(message[key])]
        if unread:
            raise Unreadable(f"{what}: key {unread[0]!r} is not read, and would be lost; remove it")
        role = _role(message[role_key], what, changes)
        text = _content(message[text_key], what, pictures, changes)
        messages.append((role, text))
    return messages


def _role(role: Any, what: str, changes: Counter[str]) -> str:
    for ours, names in (("human", _HUMAN), ("gpt", _ASSISTANT), ("system", _SYSTEM)):
        if str(role).lower() in names:
            if role != ours:
                changes[f"role {role!r} read as {ours!r}"] += 1
            return ours
    known = ", ".join((*_HUMAN, *_ASSISTANT, *_SYSTEM))
    raise Unreadable(f"{what} is from {role!r}; known: {known}")


def _content(value: Any, what: str, pictures: list[Any], changes: Counter[str]) -> str:
    """The text of a message; of a list of parts the texts, with a marker for every picture among them."""
    if not isinstance(value, list):
        return _text(value, what)
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind == "text" or (kind is None and isinstance(part, Mapping) and list(part) == ["text"]):
            texts.append(_text(part.get("text"), what))
        elif kind in ("image", "image_url"):
            texts.append(IMAGE)
            address = part.get("image_url") or part.get("image") or part.get("path") or part.get("url")
            address = address.get("url") if isinstance(address, Mapping) and "url" in address else address
            # Without an address the picture is the record's next one.
            if address is not None:
                pictures.append(address)
                changes["picture inside a message taken out of it"] += 1
        else:
            raise Unreadable(f"{what} holds a part that is no text and no picture: {str(part)[:60]}")
    changes["parts of a message joined"] += 1
    return "\n".join(texts)


def _with_system(messages: list[tuple[str, str]], changes: Counter[str]) -> list[tuple[str, str]]:
    """The conversation with every system text at the head of the question that follows it."""
    out = []
    pending: list[str] = []
    for role, text in messages:
        if role == "system":
            pending.append(text.strip())
            continue
        heads = [head for head in pending if head]
        if heads and role == "human":
            text = _headed("\n".join(heads), text)
            changes["system text put at the head of the question"] += 1
            pending = []
        out.append((role, text))
    if any(pending):
        raise Unreadable("a system text has no question behind it")
    return out


def _headed(head: str, question: str) -> str:
    """A question with a text before it; pictures that lead the question stay first."""
    lead = ""
    rest = question
    while rest.startswith(IMAGE):
        after = rest[len(IMAGE) :]
        rest = after.removeprefix("\n")
        lead += question[len(lead) : len(question) - len(rest)]
    return f"{lead}{head}\n{rest}"


def _mark_pictures(out: Spelled, changes: Counter[str]) -> None:
    """Puts a marker before the first question for every picture, where no question has one."""
    if not out.pictures or not out.messages or out.messages[0][0] != "human":
        return
    if any(has_marker(text) for _, text in out.messages):
        return
    role, text = out.messages[0]
    out.messages[0] = (role, f"{IMAGE}\n" * len(out.pictures) + text)
    changes[f"{IMAGE} put before the first question"] += 1
