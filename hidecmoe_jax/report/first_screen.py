"""First screen of a report in plain words: what came out, three numbers, and what to be careful about.

It shows the verdict that the terminal shows (`verdict_of`), computed from the report's document alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hidecmoe_jax.core.errors import counted
from hidecmoe_jax.report.numbers import number, signed
from hidecmoe_jax.report.rewordings import lowest_sentence
from hidecmoe_jax.report.verdict import LEARNED, NOT_JUDGED, TaskVerdict, Verdict, verdict_of

Document = Mapping[str, Any]

NOTICEABLE = 5.0  # points a task lost on average; from here on the headline says so


@dataclass(frozen=True)
class Headline:
    """One of the three numbers: its name, the number as text (None: not measured), and what it means."""

    name: str
    value: str | None
    meaning: str


@dataclass(frozen=True)
class Screen:
    """The first screen.

    Attributes:
      title: a few words.
      sentences: what came out, in whole sentences.
      warnings: tasks that learned nothing or whose loss has not fallen, and what was not measured.
      numbers: three numbers.
    """

    title: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    numbers: tuple[Headline, ...]


def run_screen(document: Document) -> Screen:
    """The first screen of one run."""
    verdict = verdict_of(document)
    return Screen(
        title=_title(document, verdict),
        sentences=tuple(_sentences(document, verdict.tasks)),
        warnings=(*_warnings(verdict), *verdict.notes),
        numbers=_numbers(document, verdict.tasks),
    )


def compare_screen(document: Document) -> Screen:
    """The first screen of a comparison: the methods by their final score, and the numbers of the best one."""
    measured = [method for method in document["methods"] if method["last"] is not None]
    ranked = sorted(measured, key=lambda method: -method["last"])
    unmeasured = [method["label"] for method in document["methods"] if method["last"] is None]
    warnings = []
    if unmeasured:
        warnings.append(f"Not measured to the end: {', '.join(unmeasured)}.")
    notes: dict[str, None] = {}  # an ordered set: a note on the base is the same for all
    for method in document["methods"]:
        verdict = verdict_of(method)
        warnings += [f"{method['label']}, {text}" for text in _warnings(verdict)]
        notes |= dict.fromkeys(verdict.notes)
    warnings += notes
    if not ranked:
        return Screen("Nothing to compare yet", (), tuple(warnings), ())
    best = ranked[0]
    title = f"Best at the end: {best['label']}"
    sentences = []
    if len(ranked) > 1:
        lead = best["last"] - ranked[1]["last"]
        if _rounds_to_zero(lead):
            title = f"No difference at the end between {best['label']} and {ranked[1]['label']}"
        else:
            sentences.append(f"{best['label']} is {number(lead, 1)} points ahead of {ranked[1]['label']}.")
        if _within_spread(best, ranked[1], lead):
            sentences.append("That is less than one standard deviation over seeds: the order may be chance.")
    order = [f"{method['label']} {number(method['last'], 1)}" for method in ranked]
    sentences.append(f"Mean score after the last lesson: {', '.join(order)}.")
    sentences.append(f"{best['label']}: {verdict_of(best).summary}.")
    numbers = _numbers(best, verdict_of(best).tasks)
    return Screen(title, tuple(sentences), tuple(warnings), numbers)


def _within_spread(first: Document, second: Document, lead: float) -> bool:
    """Whether two methods differ by less than the larger standard deviation over their seeds."""
    stds = [method["seeds"]["spread"]["last"]["std"] or 0.0 for method in (first, second)]
    return lead < max(stds)


def _rounds_to_zero(points: float) -> bool:
    """Whether a difference would be printed as 0.0."""
    return abs(points) < 0.05


def _warnings(verdict: Verdict) -> list[str]:
    """All warnings of a run, each beginning with its task."""
    texts = []
    for task in verdict.tasks:
        texts += [f"{task.task}: {text}." for text in task.warnings]
    return texts


def _learns(tasks: Sequence[TaskVerdict]) -> bool:
    """Whether any task was taught and scored afterwards."""
    return any(task.learned is not None for task in tasks)


def _title(document: Document, verdict: Verdict) -> str:
    tasks = verdict.tasks
    if any(task.now is None for task in tasks):
        return "Not measured to the end"
    if not _learns(tasks):
        return "Nothing was trained"
    outcomes = {task.outcome for task in tasks}
    if outcomes == {NOT_JUDGED}:
        return "Not judged: the score of a constant answer was not recorded"
    if outcomes != {LEARNED}:
        # `0 of 1 task learned` would be a strange way to put it.
        return verdict.summary if len(tasks) > 1 else tasks[0].outcome.capitalize()
    stale = [task for task in tasks if task.no_better_than_before]
    if stale:
        return f"{len(stale)} of {counted(len(tasks), 'task')} no better than before training"
    change = document["bwt_t_minus_1"]
    if change is not None and change <= -NOTICEABLE:
        return "Learned, and partly forgotten"
    # Without scores from right after each lesson nothing can be said about forgetting.
    return "Learned" if change is None else "Learned and kept"


def _sentences(document: Document, tasks: Sequence[TaskVerdict]) -> list[str]:
    out_of = "" if document.get("open_ended") else " of 100"
    count = counted(len(tasks), "task")
    last = document["last"]
    if last is None:
        return [f"The final score of some of the {count} was not measured."]
    if not _learns(tasks):
        return [f"{document['method']} is the model as it came: mean score {number(last, 1)}{out_of} on {count}."]
    sentences = [f"After {count} the mean score is {number(last, 1)}{out_of}{_before(tasks)}."]
    change = document["bwt_t_minus_1"]
    if change is not None:
        sentences.append(_kept(change))
    worst = min(tasks, key=lambda task: task.now)
    if len(tasks) > 1:
        sentences.append(f"The lowest score is that of {worst.task}, {number(worst.now, 1)}.")
    routed = document["routing_accuracy"]
    if routed is not None and len(tasks) > 1:
        sentences.append(f"{number(routed, 1)} % of the questions went to the expert of their own task.")
        reworded = lowest_sentence(document)
        if reworded is not None:
            sentences.append(reworded)
    if any(task.floor is None for task in tasks):
        sentences.append("`hidecmoe eval RUN` records the score of a constant answer to hold these against.")
    return sentences


def _before(tasks: Sequence[TaskVerdict]) -> str:
    """What the mean score now is to be held against, as far as it was measured."""
    parts = []
    zero_shot = _mean([task.zero_shot for task in tasks])
    if zero_shot is not None:
        parts.append(f"it was {number(zero_shot, 1)} before training")
    floor = _mean([task.floor for task in tasks])
    if floor is not None:
        parts.append(f"always giving the most frequent answer scores {number(floor, 1)}")
    return "; " + ", and ".join(parts) if parts else ""


def _kept(change: float) -> str:
    """Backward transfer in words; half a tenth of a point would be printed as 0."""
    if _rounds_to_zero(change):
        return "On average nothing was forgotten: earlier tasks score as they did right after they were learned."
    points = number(abs(change), 1)
    if change < 0:
        return f"Earlier tasks lost {points} points on average since they were learned."
    return f"Earlier tasks gained {points} points on average since they were learned."


def _numbers(document: Document, tasks: Sequence[TaskVerdict]) -> tuple[Headline, ...]:
    """Score now, change since learned or the score before, and the share of right experts or the floor."""
    last = Headline("Score now", _text(document["last"]), "mean over all tasks after the last lesson (Last)")
    before = _mean([task.zero_shot for task in tasks])
    floor = _mean([task.floor for task in tasks])
    change = document["bwt_t_minus_1"]
    routed = document["routing_accuracy"]
    second = Headline("Before training", _text(before), "mean zero-shot score of the base model")
    if len(tasks) > 1 and _learns(tasks):
        text = None if change is None else signed(change, 1)
        second = Headline("Change since learned", text, "mean over all tasks but the last (BWT)")
    third = Headline("Most frequent answer", _text(floor), "mean score of always giving it: the floor")
    if len(tasks) > 1 and routed is not None:
        third = Headline("Right expert", f"{number(routed, 1)} %", "questions answered by their own task's expert")
    return last, second, third


def _text(value: float | None) -> str | None:
    return None if value is None else number(value, 1)


def _mean(values: Sequence[float | None]) -> float | None:
    if None in values:
        return None
    return sum(values) / len(values)
