"""Test questions that a report shows with their answers, and a task's most frequent wrong answers.

They are chosen while the run's data is open and kept in facts.json, so a report can be written again without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.report.confusions import Judged, confusions, of_many_classes, worst_first, worth_showing
from hidecmoe_jax.scoring.score import bounded, score

SHOWN = 8  # questions a task


@dataclass(frozen=True)
class Asked:
    """Questions of one task that a report shows, as JSON types, and its confusions, most frequent first."""

    questions: list[dict[str, Any]]
    confusions: list[dict[str, str | int]]


def asked(task: Task, records: Sequence[Record], answers: Mapping[str, str]) -> Asked:
    """Chooses questions of a task: wrong answers of the most frequent confusions first, then right ones, classes mixed.

    Args:
      answers: final answer by record id; where some are missing, questions of many classes are chosen.
    """
    references = {record.id: record.references for record in records}
    if set(answers) != set(references):
        places = of_many_classes([record.references[0] for record in records], SHOWN)
        questions = [_question(task, records[place], None) for place in places]
        return Asked(questions, [])
    scores = score(task.scorer, answers, references).per_item
    judged = [Judged(record.references[0], answers[record.id], scores[record.id]) for record in records]
    if bounded(task.scorer):
        places = worth_showing(judged, SHOWN)
        pairs = confusions(judged)
    else:
        # A caption is neither right nor wrong.
        places = worst_first([answer.score for answer in judged], SHOWN)
        pairs = []
    questions = [_question(task, records[place], judged[place].score) for place in places]
    return Asked(questions, pairs)


def _question(task: Task, record: Record, points: float | None) -> dict[str, Any]:
    """A test question as facts.json has it; `score` is that of its answer alone."""
    image = record.images[0] if record.images else None
    return {
        "id": record.id,
        "question": record.turns[-1].question,
        "answer": record.references[0],
        "image": image,
        "digest": task.digests.get(image) if image else None,
        "images": len(record.images),
        "score": points,
    }
