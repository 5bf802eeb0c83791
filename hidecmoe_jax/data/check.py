"""Looks at a whole stream before anything is trained on it: `hidecmoe data check`.

Reads every record, decodes every picture, and compares every test item with all training items of all
tasks: an exam that was practised measures memory, not learning (reliability row DT20). All findings are
collected; nothing stops at the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.items import IMAGE, Record
from hidecmoe_jax.data.records import POLICY, SHOWN, BadRecords, Policy, Problem, write_problems
from hidecmoe_jax.data.stream import Stream, Task, TaskSpec, open_task

_CONTROL_LOOKS = ("</s>", "<s>", "USER:", "ASSISTANT:")


@dataclass(frozen=True)
class Leak:
    """A test item whose pictures (by content) and question also stand in training data."""

    task: str
    id: str
    trained_in: str
    trained_id: str

    def __str__(self) -> str:
        return f"test item {self.id!r} of {self.task} is training item {self.trained_id!r} of {self.trained_in}"


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
      tasks: those that could be opened.
      problems: everything that must be corrected.
      leaks: test items that are also training items.
      warnings: what deserves a look.
      allowed_leaks: how many leaks are let pass.
    """

    tasks: tuple[Task, ...]
    problems: tuple[Problem, ...]
    leaks: tuple[Leak, ...]
    warnings: tuple[str, ...]
    allowed_leaks: int = 0

    @property
    def ok(self) -> bool:
        """Whether training may start."""
        return not self.problems and len(self.leaks) <= self.allowed_leaks

    def text(self) -> str:
        """The report as a table and lists, for a terminal."""
        head = ("task", "train", "val", "test", "pictures", "answer words", "scorer")
        rows = [head, *(_row(task) for task in self.tasks)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"note     {task.name}: {note}" for task in self.tasks for note in task.notes]
        lines += [f"warning  {warning}" for warning in self.warnings]
        lines += _some("problem  ", [f"{problem.file or 'stream'}: {problem}" for problem in self.problems])
        lines += _some("leak     ", self.leaks)
        verdict = "ok" if self.ok else f"refused: {len(self.problems)} problems, {len(self.leaks)} leaks"
        return "\n".join([*lines, f"{verdict} ({self.allowed_leaks} leaks allowed)" if self.leaks else verdict])

    def require(self) -> Report:
        """Itself, if training may start.

        Raises:
          DataError: there are problems, or more leaks than allowed.
        """
        if self.ok:
            return self
        if self.problems:
            raise DataError(
                f"{len(self.problems)} problems in the data",
                where=self.problems[0].file,
                why="\n         ".join(_some("", self.problems)),
                remedy="`hidecmoe data check DIR` lists all in data_errors.jsonl",
            )
        raise DataError(
            f"{len(self.leaks)} test items are also training items",
            why="\n         ".join(_some("", self.leaks)),
            remedy="remove them from one side, or allow so many: --set stream.allowed_leaks=N",
        )


def check_stream(
    specs: Sequence[TaskSpec],
    *,
    policy: Policy = POLICY,
    val_fraction: float = 0.1,
    allowed_leaks: int = 0,
    length: Callable[[Record], int] | None = None,
    max_length: int | None = None,
) -> Report:
    """Opens every task and checks the stream; problems are collected, not raised (`Report.require` raises).

    Args:
      policy: how records are read; its `errors` file is replaced by the full list.
      length, max_length: tokens of a training record and how many are allowed, to report over-long ones.
    """
    opened, problems = [], []
    for index, spec in enumerate(specs):
        try:
            opened.append(open_task(spec, index, policy=replace(policy, errors=None), val_fraction=val_fraction))
        except BadRecords as error:
            problems += error.problems
        except DataError as error:
            problems.append(Problem(spec.folder, None, str(error), spec.folder))
    if len(opened) == len(specs):
        Stream(tuple(opened))
    report = examine(opened, allowed_leaks=allowed_leaks, length=length, max_length=max_length)
    report = replace(report, problems=(*problems, *report.problems))
    if policy.errors is not None:
        Path(policy.errors).unlink(missing_ok=True)
        if report.problems:
            write_problems(report.problems, policy.errors)
    return report


def examine(
    tasks: Sequence[Task],
    *,
    allowed_leaks: int = 0,
    length: Callable[[Record], int] | None = None,
    max_length: int | None = None,
) -> Report:
    """What can be wrong with opened tasks together: leaks, over-long records, contradictions."""
    problems = _length_problems(tasks, length, max_length) if length is not None and max_length else []
    leaks, warnings = _leaks(tasks)
    warnings += _look_alikes(tasks) + _contradictions(tasks)
    return Report(tuple(tasks), tuple(problems), tuple(leaks), tuple(warnings), allowed_leaks)


def _row(task: Task) -> tuple[str, ...]:
    words = [len(record.turns[-1].answer.split()) for record in task.train + task.test]
    spread = f"{min(words)} / {median(words):g} / {max(words)}"
    return (
        task.name,
        str(len(task.train)),
        str(len(task.val)),
        str(len(task.test)),
        str(len(task.digests)),
        spread,
        task.scorer,
    )


def _some(label: str, things: Sequence[object]) -> list[str]:
    lines = [f"{label}{thing}" for thing in things[:SHOWN]]
    return lines + ([f"{label}... and {len(things) - SHOWN} more"] if len(things) > SHOWN else [])


def _length_problems(tasks: Iterable[Task], length: Callable[[Record], int], max_length: int) -> list[Problem]:
    problems = []
    for task in tasks:
        for record in task.train:
            try:
                tokens = length(record)
            except DataError as error:
                problems.append(Problem(record.source, record.id, f"{error.what}: {error.why}", task.root))
                continue
            if tokens > max_length:
                text = f"{tokens} tokens, at most {max_length} are trained on, and nothing is cut"
                problems.append(Problem(record.source, record.id, text, task.root))
    return problems


def _keys(record: Record, digests: Mapping[str, str]) -> list[tuple[tuple[str, ...], str]]:
    pictures = tuple(digests[path] for path in record.images)
    return [(pictures, turn.question.replace(IMAGE, "").strip()) for turn in record.turns]


def _leaks(tasks: Sequence[Task]) -> tuple[list[Leak], list[str]]:
    trained, seen = {}, {}
    for task in tasks:
        for record in task.train:
            for key in _keys(record, task.digests):
                trained.setdefault(key, (task.name, record.id))
            for path in record.images:
                seen.setdefault(task.digests[path], task.name)
    leaks, near, practised = [], Counter(), Counter()
    for task in tasks:
        for record in task.test:
            hits = [trained[key] for key in _keys(record, task.digests) if key in trained]
            if hits:
                leaks.append(Leak(task.name, record.id, *hits[0]))
            elif any(task.digests[path] in seen for path in record.images):
                near[task.name] += 1
        practised[task.name] += sum(any(key in trained for key in _keys(record, task.digests)) for record in task.val)
    warnings = [
        f"{name}: {count} test items show a picture of the training data with another question"
        for name, count in near.items()
    ]
    warnings += [
        f"{name}: {count} validation items are also training items" for name, count in practised.items() if count
    ]
    return leaks, warnings


def _look_alikes(tasks: Iterable[Task]) -> list[str]:
    warnings = []
    for task in tasks:
        texts = [
            text
            for record in task.train + task.val + task.test
            for turn in record.turns
            for text in (turn.question, turn.answer)
        ]
        count = sum(any(look in text for look in _CONTROL_LOOKS) for text in texts)
        if count:
            warnings.append(
                f"{task.name}: {count} texts contain one of {', '.join(_CONTROL_LOOKS)}; "
                "they are read as plain characters"
            )
    return warnings


def _contradictions(tasks: Iterable[Task]) -> list[str]:
    warnings = []
    for task in tasks:
        answers: dict[object, set[str]] = {}
        for record in task.train:
            for key, turn in zip(_keys(record, task.digests), record.turns, strict=True):
                answers.setdefault(key, set()).add(turn.answer)
        count = sum(len(given) > 1 for given in answers.values())
        if count:
            warnings.append(f"{task.name}: {count} training questions have several different answers")
    return warnings
