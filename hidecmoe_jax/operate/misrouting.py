"""Misrouting rate of a served run, estimated from the answers that people reviewed.

Reviewed answers are no even sample: what is unknown or nearly tied is always drawn, of the rest a random share. Each of
these strata is therefore estimated by itself and counts with its number of answers, which is the Horvitz-Thompson
estimator with the shares that were in fact reviewed (post-stratified). Answers that a person reviewed though they were
not drawn are no sample and are left out of the rate.

Intervals: Wilson's in each stratum, with a correction for the part of it that was reviewed, joined by the method of
variance estimates recovery (Zou and Donner 2008).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hidecmoe_jax.scoring.wilson import wilson

UNKNOWN = "unknown"
"""Name of what answers an input of no known task: the base model, or nobody."""


@dataclass(frozen=True)
class Rate:
    """A share with its interval.

    Attributes:
      value: None where a stratum with answers has no review; its interval is then as wide as nothing known there makes
        it.
      answers: number of answers that it is about.
      reviewed: number of those drawn that were reviewed; `pending` were drawn and were not.
    """

    value: float | None
    low: float
    high: float
    answers: int
    reviewed: int
    pending: int


@dataclass(frozen=True)
class Stratum:
    """Answers that are drawn alike: their number, how many were drawn and reviewed, how many of these went wrong."""

    answers: int
    drawn: int
    reviewed: int
    wrong: int


def is_routed(answer: Mapping[str, Any]) -> bool:
    """Whether a line is an answer whose task the gate chose and somebody got."""
    return answer["model"] == "auto" and not answer.get("shadow", False)


def chosen(answer: Mapping[str, Any]) -> str:
    """The task that an answer was taken for; `UNKNOWN` where it was taken for none."""
    return answer["task"] or UNKNOWN


def right_task(answer: Mapping[str, Any], review: Mapping[str, Any]) -> str:
    """The task of an answer by its review: the one that was chosen, but where the review says another."""
    if review["decision"] == "other_task":
        return review["task"]
    if review["decision"] == "new_task":
        return UNKNOWN
    return chosen(answer)


def strata_of(answers: Iterable[Mapping[str, Any]], reviews: Mapping[str, Mapping[str, Any]]) -> list[Stratum]:
    """The strata of some answers: those that are always drawn, and the rest.

    Args:
      reviews: the last review of each answer, by the answer's id.
    """
    counts = {certain: Counter() for certain in (True, False)}
    for answer in answers:
        count = counts[answer["sampled"] in (UNKNOWN, "near_tie")]
        count["answers"] += 1
        if answer["sampled"] is None:
            continue
        count["drawn"] += 1
        review = reviews.get(answer["id"])
        if review is not None:
            count["reviewed"] += 1
            count["wrong"] += right_task(answer, review) != chosen(answer)
    return [Stratum(**{name: count[name] for name in ("answers", "drawn", "reviewed", "wrong")})
            for count in counts.values() if count["answers"]]  # fmt: skip


def rate_of(strata: Sequence[Stratum]) -> Rate:
    """The share of answers that went to the wrong task."""
    answers = sum(stratum.answers for stratum in strata)
    value: float | None = 0.0
    middle = 0.0
    below = 0.0
    above = 0.0
    for stratum in strata:
        weight = stratum.answers / answers
        share, low, high = _interval(stratum)
        middle += weight * share
        below += (weight * (share - low)) ** 2
        above += (weight * (high - share)) ** 2
        value = None if value is None or not stratum.reviewed else value + weight * share
    return Rate(
        value, max(0.0, middle - math.sqrt(below)), min(1.0, middle + math.sqrt(above)), answers,
        sum(stratum.reviewed for stratum in strata), sum(stratum.drawn - stratum.reviewed for stratum in strata),
    )  # fmt: skip


def _interval(stratum: Stratum) -> tuple[float, float, float]:
    """Share of a stratum and its Wilson interval; everything is possible where nothing was reviewed."""
    if not stratum.reviewed:
        return 0.5, 0.0, 1.0
    share = stratum.wrong / stratum.reviewed
    if stratum.reviewed == stratum.answers:
        return share, share, share
    # A part of a small stratum says more about it than the same number out of many.
    count = stratum.reviewed * (stratum.answers - 1) / (stratum.answers - stratum.reviewed)
    return share, *wilson(share, count)


def confusions(
    answers: Sequence[Mapping[str, Any]], reviews: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], float]:
    """Estimated number of answers by (chosen task, right task) where these differ; each review counts for as many
    answers as its stratum has for one that was reviewed."""
    sizes: Counter[tuple[str, bool]] = Counter()
    seen: Counter[tuple[str, bool]] = Counter()
    wrong: Counter[tuple[str, str, bool]] = Counter()
    for answer in answers:
        certain = answer["sampled"] in (UNKNOWN, "near_tie")
        task = chosen(answer)
        sizes[task, certain] += 1
        review = reviews.get(answer["id"])
        if answer["sampled"] is None or review is None:
            continue
        seen[task, certain] += 1
        right = right_task(answer, review)
        if right != task:
            wrong[task, right, certain] += 1
    table: dict[tuple[str, str], float] = {}
    for (task, right, certain), count in sorted(wrong.items()):
        weight = sizes[task, certain] / seen[task, certain]
        table[task, right] = table.get((task, right), 0.0) + count * weight
    return table
