"""What a run achieved, task by task: scores against the floor, training loss, and a judgement in words.

The terminal and the report's page show the same verdict. It is computed from a run's document alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Share by which the loss must be lower at the end of training to count as fallen.
LEAST_FALL = 0.02
MOST_STEPS = 20  # steps at either end whose losses are averaged
POCKET = "pocket"
POCKET_NOTE = (
    "the pocket base reads drawings of 56 x 56 pixels, not photographs: for your own pictures convert a real "
    "checkpoint (hidecmoe convert --help)"
)

EQUAL = 1e-6  # points by which two scores of the same answers may differ after rounding
LEARNED = "learned"
FORGOTTEN = "forgotten"
NOT_LEARNED = "not learned"
NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class TaskVerdict:
    """What a run achieved on one task. Scores are means over all seeds; None is not measured.

    Attributes:
      zero_shot, learned, now: score of the base model, right after the task's lesson, and after the last lesson.
      floor: score of `floor_answer` to every question, under the task's own scorer.
      first_loss, last_loss: mean training loss at the start and at the end of the first seed's training.
      steps: optimiser steps of that training.
      outcome: `learned`, `forgotten` (above the floor only right after its lesson), `not learned` or `not judged`.
      warnings: sentences about the task, without its name.
    """

    task: str
    zero_shot: float | None
    learned: float | None
    now: float | None
    floor: float | None
    floor_answer: str | None
    first_loss: float | None
    last_loss: float | None
    steps: int
    outcome: str
    warnings: tuple[str, ...]

    @property
    def no_better_than_before(self) -> bool:
        """Whether a task that was taught scores no higher now than the base model did."""
        was_measured = self.learned is not None and self.now is not None and self.zero_shot is not None
        return was_measured and not _above(self.now, self.zero_shot)


@dataclass(frozen=True)
class Verdict:
    """Verdict on a run.

    Attributes:
      summary: one sentence, such as `2 of 3 tasks learned, 1 forgotten`.
      notes: sentences about the run as a whole, such as what its base cannot read.
    """

    method: str
    tasks: tuple[TaskVerdict, ...]
    summary: str
    notes: tuple[str, ...]

    @property
    def doubtful(self) -> bool:
        """Whether there is anything to warn about."""
        return any(task.warnings for task in self.tasks)


def verdict_of(document: Mapping[str, Any]) -> Verdict:
    """Verdict on a run's document (`run_document`, or one of a comparison's `methods`).

    A document of an earlier version has no `floors` and no `lessons`: its tasks are not judged against a floor.
    """
    tasks = tuple(_task_verdict(document, column) for column in range(len(document["tasks"])))
    notes = []
    base = document.get("settings", {}).get("base", {}).get("path")
    has_warning = any(task.warnings for task in tasks)
    if base == POCKET and has_warning:
        notes.append(POCKET_NOTE)
    return Verdict(str(document["method"]), tasks, _summary(tasks), tuple(notes))


def _task_verdict(document: Mapping[str, Any], column: int) -> TaskVerdict:
    name = document["tasks"][column]
    matrix = document["matrix"]
    floor = (document.get("floors") or {}).get(name) or {}
    lessons = _lessons(document)
    losses, steps = _losses(document, name, lessons)
    first_loss, last_loss = losses
    taught = _taught_until(lessons, name)
    learned = None if taught is None else matrix[taught][column]
    # The last row of a method that teaches nothing is the base model's.
    now = matrix[sum(map(len, lessons))][column]
    verdict = TaskVerdict(
        task=name,
        zero_shot=matrix[0][column],
        learned=learned,
        now=now,
        floor=floor.get("score"),
        floor_answer=floor.get("answer"),
        first_loss=first_loss,
        last_loss=last_loss,
        steps=steps,
        outcome=_outcome(learned, now, floor.get("score")),
        warnings=(),
    )
    # Nothing is to be expected of a task that was not taught.
    return verdict if taught is None else replace(verdict, warnings=tuple(_warnings(verdict)))


def _lessons(document: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    """Names of the tasks of every lesson; without a record of them, every task is a lesson."""
    lessons = document.get("lessons")
    if lessons is not None:
        return lessons
    later_rows = document["matrix"][1:]
    was_taught = any(score is not None for row in later_rows for score in row)
    return [[task] for task in document["tasks"]] if was_taught else []


def _taught_until(lessons: Sequence[Sequence[str]], task: str) -> int | None:
    """Number of tasks taught once the lesson of `task` is over; None for a task that no lesson teaches."""
    taught = 0
    for lesson in lessons:
        taught += len(lesson)
        if task in lesson:
            return taught
    return None


def _losses(
    document: Mapping[str, Any], task: str, lessons: Sequence[Sequence[str]]
) -> tuple[tuple[float | None, float | None], int]:
    """Mean loss at the start and at the end of the training of a task's lesson, and its number of steps."""
    curves = document.get("curves") or {}
    # Tasks that are learned together have one curve, under a name of its own.
    alone = any(list(lesson) == [task] for lesson in lessons)
    points = curves.get(task if alone else "joint") or []
    losses = [loss for _, loss in points if loss is not None]
    if not losses:
        return (None, None), 0
    count = max(1, min(MOST_STEPS, len(losses) // 5))
    return (statistics.fmean(losses[:count]), statistics.fmean(losses[-count:])), len(points)


def _above(score: float, other: float) -> bool:
    """Whether a score is higher by more than rounding."""
    return score > other + EQUAL


def _outcome(learned: float | None, now: float | None, floor: float | None) -> str:
    if now is None or floor is None:
        return NOT_JUDGED
    if _above(now, floor):
        return LEARNED
    if learned is not None and _above(learned, floor):
        return FORGOTTEN
    return NOT_LEARNED


def _warnings(task: TaskVerdict) -> list[str]:
    """What is wrong with a task that was taught: its score first, then its training loss."""
    return _score_warnings(task) + _loss_warnings(task)


def _score_warnings(task: TaskVerdict) -> list[str]:
    """Warning about a score that a constant answer, or the base model, would reach."""
    if task.outcome not in (FORGOTTEN, NOT_LEARNED):
        if not task.no_better_than_before:
            return []
        return [f"{task.now:.1f} is no better than before training: {task.zero_shot:.1f}"]
    constant = f"the most frequent answer ({_short(task.floor_answer)}) to every question scores {task.floor:.1f}"
    if task.outcome == FORGOTTEN:
        return [f"{task.now:.1f} now against {task.learned:.1f} right after learning; {constant}"]
    return [f"{task.now:.1f} is no better than a constant: {constant}"]


def _loss_warnings(task: TaskVerdict) -> list[str]:
    """Warning about a training loss that has not fallen."""
    first = task.first_loss
    last = task.last_loss
    # A single step has no course.
    if first is None or task.steps < 2 or last < (1 - LEAST_FALL) * first:
        return []
    return [f"its training loss has not fallen: {first:.3f} at first, {last:.3f} after {task.steps} steps"]


def _summary(tasks: Sequence[TaskVerdict]) -> str:
    """How many tasks have which outcome, as a sentence without a period."""
    outcomes = [task.outcome for task in tasks]
    others = []
    for outcome in (FORGOTTEN, NOT_LEARNED, NOT_JUDGED):
        count = outcomes.count(outcome)
        if count:
            others.append(f"{count} {outcome}")
    word = "task" if len(tasks) == 1 else "tasks"
    return ", ".join([f"{outcomes.count(LEARNED)} of {len(tasks)} {word} learned", *others])


def _short(text: str, width: int = 40) -> str:
    """A text in quotes, cut to a width."""
    cut = text if len(text) <= width else text[: width - 3] + "..."
    return f"'{cut}'"


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict as lines for a terminal: a table of all tasks, a sentence, warnings and notes."""
    width = max(4, *(len(task.task) for task in verdict.tasks)) if verdict.tasks else 4
    lines = [f"{'task':<{width}}  {'zero-shot':>9}  {'learned':>7}  {'now':>6}  {'floor':>6}  outcome"]
    for task in verdict.tasks:
        scores = f"{_number(task.zero_shot):>9}  {_number(task.learned):>7}  {_number(task.now):>6}"
        lines.append(f"{task.task:<{width}}  {scores}  {_number(task.floor):>6}  {task.outcome}")
    lines.append(f"{verdict.summary} (learned: right after its lesson; floor: the most frequent answer to everything)")
    for task in verdict.tasks:
        lines += [f"warning: {task.task}: {text}" for text in task.warnings]
    lines += [f"note: {text}" for text in verdict.notes]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
