"""From a record to token ids and labels.

A prompt is put together from pieces, each tokenised once, and labels are written while the pieces are laid
down, so a label can never slip against its token (LLaVA tokenises twice and warns about a mismatch). Every
`<image>` becomes as many image tokens as the vision tower gives patches. Loss falls on the answers and the
end token after each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.items import IMAGE, Record
from hidecmoe_jax.data.tokenizer import NO_TOKEN, Tokenizer

IGNORED = -100


@dataclass(frozen=True)
class Template:
    """The words around questions and answers.

    One turn reads `user question assistant answer END separator`; `system` stands before the first, END is
    the end token. Blanks at the end of `assistant` are tokenised with the answer: sub-word vocabularies
    have tokens for " word", and the prompt of a question must be a prefix of the prompt of a question with
    its answer.
    """

    system: str = ""
    user: str = "USER: "
    assistant: str = " ASSISTANT: "
    separator: str = ""


VICUNA = Template(
    system="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
SHORT = Template()
PLAIN = Template(user="", assistant="\n")
TEMPLATES = {"vicuna": VICUNA, "short": SHORT, "plain": PLAIN}


@dataclass(frozen=True)
class Encoded:
    """A record as ids.

    Attributes:
      tokens: int32 [T], image tokens expanded.
      labels: int32 [T], the token itself where loss falls, -100 elsewhere; not shifted.
      images: paths in the order of their tokens.
      text: what a locator reads (`routing_text`).
      id: the record's id.
    """

    tokens: np.ndarray
    labels: np.ndarray
    images: tuple[str, ...]
    text: str
    id: str = ""


def encode(record: Record, tokenizer: Tokenizer, template: Template, *, patches: int, max_length: int) -> Encoded:
    """A training item: all turns, loss on every answer and its end token.

    Args:
      patches: image tokens per picture.
      max_length: longest allowed sequence; a longer record is refused, never cut.

    Raises:
      DataError: too long, an answer that does not survive tokenisation, characters outside the vocabulary,
        or not one `<image>` for every picture.
    """
    _check_markers(record, tokenizer)
    tokens, labels = [tokenizer.bos], [IGNORED]
    for place, turn in enumerate(record.turns):
        asked = _question(record, place, tokenizer, template, patches)
        answer = _answer(record, turn.answer, tokenizer, template)
        tokens += asked + answer
        labels += [IGNORED] * len(asked) + answer
    return _finished(record, tokens, labels, max_length)


def encode_question(
    record: Record, tokenizer: Tokenizer, template: Template, *, patches: int, max_length: int
) -> Encoded:
    """The prompt for the last answer: earlier turns are given with their answers, the last one is left open.

    Raises:
      DataError: as `encode`.
    """
    _check_markers(record, tokenizer)
    tokens = [tokenizer.bos]
    for place, turn in enumerate(record.turns):
        tokens += _question(record, place, tokenizer, template, patches)
        if place < len(record.turns) - 1:
            tokens += _answer(record, turn.answer, tokenizer, template)
    return _finished(record, tokens, [IGNORED] * len(tokens), max_length)


def encode_all(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    template: Template,
    *,
    patches: int,
    max_length: int,
    max_dropped: float = 0.0,
) -> tuple[list[Encoded], list[str]]:
    """Encodes many training items; too long ones are dropped up to a fraction, with their ids returned.

    Raises:
      DataError: more than `max_dropped` of the records are longer than `max_length`, none is left, or any
        record is wrong in another way.
    """
    records = list(records)
    whole = [encode(record, tokenizer, template, patches=patches, max_length=2**31) for record in records]
    kept = [one for one in whole if len(one.tokens) <= max_length]
    dropped = [one for one in whole if len(one.tokens) > max_length]
    if len(dropped) > max_dropped * len(whole) or not kept:
        worst = max(dropped, key=lambda one: len(one.tokens)) if dropped else None
        longest = f"; the longest is {worst.id!r} with {len(worst.tokens)} tokens" if worst else ""
        raise DataError(
            f"{len(dropped)} of {len(whole)} records are longer than {max_length} tokens",
            where=", ".join(repr(one.id) for one in dropped[:5]),
            why=f"at most {max_dropped:.1%} may be dropped, and none is ever cut{longest}",
            remedy="--set tune.max_length=... or --set tune.max_dropped=0.01",
        )
    return kept, [one.id for one in dropped]


def routing_text(record: Record) -> str:
    """What a locator reads: the first question without its pictures (HiDe-LLaVA; arXiv 2503.12941)."""
    return record.turns[0].question.replace(IMAGE, "").strip()


def _check_markers(record: Record, tokenizer: Tokenizer) -> None:
    where = f"{record.source} (id {record.id!r})"
    markers = sum(turn.question.count(IMAGE) for turn in record.turns)
    if markers != len(record.images):
        raise DataError(
            "pictures and their markers do not agree",
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


def _question(record: Record, place: int, tokenizer: Tokenizer, template: Template, patches: int) -> list[int]:
    before = template.system if place == 0 else template.separator
    parts = (before + template.user + record.turns[place].question + template.assistant.rstrip(" ")).split(IMAGE)
    tokens = tokenizer.encode(parts[0])
    for part in parts[1:]:
        tokens += [tokenizer.image] * patches + tokenizer.encode(part)
    return tokens


def _answer(record: Record, answer: str, tokenizer: Tokenizer, template: Template) -> list[int]:
    blank = template.assistant[len(template.assistant.rstrip(" ")) :]
    tokens = tokenizer.encode(blank + answer)
    said = tokenizer.decode(tokens)
    if said.strip() != answer.strip():
        raise DataError(
            "an answer does not survive tokenisation",
            where=f"{record.source} (id {record.id!r})",
            why=f"{answer[:80]!r} comes back as {said[:80]!r}",
            remedy="write the answer in characters that the tokenizer keeps apart",
        )
    return [*tokens, tokenizer.eos]


def _finished(record: Record, tokens: list[int], labels: list[int], max_length: int) -> Encoded:
    if len(tokens) > max_length:
        raise DataError(
            "a record is too long",
            where=f"{record.source} (id {record.id!r})",
            why=f"{len(tokens)} tokens, at most {max_length}; it is not cut, since that would cut the answer",
            remedy="--set tune.max_length=... or remove the record",
        )
    return Encoded(
        np.asarray(tokens, np.int32),
        np.asarray(labels, np.int32),
        record.images,
        routing_text(record),
        record.id,
    )
