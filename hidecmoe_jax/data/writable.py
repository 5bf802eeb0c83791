"""Answers that a base cannot write: checked before training with its tokenizer and the limit of new tokens.

A vocabulary may lack characters, or spell each of them in several byte tokens, so that a short Japanese answer exceeds
`max_new_tokens`; such an answer can never be scored as right. The warnings carry the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.items import Record
from hidecmoe_jax.data.prompts import Template
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.data.tokenizer import REPLACEMENT, Tokenizer


@dataclass(frozen=True)
class Written:
    """How a tokenizer writes one answer.

    Attributes:
      tokens: number of tokens, without the end token; 0 where it cannot be written.
      pieces: how many of them are parts of a character.
      survives: encoding and decoding gives the answer back.
    """

    tokens: int
    pieces: int
    survives: bool


def written(answer: str, tokenizer: Tokenizer, template: Template) -> Written:
    """Returns how an answer is written after the template's `assistant`."""
    try:
        ids = tokenizer.encode_answer(answer, template.assistant)
    except DataError:
        return Written(0, 0, False)
    pieces = sum(REPLACEMENT in tokenizer.decode([token]) for token in ids)
    survives = tokenizer.decode(ids).strip() == answer.strip()
    return Written(len(ids), pieces, survives)


def answer_warnings(
    tasks: Iterable[Task], tokenizer: Tokenizer, template: Template, *, max_new_tokens: int
) -> tuple[str, ...]:
    """Returns one line for every task and kind of answers that the base cannot write, or only in pieces.

    Args:
      max_new_tokens: `evaluate.writing.max_new_tokens`.
    """
    lines = []
    for task in tasks:
        for split, records in (("test", task.test), ("training", task.train)):
            lines += _split_warnings(f"{task.name}: ", split, records, tokenizer, template, max_new_tokens)
    return tuple(lines)


def _split_warnings(
    lead: str, split: str, records: Sequence[Record], tokenizer: Tokenizer, template: Template, limit: int
) -> list[str]:
    """Warnings about the answers of one split; an item counts where none of its references can be written."""
    # Answers repeat: classes of a task are written once.
    known: dict[str, Written] = {}
    lost = []
    long: list[tuple[int, str]] = []
    pieces = 0
    tokens = 0
    for record in records:
        for answer in record.references:
            if answer not in known:
                known[answer] = written(answer, tokenizer, template)
        forms = [known[answer] for answer in record.references]
        pieces += forms[0].pieces
        tokens += forms[0].tokens
        surviving = [form.tokens for form in forms if form.survives]
        if not surviving:
            lost.append(record)
        elif min(surviving) > limit:
            long.append((min(surviving), record.references[0]))
    lines = []
    if lost:
        first = lost[0]
        lines.append(
            f"{lead}{len(lost)} of {len(records)} {split} answers cannot be written by this base's tokenizer; "
            f"first {first.references[0][:40]!r} ({first.source})"
        )
    if long:
        longest, answer = max(long)
        lines.append(
            f"{lead}{len(long)} of {len(records)} {split} answers are longer than "
            f"evaluate.writing.max_new_tokens={limit} and will be cut; the longest has {longest} tokens, "
            f"{answer[:40]!r}; --set evaluate.writing.max_new_tokens={longest + 1} holds all"
        )
    # Every base writes some rare characters in bytes; where most tokens are, it never learned that script.
    if 2 * pieces > tokens:
        lines.append(
            f"{lead}{pieces} of {tokens} tokens of the {split} answers are pieces of characters, as the vocabulary "
            "lacks them; a base that was not trained on this script learns it slowly or not at all"
        )
    return lines
