"""Measurements of one seed for the report, read from its cells, its ledger and its training curve."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from hidecmoe_jax.report import SeedResult
from hidecmoe_jax.runs.evaluation import confusion, label_of
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells, Curve

CellTable = dict[int, dict[str, dict[str, Any]]]


def seed_result(
    folder: SeedFolder, seed: int, tasks: Sequence[str], lessons: Sequence[Sequence[str]], *, named: bool = False
) -> SeedResult:
    """Measurements of one seed. A row after k lessons is placed at the number of tasks they taught.

    Args:
      lessons: names of the tasks that each lesson taught.
      named: the method is given the task, so its choices measure no locator.
    """
    cells = Cells(folder.cells).read()
    taught = [0]
    for lesson in lessons:
        taught.append(taught[-1] + len(lesson))
    reference = _table(cells, tasks, taught, "score", named=True)
    measured_rows = [row for row in reference if row.count(None) < len(row)]
    last = cells.get(len(lessons), {})
    chosen = confusion(last, tasks)
    routing_confusion = None
    routing_accuracy = None
    locator_confusion = None
    if chosen is not None:
        routed = chosen[:, :-1]  # the last column counts unknown inputs
        routing_confusion = routed.tolist()
        questions = sum(last[task]["count"] for task in tasks)
        right = routed.trace()
        routing_accuracy = 100.0 * right / questions
        if not named:
            locator_confusion = chosen.tolist()
    answers = 0
    reused = 0
    for cell in _all(cells):
        answers += cell["count"]
        reused += cell.get("reused", 0)
    warm = _warm_milliseconds(cells)
    return SeedResult(
        seed=seed,
        matrix=_table(cells, tasks, taught, "score"),
        named_task_matrix=reference if measured_rows else None,
        routing_confusion=routing_confusion,
        locator_confusion=locator_confusion,
        routing_accuracy=routing_accuracy,
        unparsed=_table(cells, tasks, taught, "unparsed"),
        seconds=_seconds(folder, cells),
        answers={"all": answers, "reused": reused},
        curves=_curves(folder),
        milliseconds_per_answer=_milliseconds_per_answer(cells) if warm is None else warm,
        answers_compiled=warm is None,
    )


def _table(
    cells: CellTable, tasks: Sequence[str], taught: Sequence[int], key: str, *, named: bool = False
) -> list[list]:
    """One number of every cell [tasks taught, task]; None where it was not measured.

    Args:
      taught: number of tasks taught, by row of the cells.
    """
    rows: list[list] = []
    for _ in range(taught[-1] + 1):
        rows.append([None] * len(tasks))
    for row, place in enumerate(taught):
        measured = cells.get(row, {})
        for column, task in enumerate(tasks):
            cell = measured.get(label_of(task, named), {})
            rows[place][column] = cell.get(key)
    return rows


def _all(cells: CellTable) -> Iterator[dict[str, Any]]:
    """Every cell of every row."""
    for row in cells.values():
        yield from row.values()


def _warm_milliseconds(cells: CellTable) -> float | None:
    """Wall-clock of one generated answer without compilation: median over the cells of what batches but the first
    took; None where no cell had a second batch, and in runs of versions that did not time them."""
    timed = [cell.get("warm", {}).get("seconds") for cell in _all(cells)]
    known = [1000 * seconds for seconds in timed if seconds is not None]
    return round(statistics.median(known), 3) if known else None


def _milliseconds_per_answer(cells: CellTable) -> float | None:
    """Wall-clock of one generated answer with all that a cell takes, compilation too, median over all cells; None where
    every answer was reused."""
    times = []
    for cell in _all(cells):
        generated = cell["count"] - cell.get("reused", 0)
        if generated:
            times.append(1000 * cell["seconds"] / generated)
    # The median: the first cell of a length also compiles its program.
    return round(statistics.median(times), 3) if times else None


def _seconds(folder: SeedFolder, cells: CellTable) -> dict[str, float]:
    """Wall-clock of learning, of its stages by kind, and of evaluation."""
    ledger = Ledger(folder.path)
    lessons = [ledger.meta(record.index) for record in ledger.tasks()]
    stages: dict[str, float] = defaultdict(float)
    # The last lesson first: the first one may lack stages that later ones begin with, and kinds keep their order.
    for lesson in reversed(lessons):
        for kind, seconds in lesson.get("stages", {}).items():
            stages[kind] += seconds
    learning = sum(lesson["seconds"] for lesson in lessons)
    by_name = {"learning": round(learning, 3)}
    for kind, seconds in stages.items():
        by_name[f"learning/{kind}"] = round(seconds, 3)
    evaluation = sum(cell["seconds"] for cell in _all(cells))
    by_name["evaluation"] = round(evaluation, 3)
    return by_name


def _curves(folder: SeedFolder) -> dict[str, list[tuple[int, float]]]:
    """Steps and losses of every training stage, by task and, for stages other than `tune`, kind."""
    curves = defaultdict(list)
    for line in Curve(folder.metrics).read():
        name = line["task"]
        stage = line["stage"]
        if stage != "tune":
            name = f"{name} ({stage})"
        point = (line["step"], line["loss"])
        curves[name].append(point)
    return dict(curves)
