"""Measurements of one seed for the report, read from its cells, its ledger and its training curve."""

from __future__ import annotations

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
    has_reference = any(score is not None for row in reference for score in row)
    last = cells.get(len(lessons), {})
    chosen = confusion(last, tasks)
    routed, accuracy = None, None
    if chosen is not None:
        routed = chosen[:, :-1]  # the last column counts unknown inputs
        accuracy = 100.0 * routed.trace() / sum(last[task]["count"] for task in tasks)
    return SeedResult(
        seed=seed,
        matrix=_table(cells, tasks, taught, "score"),
        named_task_matrix=reference if has_reference else None,
        routing_confusion=None if routed is None else routed.tolist(),
        locator_confusion=None if chosen is None or named else chosen.tolist(),
        routing_accuracy=accuracy,
        unparsed=_table(cells, tasks, taught, "unparsed"),
        seconds=_seconds(folder, cells),
        answers={
            "all": sum(cell["count"] for cell in _all(cells)),
            "reused": sum(cell.get("reused", 0) for cell in _all(cells)),
        },
        curves=_curves(folder),
    )


def _table(
    cells: CellTable, tasks: Sequence[str], taught: Sequence[int], key: str, *, named: bool = False
) -> list[list]:
    """One number of every cell [tasks taught, task]; None where it was not measured.

    Args:
      taught: number of tasks taught, by row of the cells.
    """
    rows: list[list] = [[None] * len(tasks) for _ in range(taught[-1] + 1)]
    for row, place in enumerate(taught):
        measured = cells.get(row, {})
        rows[place] = [measured.get(label_of(task, named), {}).get(key) for task in tasks]
    return rows


def _all(cells: CellTable) -> Iterator[dict[str, Any]]:
    """Every cell of every row."""
    for row in cells.values():
        yield from row.values()


def _seconds(folder: SeedFolder, cells: CellTable) -> dict[str, float]:
    """Wall-clock of learning, of its stages by kind, and of evaluation."""
    ledger = Ledger(folder.path)
    lessons = [ledger.meta(record.index) for record in ledger.tasks()]
    stages: dict[str, float] = defaultdict(float)
    # The last lesson first: the first one may lack stages that later ones begin with, and kinds keep their order.
    for lesson in reversed(lessons):
        for kind, seconds in lesson.get("stages", {}).items():
            stages[kind] += seconds
    return {
        "learning": round(sum(lesson["seconds"] for lesson in lessons), 3),
        **{f"learning/{kind}": round(seconds, 3) for kind, seconds in stages.items()},
        "evaluation": round(sum(cell["seconds"] for cell in _all(cells)), 3),
    }


def _curves(folder: SeedFolder) -> dict[str, list[tuple[int, float]]]:
    """Steps and losses of every training stage, by task and, for stages other than `tune`, kind."""
    curves = defaultdict(list)
    for line in Curve(folder.metrics).read():
        name = line["task"] if line["stage"] == "tune" else f"{line['task']} ({line['stage']})"
        curves[name].append((line["step"], line["loss"]))
    return dict(curves)
