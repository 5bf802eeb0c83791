"""A reply: an answer with the names of the tasks behind it, and sentences about the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hidecmoe_jax.evaluate.answer import Answer, Finding
from hidecmoe_jax.evaluate.fit import Fit, fit_of
from hidecmoe_jax.methods.gates.unknown import UNREACHED
from hidecmoe_jax.runs.evaluation import read_answers
from hidecmoe_jax.runs.folder import SeedFolder

REFUSED = 8
"""Exit code of a question that was refused, because it belongs to no known task."""


@dataclass(frozen=True)
class Reply:
    """An answer with the weights of the tasks, largest first, and a sentence about the decision.

    Attributes:
      answer: the same with the numbers behind the decision: score, threshold, margin.
      fit: how near the input is to its nearest task; None where the gate compared it with no task.
    """

    text: str
    weights: dict[str, float]
    decision: str
    answer: Answer
    fit: Fit | None = None

    @property
    def task(self) -> str | None:
        """Name of the task that answered; None where the base answered alone or nothing did."""
        return self.answer.task

    @property
    def known(self) -> bool | None:
        """Whether the input belongs to a known task, as `Answer.known`."""
        return self.answer.known

    @property
    def routing(self) -> dict[str, float]:
        """Shares of the tasks' experts by task name, largest first; they are no probabilities of being right."""
        return self.answer.routing

    @property
    def refused(self) -> bool:
        """Whether there is no text, because the input belongs to no known task."""
        return self.answer.refused

    @property
    def exit_code(self) -> int:
        """Exit code of `hidecmoe ask` for this question: 0, or 8 where it was refused."""
        return REFUSED if self.refused else 0

    def to_json(self) -> dict[str, Any]:
        """The reply as values that JSON can hold, with the keys of `hidecmoe ask --json`."""
        fit = None
        if self.fit is not None:
            fit = {
                "task": self.fit.task, "word": self.fit.word, "score": self.fit.score, "threshold": self.fit.threshold,
                "own_questions": self.fit.own, "own_lower": self.fit.lower,
            }  # fmt: skip
        return {
            "text": self.text,
            "task": self.task,
            "known": self.known,
            "refused": self.refused,
            "exit_code": self.exit_code,
            "routing": self.routing,
            "fit": fit,
            "decision": self.decision,
            "ended": self.answer.ended,
            "missing": list(self.answer.missing),
            "line_added": self.answer.line_added,
            "retired": self.answer.retired,
            "routing_text_cut": self.answer.routing_text_cut,
        }


def reply_of(answer: Answer, matches: Mapping[str, OwnMatches], *, named: str | None, fallback: str) -> Reply:
    """The reply for an answer.

    Args:
      matches: of every task's own test questions, by task.
      named: the task that was named, if one was.
      fallback: what answers where no task is chosen, as the end of a sentence.
    """
    weights = answer.routing
    if not weights:
        return Reply(answer.text, {}, "no routed experts: one model for everything", answer)
    sentence = f"answered as {named}, which was named"
    if named is None:
        sentence = _explain(answer, weights, fallback)
    if answer.missing:
        sentence += f"; left out because they could not be loaded: {', '.join(answer.missing)}"
    fit = None
    if answer.finding is not None:
        nearest = answer.tasks[answer.finding.nearest]
        fit = fit_of(answer.finding, nearest, matches[nearest].scores if nearest in matches else ())
    return Reply(answer.text, weights, sentence, answer, fit)


@dataclass(frozen=True)
class OwnMatches:
    """How the gate matched a task's own test questions when a row of a run was measured.

    Attributes:
      scores: of the questions that were nearest to the task; only a score of the nearest task is comparable.
      margins: over the next task's score, of the same questions; none where there is no other task.
    """

    scores: tuple[float, ...]
    margins: tuple[float, ...]


def read_matches(seed: SeedFolder, row: int, tasks: Sequence[str]) -> dict[str, OwnMatches]:
    """Matches of every task's own test questions, by task; of a task whose questions were not measured, nothing.

    Args:
      row: number of lessons that were learned.
    """
    by_task = {}
    for task in tasks:
        scores = []
        margins = []
        for line in read_answers(seed.answers(row, task, named=False)):
            finding = line.get("finding")
            if finding is None or finding["nearest"] != task:
                continue
            scores.append(finding["score"])
            if finding.get("ahead") is not None:
                margins.append(finding["ahead"])
        if scores:
            by_task[task] = OwnMatches(tuple(scores), tuple(margins))
    return by_task


def _explain(answer: Answer, weights: dict[str, float], fallback: str) -> str:
    """One sentence about a routing decision.

    Args:
      weights: by task, the largest first.
      fallback: what answers where no task is chosen.
    """
    first, *others = weights
    top = weights[first]
    finding = answer.finding
    if finding is not None and finding.unknown:
        outcome = "refused" if answer.refused else fallback
        if answer.retired is not None:
            return f"belongs to {answer.retired}; this task was retired; {outcome}"
        return f"belongs to no known task: {_unknown(answer.tasks, finding)}; {outcome}"
    if finding is not None and finding.tied and top < 1:
        outcome = "blended" if top > 0 else fallback
        nearest = answer.tasks[finding.nearest]
        return f"two tasks are nearly tied, {nearest} is only {finding.ahead:.3f} ahead; {outcome}"
    if top == 0:
        return f"belongs to no known task: {fallback}"
    # Weights may be one-hot, which hides how close the choice was; the scores do not.
    if finding is None or finding.ahead is None:
        return f"routed to {first}"
    return f"routed to {first}, its score is {finding.ahead:.3f} ahead of the next task's"


def _unknown(tasks: tuple[str, ...], finding: Finding) -> str:
    """Why an input is unknown."""
    nearest = f"{tasks[finding.nearest]} is nearest with score {finding.score:.3f}"
    if finding.threshold is None:
        return nearest
    if finding.threshold >= UNREACHED:
        return f"{nearest}, but none of its records lacked a picture or a text as this does"
    below = f"{nearest}, below its threshold {finding.threshold:.3f}"
    if finding.foreign is None:
        return below
    return f"{below} (which loses {100 * finding.foreign:g} % of the task's own)"
