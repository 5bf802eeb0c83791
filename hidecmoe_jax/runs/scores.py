"""Scores by row and task, and the training curve, as files that survive a kill at any moment.

`cells.json` is rewritten after every cell. `metrics.jsonl` grows by a line a step; when a stage resumes from a
checkpoint, lines of later steps are dropped first, so that a resumed run leaves the same file as one that was never
interrupted (but for wall-clock fields).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hidecmoe_jax.runs.trackers import Tracker
from hidecmoe_jax.storage import seal


@dataclass(frozen=True)
class Cells:
    """`{row: {task: {"score", "count", "unparsed", ...}}}`; row 0 is zero-shot, row k after lesson k."""

    path: Path

    def read(self) -> dict[int, dict[str, dict[str, Any]]]:
        """All cells measured so far."""
        return {int(row): cells for row, cells in (seal.read_json(self.path) or {}).items()}

    def write(self, row: int, task: str, cell: dict[str, Any]) -> None:
        """Adds one cell, durably."""
        cells = self.read()
        cells.setdefault(row, {})[task] = cell
        # Ordered by number before the numbers become text, for "10" sorts before "2".
        ordered = {str(number): cells[number] for number in sorted(cells)}
        seal.write_json(self.path, ordered)

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
        seal.write_json(self.path, remaining)


@dataclass
class Curve:
    """The lines of `metrics.jsonl`: one a step, with `at` = (lesson, place of the stage, step) and its numbers.

    Attributes:
      trackers: get every line that was written; `begin` starts them.
      count: number of lines that were written, once trackers have begun.
    """

    path: Path
    trackers: tuple[Tracker, ...] = ()
    pending: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0

    @cached_property
    def _file(self) -> seal.Growing:
        return seal.Growing(self.path)

    def add(self, line: dict[str, Any]) -> None:
        """Queues a line for the next `flush`."""
        self.pending.append(line)

    def begin(self) -> None:
        """Shows the trackers the lines so far."""
        if not self.trackers:
            return
        lines = self.read()
        self.count = len(lines)
        for tracker in self.trackers:
            tracker.start(lines)

    def flush(self) -> None:
        """Writes what is pending, durably."""
        if not self.pending:
            return
        text = "".join(json.dumps(line) + "\n" for line in self.pending)
        self._file.append(text.encode())
        for number, line in enumerate(self.pending, self.count):
            for tracker in self.trackers:
                tracker.log(number, line)
        self.count += len(self.pending)
        self.pending.clear()

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; a line torn by a crash is left out."""
        return seal.read_lines(self.path)

    def rewind(self, at: tuple[int, int, int]) -> None:
        """Drops the lines from (lesson, stage, step) `at` on."""
        self.pending.clear()
        written = self.read()
        earlier = [line for line in written if tuple(line["at"]) < at]
        lines = [json.dumps(line) + "\n" for line in earlier]
        text = "".join(lines)
        seal.write_bytes(self.path, text.encode(), grows=True)
        if len(earlier) < len(written):
            self.begin()
