"""Chat completions in OpenAI's form: a body to a checked request, and a reply to the answer's object and its stream.

What a client sets and this server has not is refused by the field's name; nothing is left out in silence but the fields
of `_IGNORED`, which change no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.jsonfile import parse_json
from hidecmoe_jax.data.media import IMAGE, has_marker
from hidecmoe_jax.data.records import Turn
from hidecmoe_jax.serve.pictures import picture_bytes
from hidecmoe_jax.serve.refusal import Refusal

AUTO = "auto"
_READ = ("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens")
# Draws do not exist, and the rest is for the client's own books.
_IGNORED = ("user", "seed", "metadata", "store", "safety_identifier", "prompt_cache_key")
# Fields that may be there with the one value that says what is done anyway.
_FIXED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "temperature": (0,), "top_p": (1,), "frequency_penalty": (0,), "presence_penalty": (0,),
    "logprobs": (False,), "stop": ([],), "tools": ([],), "response_format": ({"type": "text"},),
    "logit_bias": ({},), "modalities": (["text"],),
}  # fmt: skip
_MOST_TURNS = 64


@dataclass(frozen=True)
class ChatRequest:
    """A request that is well formed.

    Attributes:
      model: `auto`, or the name of a task.
      turns: questions with a marker for every picture, and answers; the last answer is empty.
      pictures: bytes of picture files, in order.
      max_tokens: longest answer that the client takes; None for whatever the server writes.
      usage: whether a stream ends with the counts of tokens.
    """

    model: str
    turns: tuple[Turn, ...]
    pictures: tuple[bytes, ...]
    max_tokens: int | None = None
    stream: bool = False
    usage: bool = False


def read_request(body: bytes, *, max_pictures: int) -> ChatRequest:
    """Returns the request of a body.

    Args:
      max_pictures: pictures of one request; more are refused before one is decoded.

    Raises:
      Refusal: 400 for what is malformed, 422 for a field that is unknown or not supported.
    """
    fields = body_fields(body)
    _check_fields(fields)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "must be a text: auto, or the name of a task")
    stream = _flag(fields.get("stream"), "stream")
    options = fields.get("stream_options") or {}
    if not isinstance(options, Mapping) or set(options) - {"include_usage", "include_obfuscation"}:
        raise _wrong("stream_options", "must be an object with include_usage alone")
    turns, addresses = _conversation(fields.get("messages"))
    if len(addresses) > max_pictures:
        raise _wrong("messages", f"{len(addresses)} pictures, at most {max_pictures} are read")
    pictures = tuple(picture_bytes(address, where) for where, address in addresses)
    usage = _flag(options.get("include_usage"), "stream_options.include_usage")
    return ChatRequest(model, turns, pictures, _max_tokens(fields), stream, usage)


def body_fields(body: bytes) -> Mapping[str, Any]:
    """Returns the JSON object of a body.

    Raises:
      Refusal: 400 where it is none.
    """
    try:
        fields = parse_json(body.decode("utf-8"), Path("the body"))
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8 text (byte {error.start})", code="not_utf8") from None
    except DataError as error:
        # The text around the place would repeat the body.
        reason = error.what if error.why is None else f"{error.what}: {error.why.splitlines()[0]}"
        raise Refusal(400, reason, code="not_json") from None
    if not isinstance(fields, Mapping):
        raise Refusal(400, "the body must be a JSON object", code="not_json")
    return fields


def _check_fields(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in _READ or name in _IGNORED or value is None:
            continue
        if name not in _FIXED:
            raise Refusal(422, f"{_shown(name)} is not supported", code="unknown_parameter", param=_shown(name))
        is_same = any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
                      for allowed in _FIXED[name])  # fmt: skip
        if not is_same:
            allowed = ", ".join(map(repr, _FIXED[name]))
            why = f"{name} may only be {allowed}: answers are greedy text, one a request"
            raise Refusal(422, why, code="unsupported_value", param=name)


def _shown(name: str) -> str:
    """A client's name of a field, short and without characters that no encoding has."""
    return name[:60].encode("ascii", "backslashreplace").decode()


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    """The longest answer that the client wants."""
    values = {}
    for name in ("max_tokens", "max_completion_tokens"):
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _wrong(name, "must be a whole number from 1 on")
        values[name] = value
    return min(values.values()) if values else None


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, "must be true or false")
    return bool(value)


def _wrong(param: str, why: str) -> Refusal:
    return Refusal(400, f"{param}: {why}", code="invalid_value", param=param)


def _conversation(messages: Any) -> tuple[tuple[Turn, ...], list[tuple[str, str]]]:
    """Turns, and the pictures' addresses, each with the place where it stands."""
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "must be a list that ends with a message of the user")
    if len(messages) > 2 * _MOST_TURNS:
        raise _wrong("messages", f"{len(messages)} messages, at most {2 * _MOST_TURNS}")
    questions = []
    answers = []
    addresses = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        expected = "assistant" if number % 2 else "user"
        text, pictures = _message(message, where, expected)
        addresses += pictures
        (answers if number % 2 else questions).append(text)
    if len(answers) == len(questions):
        raise _wrong("messages", "must end with a message of the user")
    turns = [Turn(question, answer) for question, answer in zip(questions, [*answers, ""], strict=True)]
    return tuple(turns), addresses


def _message(message: Any, where: str, expected: str) -> tuple[str, list[tuple[str, str]]]:
    """Text of a message with a marker for every picture, and the pictures' addresses."""
    if not isinstance(message, Mapping):
        raise _wrong(where, "must be an object with role and content")
    role = message.get("role")
    if role in ("system", "developer"):
        raise _wrong(f"{where}.role", "the run has a system text of its own, which it was trained with")
    if role != expected:
        raise _wrong(f"{where}.role", f"must be {expected}: user and assistant take turns, the user begins")
    unread = {key for key, value in message.items() if value is not None} - {"role", "content", "name", "refusal"}
    if unread:
        name = _shown(min(unread))
        raise Refusal(422, f"{where}.{name} is not supported", code="unknown_parameter", param=f"{where}.{name}")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise _wrong(f"{where}.content", "must be a text, or a list of text and image_url parts")
    pieces = [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
    texts = [value for kind, value, _ in pieces if kind == "text"]
    pictures = [(place, value) for kind, value, place in pieces if kind == "image_url"]
    if expected == "assistant" and pictures:
        raise _wrong(f"{where}.content", "pictures belong to messages of the user")
    if not pictures and not "".join(texts).strip():
        raise _wrong(f"{where}.content", "is empty")
    return _joined(pieces, len(pictures)), pictures


def _part(part: Any, where: str) -> tuple[str, str, str]:
    """Kind, value and place of a part."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return kind, _text(part.get("text"), f"{where}.text"), where
    if kind == "image_url":
        holder = part.get("image_url")
        address = holder.get("url") if isinstance(holder, Mapping) else holder
        if not isinstance(address, str):
            raise _wrong(f"{where}.image_url.url", "must be a data URL")
        return kind, address, where
    raise _wrong(f"{where}.type", "must be text or image_url")


def _text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise _wrong(where, "must be a text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _wrong(where, "holds half of a surrogate pair, which is no character") from None
    if has_marker(text):
        raise _wrong(where, f"holds a marker such as {IMAGE}; pictures are parts of type image_url")
    return text


def _joined(pieces: list[tuple[str, str, str]], pictures: int) -> str:
    """One text: pictures before a text that stands alone, else where they stand."""
    texts = [value for kind, value, _ in pieces if kind == "text"]
    if len(texts) < 2:
        return f"{IMAGE}\n" * pictures + "".join(texts)
    return "\n".join(IMAGE if kind == "image_url" else value for kind, value, _ in pieces)
