"""What a check notices about a config that may be learned, but hardly as it was meant; one line each.

A setting without effect is no error: a run of an older version may have it. Nor is an answer that differs from those of
the training data in its form alone, for a reference may be new. Both are said before training.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.scoring.score import score


@dataclass(frozen=True)
class Noticed:
    """What an opening noticed that the command which learns says too.

    Attributes:
      tasks: lines about answers and sizes, by the name of a task.
      settings: lines about the config.
    """

    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()


def without_effect(config: RunConfig) -> tuple[str, ...]:
    """Settings that nothing reads because of other settings."""
    writing = config.evaluate.writing
    method = config.method
    knows_unknown = method.gated and method.gate.foreign is not None
    lines = []
    if writing.unknown == "refuse" and not knows_unknown:
        lines.append(
            "evaluate.writing.unknown=refuse has no effect: no question is unknown to a gate without `foreign`, the "
            "share of a task's own questions that may be refused (method.gate.foreign=0.05)"
        )
    if writing.top_p != 1 and writing.temperature == 0:
        lines.append("evaluate.writing.top_p has no effect: evaluate.writing.temperature=0 always takes the best token")
    if method.gated and method.gate.kind == "locator" and method.gate.tie is None and method.gate.tied != "blend":
        lines.append(
            f"tied={method.gate.tied} of the gate has no effect: without `tie`, the least difference of two scores "
            "(method.gate.tie=0.1), no question is tied"
        )
    if config.scale.answer == "sharded":
        lines.append(
            "scale.answer=sharded has no effect, auto holds: weights that are divided over devices would be gathered "
            "from them for every new token (tensor divides the work too, replicated exchanges nothing)"
        )
    return tuple(lines)


def other_forms(task: Task) -> tuple[str, ...]:
    """References that training answers equal but for signs, capitals or the spelling of characters, where the scorer
    counts them as wrong."""
    trained = {}
    for record in task.train:
        answer = record.turns[-1].answer
        trained.setdefault(_folded(answer), answer)
    examples = []
    for record in task.test:
        answers = [trained[form] for form in map(_folded, record.references) if form in trained]
        marks = [score(task.scorer, {"": answer}, {"": record.references}).value for answer in answers]
        if marks and not max(marks):
            examples.append((record, answers[0]))
    if not examples:
        return ()
    record, answer = examples[0]
    return (
        f"{task.name}: {len(examples)} of {len(task.test)} test answers differ in their form alone from training "
        f"answers, which the scorer '{task.scorer}' counts as wrong, first {record.references[0][:60]!a} "
        f"({record.source}) and {answer[:60]!a}",
    )


def _folded(text: str) -> str:
    """Letters and digits of a text, small and in one spelling; of a text without letters every sign counts."""
    spelled = unicodedata.normalize("NFKC", text).casefold()
    if any(map(str.isalpha, spelled)):
        return "".join(filter(str.isalnum, spelled))
    return spelled
