"""Routing of test questions in other wordings than those of the test file; no text is generated.

A benchmark's questions of one task usually end alike, and routing that hangs on that ending is perfect on the test file
and lost with a person who asks otherwise. Each question is routed as given, in the wordings of `data/rewording.py`, and
in two ablations: its picture alone, and its text with a picture of another task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hidecmoe_jax.data.features import Features
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.rewording import MEASURED, NO_TEXT, OTHER_PICTURE, reworded, with_pictures, without_text
from hidecmoe_jax.evaluate.engine import Cache, Engine
from hidecmoe_jax.methods.base import Decision, Serving

AS_GIVEN = "as_given"
TABLES = ("accuracy", "nearest", "unknown")


@dataclass(frozen=True)
class WordedTask:
    """A learned task with the questions that it is measured on.

    Attributes:
      number: its number in the stream.
      line: the line with which its training questions end; None where they share none.
    """

    number: int
    name: str
    records: tuple[Record, ...]
    line: str | None


def measure_wordings(engine: Engine, serving: Serving, tasks: Sequence[WordedTask]) -> dict[str, Any]:
    """Routes every task's questions in every wording.

    Returns:
      `tasks`: their names. By wording and then task, in percent of a task's questions: `accuracy`, those that go to
      the task's experts, as the routing accuracy of a report counts; `nearest`, those that are nearest to the task,
      whether or not they reach its threshold; `unknown`, those that are called unknown. `lowest`: the lowest accuracy
      among the reworded cells, with its `wording`, `task` and `value`. `text_alone`: mean of `nearest` with another
      task's picture, None with one task; `picture_alone`: the same without text.
    """
    # A cache of its own for the wordings: nothing of them is read again.
    aside = replace(engine, cache=Cache())
    tables: dict[str, dict[str, list[float]]] = {name: {} for name in TABLES}
    for place, task in enumerate(tasks):
        features = engine.features(task.records, task.name)
        for wording, change in _wordings(tasks, place).items():
            records = tuple(change(row, record) for row, record in enumerate(task.records))
            known = None if wording == OTHER_PICTURE else features
            decision = _decision(aside, serving, records, known, f"{task.name}, {wording}")
            is_nearest_B = nearest_tasks(decision) == task.number
            is_unknown_B = np.zeros(len(records), bool)
            if decision.match is not None:
                is_unknown_B = np.asarray(decision.match.is_unknown_B)
            counted = {"accuracy": is_nearest_B & ~is_unknown_B, "nearest": is_nearest_B, "unknown": is_unknown_B}
            for name, is_counted_B in counted.items():
                percent = round(100.0 * float(np.mean(is_counted_B)), 2)
                tables[name].setdefault(wording, []).append(percent)
    return {
        "tasks": [task.name for task in tasks],
        **tables,
        "lowest": lowest_cell(tables["accuracy"], [task.name for task in tasks]),
        "text_alone": _mean(tables["nearest"].get(OTHER_PICTURE)),
        "picture_alone": _mean(tables["nearest"].get(NO_TEXT)),
    }


def lowest_cell(accuracy: dict[str, list[float]], tasks: Sequence[str]) -> dict[str, Any]:
    """The reworded cell with the lowest accuracy; of equals the first."""
    lowest: dict[str, Any] = {"wording": None, "task": None, "value": None}
    for wording in MEASURED:
        for task, value in zip(tasks, accuracy.get(wording, ()), strict=False):
            if lowest["value"] is None or value < lowest["value"]:
                lowest = {"wording": wording, "task": task, "value": value}
    return lowest


def nearest_tasks(decision: Decision) -> np.ndarray:
    """The task that each record is nearest to, int [B], whether or not the record reaches its threshold."""
    if decision.match is not None:
        return np.asarray(decision.match.nearest_B)
    return np.argmax(decision.weight_BN, axis=1)


def _wordings(tasks: Sequence[WordedTask], place: int) -> dict[str, Callable[[int, Record], Record]]:
    """How the task at a place is asked, by the name of the wording."""
    task = tasks[place]
    other_line = next((other.line for other in tasks if other.line not in (None, task.line)), None)
    changes: dict[str, Callable[[int, Record], Record]] = {AS_GIVEN: lambda row, record: record}
    for rule in MEASURED:
        changes[rule] = _by_rule(rule, task.line, other_line)
    pictured = all(record.images for record in task.records)
    if pictured:
        changes[NO_TEXT] = lambda row, record: without_text(record)
    neighbour = tasks[(place + 1) % len(tasks)].records
    if pictured and len(tasks) > 1:
        changes[OTHER_PICTURE] = lambda row, record: with_pictures(record, neighbour[row % len(neighbour)].images)
    return changes


def _by_rule(rule: str, line: str | None, other_line: str | None) -> Callable[[int, Record], Record]:
    return lambda row, record: reworded(record, rule, line=line, other_line=other_line)


def _decision(
    engine: Engine, serving: Serving, records: tuple[Record, ...], features: Features | None, label: str
) -> Decision:
    """Where the records are routed."""
    if features is None:
        return engine.decide(serving, engine.inputs(records, label))
    return engine.decide(serving, engine.reworded_inputs(records, features, label))


def _mean(values: list[float] | None) -> float | None:
    return None if not values else round(float(np.mean(values)), 2)
