"""Scores by row and task, and the training curve, as files that survive a kill at any moment.

`cells.json` is rewritten after every cell. `metrics.jsonl` grows by a line a step; when a stage resumes from a
checkpoint, lines of later steps are dropped first, so that a resumed run leaves the same file as one that was never
interrupted (but for wall-clock fields).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidecmoe_jax.storage.files import read_json, write_bytes, write_json


@dataclass(frozen=True)
class Cells:
    """`{row: {task: {"score", "count", "unparsed", ...}}}`; row 0 is zero-shot, row k after lesson k."""

    path: Path

    def read(self) -> dict[int, dict[str, dict[str, Any]]]:
        """All cells measured so far."""
        if not self.path.is_file():
            return {}
        return {int(row): cells for row, cells in read_json(self.path).items()}

    def write(self, row: int, task: str, cell: dict[str, Any]) -> None:
        """Adds one cell, durably."""
        cells = self.read()
        cells.setdefault(row, {})[task] = cell
        # Ordered by number before the numbers become text, for "10" sorts before "2".
        ordered = {str(number): cells[number] for number in sorted(cells)}
        write_json(self.path, ordered)

    def forget(self, row: int, task: str | None = None) -> None:
        """Drops a row, and the column of a task whose lesson is learned again, perhaps from other data under the same
        name."""
        columns = () if task is None else (task, f"{task} (named)")
        remaining = {}
        for number, tasks in sorted(self.read().items()):
            if number == row:
                continue
            for name in columns:
                tasks.pop(name, None)
            remaining[str(number)] = tasks
        write_json(self.path, remaining)


@dataclass
class Curve:
    """The lines of `metrics.jsonl`: one a step, with `at` = (lesson, place of the stage, step) and its numbers."""

    path: Path
    pending: list[str] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """Queues a line for the next `flush`."""
        self.pending.append(json.dumps(line))

    def flush(self) -> None:
        """Writes what is pending, durably."""
        if not self.pending:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n".join(self.pending) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a power failure must not lose steps that a checkpoint already covers
        self.pending.clear()

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; a line torn by a crash is left out."""
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break  # only the last line can be torn: lines are appended in order
        return lines

    def rewind(self, at: tuple[int, int, int]) -> None:
        """Drops the lines from (lesson, stage, step) `at` on."""
        self.pending.clear()
        earlier = [line for line in self.read() if tuple(line["at"]) < at]
        lines = [json.dumps(line) + "\n" for line in earlier]
        text = "".join(lines)
        write_bytes(self.path, text.encode())
