"""Instruction lines that tasks were trained with, added to questions that lack them.

Questions of a task often end with one line, such as "Answer the question using a single word or phrase.", and its
expert has seen no question without it. A person leaves it out. A line that all learned tasks share is added before the
question is routed; where lines differ, the question is routed as it is and the line of its task is added before the
answer is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.rewording import ends_with, with_line

Worded = tuple[tuple[Record, ...], tuple[str | None, ...]]
"""Records, and the line that was added to each of them."""


@dataclass(frozen=True)
class TrainedLines:
    """Lines of all learned tasks by name; None for a task whose questions share none."""

    by_task: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def common(self) -> str | None:
        """The line of all learned tasks; None where one has another, or none."""
        lines = set(self.by_task.values())
        return lines.pop() if len(lines) == 1 else None

    def before_routing(self, records: Sequence[Record], named: str | None = None) -> Worded:
        """Records with the line of the task that is named, or else with the one that all tasks share."""
        line = self.common if named is None else self.by_task.get(named)
        return self._added(records, [line] * len(records))

    def after_routing(self, records: Sequence[Record], tasks: Sequence[str | None]) -> Worded:
        """Records with the lines of their tasks; a record of no task stays as it is."""
        lines = [None if task is None else self.by_task.get(task) for task in tasks]
        return self._added(records, lines)

    def _added(self, records: Sequence[Record], lines: Sequence[str | None]) -> Worded:
        known = set(self.by_task.values()) - {None}
        worded = []
        added = []
        for record, line in zip(records, lines, strict=True):
            # A question that ends with another task's line was meant so.
            has_line = any(ends_with(record, other) for other in known)
            is_missing = line is not None and not has_line
            worded.append(with_line(record, line) if is_missing else record)
            added.append(line if is_missing else None)
        return tuple(worded), tuple(added)
