"""Alternative texts of a report's figures: what a figure shows, with its numbers, for those who do not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hidecmoe_jax.report.numbers import number
from hidecmoe_jax.report.verdict import verdict_of

Document = Mapping[str, Any]


def alternative_text(stem: str, document: Document) -> str:
    """What the figure of that name shows of a run's or a comparison's document."""
    return f"{stem.replace('_', ' ')}: {_TEXTS[stem](document)}"


def _outcome(document: Document) -> str:
    parts = []
    for task in verdict_of(document).tasks:
        marks = (
            ("before training", task.zero_shot),
            ("right after learning", task.learned),
            ("now", task.now),
            ("most frequent answer", task.floor),
        )
        parts.append(f"{task.task} {_listed([f'{name} {_score(value)}' for name, value in marks])}")
    return _sentence(parts)


def _matrix(document: Document) -> str:
    names = ["zero-shot"]
    names += [f"after {task}" for task in document["tasks"]]
    rows = []
    for name, scores in zip(names, document["matrix"], strict=False):
        cells = [f"{task} {_score(score)}" for task, score in zip(document["tasks"], scores, strict=True)]
        rows.append(f"{name} {_listed(cells)}")
    return _sentence(rows)


def _routing(document: Document) -> str:
    tasks = columns = document["tasks"]
    table = document["routing_confusion"]
    if document.get("locator_confusion"):
        columns = document["locator_confusion"]["columns"]
        table = document["locator_confusion"]["counts"]
    rows = []
    for task, counts in zip(tasks, table, strict=True):
        cells = [f"{count} to {column}" for column, count in zip(columns, counts, strict=True) if count]
        rows.append(f"of {sum(counts)} questions of {task} {_listed(cells)}")
    return _sentence(rows)


def _sizes(document: Document) -> str:
    parts = []
    for kind in ("stored", "archived", "trained"):
        counts = document[f"{kind}_parameters"]
        if counts is not None:
            parts.append(f"{kind} {number(counts['total'], 0)} parameters")
    for task, added in document["added_parameters"].items():
        total = number(sum(added.values()), 0)
        parts.append(f"{task} added {total}")
    return _sentence(parts)


def _loss(document: Document) -> str:
    parts = []
    for name, curve in document["curves"].items():
        losses = [(step, loss) for step, loss in curve if loss is not None]
        if losses:
            first_step, first = losses[0]
            last_step, last = losses[-1]
            parts.append(f"{name} from {first:.3f} at step {first_step} to {last:.3f} at step {last_step}")
    return _sentence(parts)


def _growth(document: Document) -> str:
    parts = []
    for task, added in zip(document["tasks"], document["growth"]["experts"], strict=False):
        parts.append(f"{task} added {_listed(list(map(str, added)))} experts by layer")
    return _sentence(parts)


def _expansion(document: Document) -> str:
    grown = document["growth"]
    parts = []
    for task, benefits in zip(document["tasks"], grown["worth"], strict=False):
        parts.append(f"{task} {_listed([f'{benefit:.2f}' for benefit in benefits])} by layer")
    layers = _listed(list(map(str, grown["expanded"]))) if grown["expanded"] else "none"
    return _sentence([*parts, f"expanded layers {layers}"])


def _last_and_forgetting(document: Document) -> str:
    parts = []
    for method in document["methods"]:
        parts.append(f"{method['label']} Last {_score(method['last'])}, forgetting {_score(method['forgetting'])}")
    return _sentence(parts)


def _last_by_task(document: Document) -> str:
    parts = []
    for method in document["methods"]:
        cells = [f"{task.task} {_score(task.now)}" for task in verdict_of(method).tasks]
        parts.append(f"{method['label']} {_listed(cells)}")
    return _sentence(parts)


def _score(value: float | None) -> str:
    return "not measured" if value is None else number(value, 1)


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts)


def _sentence(parts: Sequence[str]) -> str:
    return "; ".join(parts) + "."


_TEXTS = {
    "outcome": _outcome,
    "accuracy_matrix": _matrix,
    "forgetting_curves": _matrix,
    "routing_confusion": _routing,
    "expert_sizes": _sizes,
    "training_loss": _loss,
    "growth": _growth,
    "expansion": _expansion,
    "last_and_forgetting": _last_and_forgetting,
    "last_by_task": _last_by_task,
}
