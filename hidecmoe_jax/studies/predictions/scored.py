"""One matrix from result files: both forms of every cell, the metrics of both matrices, intervals by bootstrap."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.scoring.bootstrap import Interval, cell_values, interval_of, summary_intervals
from hidecmoe_jax.scoring.captions import splits_by_character
from hidecmoe_jax.scoring.matrix import METRICS, summary
from hidecmoe_jax.scoring.rules import CellScore, rule_of, score_lines, unmatched
from hidecmoe_jax.studies.predictions.files import Result, read_result
from hidecmoe_jax.studies.predictions.sources import Source, Task

Place = tuple[int, int]
_ROUNDED = 0.0051  # an evaluation script prints two decimals


@dataclass(frozen=True)
class Cell:
    """A scored result file and the interval of its strict score."""

    result: Result
    score: CellScore
    interval: Interval | None = None


@dataclass(frozen=True)
class Scored:
    """A scored source.

    Attributes:
      cells: by (row, column).
      intervals: of the strict metrics, by name.
    """

    source: Source
    cells: dict[Place, Cell]
    intervals: dict[str, Interval | None] = field(default_factory=dict)

    def matrix(self, *, legacy: bool = False) -> list[list[float | None]]:
        """Scores as `scoring.matrix` takes them; None where there is no file, or the script has no number."""
        count = len(self.source.tasks)
        zero_shot_alone = all(row == 0 for row, _ in self.cells)
        rows = 1 if zero_shot_alone else count + 1
        table: list[list[float | None]] = [[None] * count for _ in range(rows)]
        for (row, column), cell in self.cells.items():
            marks = cell.score.legacy if legacy else cell.score.strict
            table[row][column] = None if marks is None else marks.value
        return table

    @property
    def last_row(self) -> int:
        """The row after the last task, or 0 where nothing else was evaluated."""
        return max(row for row, _ in self.cells)


def score_source(source: Source, *, resamples: int, seed: int) -> Scored:
    """Scores every file of a source.

    Raises:
      DataError: a file cannot be read, or none of its ids is that of a question.
    """
    cells = {}
    for place, found in sorted(source.cells.items()):
        result = read_result(found.path, found.shards)
        task = source.tasks[place[1]]
        cells[place] = Cell(result, _score(task, result))
    if not resamples:
        return Scored(source, cells)
    values = {}
    for column in sorted({column for _, column in cells}):
        rows = {row: cell.score.strict for (row, other), cell in cells.items() if other == column}
        # A task's questions are drawn alike in every run, wherever it stands in the order.
        rng = np.random.default_rng([seed, zlib.crc32(source.tasks[column].name.encode())])
        for row, numbers in cell_values(rows, resamples=resamples, rng=rng).items():
            values[row, column] = numbers
    with_intervals = {}
    for place, cell in cells.items():
        with_intervals[place] = Cell(cell.result, cell.score, interval_of(values[place]))
    scored = Scored(source, with_intervals)
    return Scored(source, with_intervals, summary_intervals(scored.matrix(), values, resamples))


def _score(task: Task, result: Result) -> CellScore:
    score = score_lines(rule_of(task.rule), result.lines, task.asked.questions)
    if result.lines and len(score.joined.missing) == len(task.asked.questions):
        raise DataError(
            f"no line of the file answers a question of {task.name}", where=str(result.path),
            why=f"its ids begin with {result.lines[0][0]!r}, those of {task.asked.path} "
            f"with {task.asked.questions[0].id!r}",
            remedy="give the test file that was evaluated, or the answers to this one",
        )  # fmt: skip
    return score


def document_of(scored: Scored) -> dict[str, Any]:
    """A scored source as plain values; null is a cell without a file, or a metric that lacks a cell."""
    source = scored.source
    metrics = summary(scored.matrix())
    legacy = summary(scored.matrix(legacy=True))
    return {
        "label": source.label,
        "method": source.method,
        "seed": source.seed,
        "tasks": [_task(task) for task in source.tasks],
        "notes": list(source.notes),
        "matrix": scored.matrix(),
        "legacy_matrix": scored.matrix(legacy=True),
        "metrics": {name: metrics[name] for name in METRICS},
        "legacy_metrics": {name: legacy[name] for name in METRICS},
        "intervals": {name: _listed(scored.intervals.get(name)) for name in METRICS},
        "missing": metrics["missing"],
        "cells": [_cell(place, cell, source) for place, cell in scored.cells.items()],
    }


def _task(task: Task) -> dict[str, Any]:
    rule = rule_of(task.rule)
    notes = list(task.asked.notes)
    is_caption = task.rule == "caption6"
    if is_caption and any(splits_by_character(text) for item in task.asked.questions for text in item.references):
        notes.append("Chinese and Japanese captions are split by character")
    # A corpus of captions says nothing of one reference, and costs the most.
    hopeless = [] if is_caption else unmatched(rule, task.asked.questions)
    if len(hopeless) == len(task.asked.questions):
        reference = task.asked.questions[0].references[0]
        raise DataError(
            f"no reference of {task.name} can be matched by its rule {task.rule!r}", where=str(task.asked.path),
            why=f"the first is {reference[:80]!r}", remedy="set `scorer` in task.json to the rule of this task",
        )  # fmt: skip
    if hopeless:
        notes.append(f"{len(hopeless)} references can never be matched by {task.rule}, the first of {hopeless[0]!r}")
    return {
        "name": task.name,
        "rule": task.rule,
        "strict": rule.about,
        "legacy": rule.note,
        "questions": len(task.asked.questions),
        "test": str(task.asked.path),
        "notes": notes,
    }


def _cell(place: Place, cell: Cell, source: Source) -> dict[str, Any]:
    score = cell.score
    legacy = score.legacy
    return {
        "row": place[0],
        "task": source.tasks[place[1]].name,
        "file": str(cell.result.path),
        "strict": score.strict.value,
        "interval": _listed(cell.interval),
        "legacy": None if legacy is None else legacy.value,
        "difference": score.difference,
        "reason": score.reason,
        "questions": len(score.strict.per_item),
        "lines": score.lines,
        **score.joined.counts(),
        "unparsed": score.strict.unparsed,
        "legacy_unparsed": None if legacy is None else legacy.unparsed,
        "torn": cell.result.torn,
        "parts": score.strict.parts,
        "printed": cell.result.printed,
        "printed_samples": cell.result.printed_samples,
        "printed_agrees": _agrees(cell),
    }


def _agrees(cell: Cell) -> bool | None:
    """Whether the number in Result.text is the legacy score; None without either."""
    if cell.result.printed is None or cell.score.legacy is None:
        return None
    return abs(cell.result.printed - cell.score.legacy.value) < _ROUNDED


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
