"""Questions to an assistant as records without an answer."""

from __future__ import annotations

from collections.abc import Sequence

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.media import IMAGE, question_problems
from hidecmoe_jax.data.records import Record, Turn


def records_of(
    images: Sequence[Sequence[str]], prompts: Sequence[str], sources: Sequence[str] | None = None
) -> tuple[Record, ...]:
    """Prompts with their picture files as records without an answer, whose ids are their numbers.

    Args:
      sources: where each prompt comes from, for messages; by default its number.

    Raises:
      DataError: pictures and prompts do not match, or a prompt cannot be asked.
    """
    if len(images) != len(prompts):
        raise DataError(
            "one entry of `images` per prompt",
            why=f"{len(images)} against {len(prompts)}",
            remedy="use [] for no picture",
        )
    records = []
    for number, text in enumerate(prompts):
        where = f"prompt {number}" if sources is None else sources[number]
        paths = images[number]
        problems = question_problems(text, len(paths))
        if problems:
            raise DataError("this cannot be asked", where=where, why="; ".join(problems))
        # Pictures come before a question that does not place them itself.
        question = text if IMAGE in text else f"{IMAGE}\n" * len(paths) + text
        turns = (Turn(question, ""),)
        record = Record(str(number), tuple(paths), turns, where)
        records.append(record)
    return tuple(records)
