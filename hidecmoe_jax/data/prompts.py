"""Prompts: token ids and labels of one record.

A prompt is built from pieces that are tokenised separately, and labels are written together with the pieces, so a
label cannot be shifted against its token. (LLaVA tokenises the text twice and warns about a mismatch.) Every `<image>`
becomes as many image tokens as the vision tower has patches. The loss covers the answers and the end token after each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.strict import YOUNGER
from hidecmoe_jax.data.items import Record
from hidecmoe_jax.data.media import IMAGE, has_marker
from hidecmoe_jax.data.tokenizer import NO_TOKEN, Tokenizer

IGNORED = -100


@dataclass(frozen=True)
class Template:
    """The text around questions and answers.

    One turn is `user question assistant answer END separator`. `system` precedes the first turn; END is the end token.
    Blanks at the end of `assistant` are tokenised with the answer, for two reasons: sub-word vocabularies have tokens
    for " word", and the prompt of a question must be a prefix of the same question with its answer.

    `image_place` is where the pictures of a turn stand. "front" is LLaVA's rule: the marker is moved to the front of
    its question, followed by a newline, and blanks around the question are dropped. Several markers move together;
    where words stand between them, these refer to the places, and the question stays as it is. "as_is" moves nothing.
    """

    system: str = ""
    user: str = "USER: "
    assistant: str = " ASSISTANT: "
    separator: str = ""
    image_place: Literal["front", "as_is"] = field(default="front", metadata=YOUNGER)

    def __post_init__(self):
        for name in ("system", "user", "assistant", "separator"):
            text = getattr(self, name)
            # It would count as one more picture of every record.
            if has_marker(text):
                raise ValueError(
                    f"{name} {text!r} holds a marker of a picture; {IMAGE} is part of the question, which this text is "
                    "written around: leave it out here"
                )


VICUNA = Template(
    system="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
SHORT = Template()
PLAIN = Template(user="", assistant="\n")
TEMPLATES = {"vicuna": VICUNA, "short": SHORT, "plain": PLAIN}


@dataclass(frozen=True)
class Encoded:
    """A record as token ids.

    Attributes:
      tokens: int32 [T], image tokens expanded.
      labels: int32 [T], the token itself where the loss counts, -100 elsewhere; not shifted.
      images: picture files in the order of their tokens.
      text: the routing text of the record (`routing_text`).
      id: id of the record.
    """

    tokens: np.ndarray
    labels: np.ndarray
    images: tuple[str, ...]
    text: str
    id: str = ""

    @property
    def answer_count(self) -> int:
        """Number of tokens that the loss covers."""
        return int((self.labels != IGNORED).sum())


def encode(record: Record, tokenizer: Tokenizer, template: Template, *, patches: int, max_length: int) -> Encoded:
    """Returns a training sample: all turns, with loss on every answer and its end token.

    Args:
      patches: image tokens per picture.
      max_length: longest allowed sequence; a longer record is refused, never cut.

    Raises:
      DataError: too long, an answer that tokenisation changes, characters outside the vocabulary, or a number of
        `<image>` that differs from the number of pictures.
    """
    _check_markers(record, tokenizer)
    tokens = [tokenizer.bos]
    labels = [IGNORED]
    for number, turn in enumerate(record.turns):
        question = _question(record, number, tokenizer, template, patches)
        answer = _answer(record, turn.answer, tokenizer, template)
        tokens += question + answer
        labels += [IGNORED] * len(question) + answer
    check_length(record, len(tokens), max_length, setting="tune.max_length")
    return _finished(record, tokens, labels)


def encode_question(
    record: Record, tokenizer: Tokenizer, template: Template, *, patches: int, max_length: int
) -> Encoded:
    """Returns the prompt for the last answer: earlier turns with their answers, the last one without.

    Raises:
      DataError: as `encode`.
    """
    _check_markers(record, tokenizer)
    tokens = [tokenizer.bos]
    last = len(record.turns) - 1
    for number, turn in enumerate(record.turns):
        tokens += _question(record, number, tokenizer, template, patches)
        if number < last:
            tokens += _answer(record, turn.answer, tokenizer, template)
    check_length(record, len(tokens), max_length, setting="evaluate.writing.max_length")
    return _finished(record, tokens, [IGNORED] * len(tokens))


def routing_text(record: Record) -> str:
    """Returns the text that locators compare: the first question without its pictures (HiDe-LLaVA, 2503.12941)."""
    return record.turns[0].question.replace(IMAGE, "").strip()


def check_length(record: Record, length: int, max_length: int, *, setting: str) -> None:
    """Refuses a record of more than `max_length` tokens.

    Args:
      setting: config key of the limit, for the error's remedy.

    Raises:
      DataError: names the record and both lengths.
    """
    if length > max_length:
        raise DataError(
            "a record is too long",
            where=f"{record.source} (id {record.id!r})",
            why=f"{length} tokens, at most {max_length}; it is not cut, since that would cut the answer",
            remedy=f"--set {setting}=... or remove the record",
        )


def _check_markers(record: Record, tokenizer: Tokenizer) -> None:
    where = f"{record.source} (id {record.id!r})"
    markers = sum(turn.question.count(IMAGE) for turn in record.turns)
    if markers != len(record.images):
        raise DataError(
            "the number of image markers differs from the number of pictures",
            where=where,
            why=f"{markers} {IMAGE} in the text, {len(record.images)} pictures",
            remedy=f"write {IMAGE} once for every picture, and nowhere else",
        )
    if markers and tokenizer.image == NO_TOKEN:
        raise DataError(
            "the tokenizer has no image token",
            where=where,
            why="the record shows a picture",
            remedy=f"add {IMAGE} to tokenizer.json as a special token",
        )


def placed(question: str, template: Template) -> str:
    """A question with its markers where the template wants them."""
    if template.image_place == "as_is" or IMAGE not in question:
        return question
    before, *middle, after = question.split(IMAGE)
    if any(words.strip() for words in middle):
        return question
    # Words before and after the markers keep the blanks between them, as they do where a marker is cut out.
    words = before + "".join(middle) + after
    markers = f"{IMAGE}\n" * (len(middle) + 1)
    return (markers + words.strip()).strip()


def _question(record: Record, number: int, tokenizer: Tokenizer, template: Template, patches: int) -> list[int]:
    """Tokens of turn `number` up to the place where its answer begins."""
    before = template.system if number == 0 else template.separator
    text = before + template.user + placed(record.turns[number].question, template) + template.assistant.rstrip(" ")
    # The marker is split off before tokenisation, so only our own markers become image tokens.
    first, *others = text.split(IMAGE)
    tokens = tokenizer.encode(first)
    for piece in others:
        tokens += [tokenizer.image] * patches
        tokens += tokenizer.encode(piece)
    return tokens


def _answer(record: Record, answer: str, tokenizer: Tokenizer, template: Template) -> list[int]:
    """Tokens of an answer and the end token."""
    # With the blanks that `_question` left out.
    tokens = tokenizer.encode_answer(answer, template.assistant)
    decoded = tokenizer.decode(tokens)
    # An answer that does not survive the round trip could never be scored as correct.
    if decoded.strip() != answer.strip():
        raise DataError(
            "an answer does not survive tokenisation",
            where=f"{record.source} (id {record.id!r})",
            why=f"{answer[:80]!r} comes back as {decoded[:80]!r}",
            remedy="write the answer in characters that the tokenizer can represent",
        )
    return [*tokens, tokenizer.eos]


def _finished(record: Record, tokens: list[int], labels: list[int]) -> Encoded:
    return Encoded(
        np.asarray(tokens, np.int32),
        np.asarray(labels, np.int32),
        record.images,
        routing_text(record),
        record.id,
    )
