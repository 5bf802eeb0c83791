"""Answers that wait for a person, and a person's decisions about them, checked before they become lines of a log."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.operate.entries import Decision, ReviewEntry, is_answer
from hidecmoe_jax.operate.misrouting import chosen

DECISIONS: tuple[str, ...] = get_args(Decision)
LONGEST = 2000  # characters of a typed answer or name
_ID_BYTES = 8


@dataclass(frozen=True)
class Judgement:
    """What a person says about an answer; fields as of `ReviewEntry`."""

    of: str
    decision: str
    task: str | None = None
    answer: str | None = None


def waiting(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Answers that were drawn for a person and have no review yet, the oldest first."""
    drawn: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if is_answer(line) and line["sampled"] is not None:
            drawn[line["id"]] = line
        elif line["kind"] == "review":
            drawn.pop(line["of"], None)
    return list(drawn.values())


def find_answer(lines: Iterable[Mapping[str, Any]], of: str) -> Mapping[str, Any] | None:
    """The last line of an answer; None where it is not among the lines."""
    answer = None
    for line in lines:
        if is_answer(line) and line["id"] == of:
            answer = line
    return answer


def review_of(
    judgement: Judgement, answer: Mapping[str, Any] | None, *, tasks: Sequence[str] | None, by: str | None
) -> ReviewEntry:
    """The entry of a judgement.

    Args:
      answer: the line that it is about; None where the log has none.
      tasks: names of the tasks that can answer; None where they are not known.
      by: who judges.

    Raises:
      DataError: no such answer, no such decision, or fields that do not belong to it.
    """
    where = f"review of {judgement.of}"
    if answer is None:
        raise DataError("no such answer", where=where, why="the log has no line `answer` with this id")
    if judgement.decision not in DECISIONS:
        raise DataError(
            "no such decision", where=where, why=f"got {judgement.decision!r}",
            remedy=nearest(judgement.decision, DECISIONS),
        )  # fmt: skip
    for name in ("task", "answer"):
        text = getattr(judgement, name)
        if text is not None and not 0 < len(text.strip()) <= LONGEST:
            raise DataError(
                f"the {name} is no text", where=where, why=f"{len(text)} characters, allowed 1..{LONGEST}, not blank"
            )
    problem = _problem(judgement, answer, tasks)
    if problem is not None:
        raise DataError("this decision does not fit", where=where, why=problem)
    return ReviewEntry(
        secrets.token_hex(_ID_BYTES), judgement.of, judgement.decision, judgement.task, judgement.answer, by
    )


def _problem(judgement: Judgement, answer: Mapping[str, Any], tasks: Sequence[str] | None) -> str | None:
    """What does not go together."""
    decision = judgement.decision
    takes_task = decision in ("other_task", "new_task")
    if judgement.task is not None and not takes_task:
        return f"{decision} names no task"
    if judgement.answer is not None and decision in ("right", "bad_picture"):
        return f"{decision} has no other answer"
    if decision == "answer" and judgement.answer is None:
        return "the right answer is missing"
    if decision != "other_task":
        return None
    if judgement.task is None:
        return "the right task is missing"
    if judgement.task == chosen(answer):
        return f"{judgement.task} is the task that answered"
    if tasks is not None and judgement.task not in tasks:
        return f"no task {judgement.task!r}; {nearest(judgement.task, tasks)}"
    return None
