"""Taking lessons and measurements out of a seed, so that they are made again.

Answers are moved to `withdrawn/` in the seed, never deleted.
"""

from __future__ import annotations

from pathlib import Path

from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.progress import clear_checkpoints
from hidecmoe_jax.runs.scores import Cells, Curve
from hidecmoe_jax.storage import seal

_NO_ROW = -1  # rows count from 0


def withdraw_lesson(seed: SeedFolder, row: int, task: str) -> None:
    """Takes out the last lesson of a seed, learned or begun, with the answers of its row, those to its task and its
    part of the training curve; the same call goes on where a killed one stopped."""
    ledger = Ledger(seed.path)
    lesson = row - 1
    # Scores first: a lesson that has some and no archive counts as lost.
    Cells(seed.cells).forget(row, task)
    if len(ledger.tasks()) == row:
        aside = ledger.withdraw(lesson)
    else:
        aside = seed.next_withdrawn(f"{lesson:03d}_{task}")
    clear_checkpoints(seed)
    _move(_row(seed, row) + seed.columns(task), aside)
    Curve(seed.metrics).rewind((lesson, 0, 0))
    # Trackers that cannot be rewritten begin a run of their own for what is learned instead.
    for position in seed.trackers.glob("*.json"):
        position.unlink()


def withdraw_row(seed: SeedFolder, row: int) -> None:
    """Takes the measurements of a seed's last row out."""
    aside = seed.next_withdrawn(seed.row(row).name)
    _move(_row(seed, row), aside)
    Cells(seed.cells).forget(row)


def withdraw_column(seed: SeedFolder, task: str) -> None:
    """Takes the answers to a task out of every row, for its questions are others now."""
    columns = seed.columns(task)
    if columns:
        _move(columns, seed.next_withdrawn(f"answers_{task}"))
    cells = Cells(seed.cells)
    if cells.read():
        cells.forget(_NO_ROW, task)


def withdraw_measurements(seed: SeedFolder) -> None:
    """Takes every answer and score of a seed out, so that all rows are measured again."""
    aside = seed.next_withdrawn("answers")
    for path in (seed.answers_folder, seed.variants, seed.cells):
        if path.exists():
            with seal.leaving([path]):
                path.rename(aside.parent / f"{aside.name}.{path.name}")


def _row(seed: SeedFolder, row: int) -> list[Path]:
    """Answers of a seed's last row, and those of the variants."""
    return [seed.row(row), seed.variants]  # variants exist for the last row alone


def _move(paths: list[Path], aside: Path) -> None:
    """Moves answers to names that begin with `aside`."""
    for path in paths:
        # The columns of a row that was moved are gone with it.
        if path.exists():
            row_name = path.parent.name
            name = f"{aside.name}.{row_name}.{path.name}"
            with seal.leaving([path]):
                path.rename(aside.parent / name)
