"""What an answer is: its text, the routing behind it, and the settings of generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jax import Array

from hidecmoe_jax.data.records import Record
from hidecmoe_jax.methods.base import Decision


@dataclass(frozen=True)
class Writing:
    """How answers are generated.

    Attributes:
      batch: samples answered together.
      max_new_tokens, temperature, top_p: as in `Sampling`; temperature 0 is greedy.
      bucket: prompt lengths are rounded up to a multiple of it.
      max_length: longest prompt, image tokens included.
      unknown: what becomes of an input that belongs to no known task (the gate's `foreign` sets how many): the `base`
        model answers it with nothing but what all tasks share, or the question is refused (`refuse`): an empty text.
    """

    batch: int = 32
    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    bucket: int = 16
    max_length: int = 2048
    unknown: Literal["base", "refuse"] = "base"

    def __post_init__(self):
        if min(self.batch, self.max_new_tokens, self.bucket, self.max_length) < 1:
            raise ValueError("batch, max_new_tokens, bucket and max_length must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} must be at least 0 and top_p {self.top_p} in (0, 1]")


@dataclass(frozen=True)
class Finding:
    """How the gate matched one record with a task. The names of the fields are keys of answers files.

    Attributes:
      nearest: number of the task with the best score, and `score`, that score.
      threshold: score below which the record belongs to no task; None where the gate has no thresholds.
      foreign: fraction of a task's own inputs that the threshold was calibrated to call unknown.
      ahead: margin of the score over the next task's; None where there is no other.
      unknown: the score is below the threshold. `tied`: the margin is too small to be sure.
    """

    nearest: int
    score: float
    threshold: float | None
    foreign: float | None
    ahead: float | None
    unknown: bool
    tied: bool


@dataclass(frozen=True)
class Answer:
    """The answer to one record.

    Attributes:
      weights: weight of every task, by number; empty where no expert is routed.
      scores: the gate's similarity to every task.
      ended: False where `max_new_tokens` cut the text.
      finding: how the gate matched the record with a task; None where the task was named or there is no gate.
      refused: no text, because the record belongs to no known task.
      missing: tasks that could not be loaded and were left out of the choice.
      tasks: names of the tasks by number; empty where the caller has no names.
      line_added: instruction line of the task's training that the question lacked and got; None for none.
      retired: the retired task that the record belongs to; None for any other record.
      routing_text_cut: whether the gate has read only the beginning of the question.
      tokens: ids of the text, without the end token; empty where it was dropped.
    """

    id: str
    text: str
    weights: tuple[float, ...]
    scores: tuple[float, ...]
    ended: bool
    finding: Finding | None = None
    refused: bool = False
    missing: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    line_added: str | None = None
    retired: str | None = None
    routing_text_cut: bool = False
    tokens: tuple[int, ...] = field(default=(), repr=False)

    @property
    def routing(self) -> dict[str, float]:
        """Weights of the tasks' experts by task name, largest first; they are no probabilities of being right."""
        # There are more slots than learned tasks, and none for a model without routed experts.
        by_task = zip(self.tasks, self.weights, strict=False)
        largest_first = sorted(by_task, key=lambda item: -item[1])
        return dict(largest_first)

    @property
    def task(self) -> str | None:
        """Name of the task with the largest weight; None where no task's experts answered."""
        routing = self.routing
        if not any(routing.values()):
            return None
        return next(iter(routing))

    @property
    def known(self) -> bool | None:
        """Whether the input reaches the threshold of its nearest task; None where nothing judged that: the task was
        named, or the gate has no threshold."""
        if self.finding is None:
            return None
        # Inputs of a retired task are unknown whether or not the gate has thresholds.
        if self.finding.threshold is None and not self.finding.unknown:
            return None
        return not self.finding.unknown

    @property
    def choice(self) -> int:
        """Number of the task with the largest weight, -1 where none is routed."""
        return int(np.argmax(self.weights)) if self.weights else -1


def unwritten(records: Sequence[Record], decision: Decision, writing: Writing) -> list[Answer]:
    """Answer objects with routing filled in and text still empty.

    Args:
      decision: one row a record; further rows are ignored.
    """
    weight_BN = np.asarray(decision.weight_BN)
    score_BN = np.asarray(decision.score_BN)
    answers = []
    for row, record in enumerate(records):
        finding = _finding(decision, row)
        refused = writing.unknown == "refuse" and finding is not None and finding.unknown
        # Plain numbers, because answers are written as JSON.
        weights = tuple(weight_BN[row].tolist())
        scores = tuple(score_BN[row].tolist())
        answers.append(Answer(record.id, "", weights, scores, ended=False, finding=finding, refused=refused))
    return answers


def _finding(decision: Decision, row: int) -> Finding | None:
    """How the gate matched the record of a row; None where it compared the record with no task."""
    match = decision.match
    tasks = decision.weight_BN.shape[1]
    if match is None or not tasks:
        return None
    # The score is infinite where no task is learned yet.
    score = match.score_B[row]
    if not np.isfinite(score):
        return None
    return Finding(
        nearest=int(match.nearest_B[row]),
        score=float(score),
        threshold=_finite(match.threshold_B[row]),
        foreign=match.unknown_share,
        ahead=_finite(match.margin_B[row]),
        unknown=bool(match.is_unknown_B[row]),
        tied=bool(match.is_tied_B[row]),
    )


def _finite(value: np.ndarray | Array) -> float | None:
    """The value as a plain number; None for infinity, which JSON cannot hold."""
    return float(value) if np.isfinite(value) else None


def with_text(answer: Answer, text: str, ended: bool, tokens: Sequence[int] = ()) -> Answer:
    """The answer with its text and the ids of it, which are dropped where the record is refused."""
    if answer.refused:
        return replace(answer, text="", ended=ended)
    return replace(answer, text=text, ended=ended, tokens=tuple(tokens))
