"""Counts of a decision log: answers by task, hours in service, latency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hidecmoe_jax.operate.entries import is_answer
from hidecmoe_jax.operate.misrouting import chosen


@dataclass(frozen=True)
class Usage:
    """What a log says.

    Attributes:
      answers: lines of answers that somebody got.
      reviews: the last review of each answer, by the answer's id.
      first, last: time of the first and the last line.
      hours: between the first line after a start (or of the log) and the stop, or the last line before the next start.
    """

    answers: tuple[Mapping[str, Any], ...]
    reviews: Mapping[str, Mapping[str, Any]]
    first: str
    last: str
    hours: float

    def by_task(self) -> dict[str, list[Mapping[str, Any]]]:
        """Answers by the task that they were taken for, in the order of the names."""
        tasks: dict[str, list[Mapping[str, Any]]] = {}
        for answer in self.answers:
            tasks.setdefault(chosen(answer), []).append(answer)
        return dict(sorted(tasks.items()))


def usage_of(lines: Iterable[Mapping[str, Any]]) -> Usage | None:
    """Returns the counts of a log's lines; None of a log without an answer."""
    answers = []
    reviews = {}
    spans: list[list[str]] = []
    for line in lines:
        if line["kind"] == "start" or not spans:
            spans.append([line["time"], line["time"]])
        spans[-1][1] = line["time"]
        if is_answer(line):
            answers.append(line)
        elif line["kind"] == "review":
            reviews[line["of"]] = line
    if not answers:
        return None
    ids = {answer["id"] for answer in answers}
    of_answers = {of: review for of, review in reviews.items() if of in ids}
    seconds = sum((_time(last) - _time(first)).total_seconds() for first, last in spans)
    return Usage(tuple(answers), of_answers, spans[0][0], spans[-1][1], seconds / 3600)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
