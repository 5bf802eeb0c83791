"""Pilot, widen or stop: limits that a stage must keep, each with the number behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hidecmoe_jax.operate.misrouting import Rate
from hidecmoe_jax.operate.prices import Limits

Stage = Literal["pilot", "widen", "stop"]


@dataclass(frozen=True)
class Check:
    """One number against its limit.

    Attributes:
      name: key of its words.
      kept: None where there is no number.
      stops: whether the run must be stopped where the limit is not kept.
    """

    name: str
    value: float | None
    rule: Literal["at least", "at most"]
    limit: float
    kept: bool | None
    stops: bool = False


def checks(
    limits: Limits, *, answers: int, misrouting: Rate, unknown: float, p95: float, above_floor: tuple[int, int] | None
) -> tuple[Check, ...]:
    """All checks.

    Args:
      above_floor: tasks whose score is above the one of their most frequent answer, and how many were measured; None of
        a run without a report.
    """
    rows = [
        _least("answers", answers, limits.answers),
        _least("reviews", misrouting.reviewed, limits.reviews),
        _most("misrouting_high", misrouting.high, limits.misrouting),
        _most("unknown", unknown, limits.unknown),
        _most("p95", p95, limits.p95_milliseconds),
        _most("misrouting_low", misrouting.low, limits.stop_misrouting, stops=True),
    ]
    if above_floor is not None:
        rows.append(_least("above_floor", above_floor[0], above_floor[1], stops=True))
    return tuple(rows)


def _least(name: str, value: float, limit: float, *, stops: bool = False) -> Check:
    return Check(name, value, "at least", limit, value >= limit, stops)


def _most(name: str, value: float, limit: float, *, stops: bool = False) -> Check:
    return Check(name, value, "at most", limit, value <= limit, stops)


def stage_of(rows: Sequence[Check]) -> Stage:
    """`stop` where a check that stops is not kept, `widen` where all are kept, else `pilot`: go on as it is."""
    if any(check.stops and not check.kept for check in rows):
        return "stop"
    return "widen" if all(check.kept for check in rows) else "pilot"
