"""Runs that were learned before pictures were padded as LLaVA pads them.

Their pictures were resized to the longest side first and padded then, which gives other pixels for every picture that
is not square; and a marker that does not stand in front of its question stayed where it is. They are read by today's
rules. What that changes is said, and answers that were written by the former rules are not taken for today's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.images import Limits, inspect
from hidecmoe_jax.data.prompts import placed
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.runs.status import say

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""The formats of pictures that every such run has recorded; later ones record TIFF too."""


def is_older(config: RunConfig) -> bool:
    """Whether the config of a run folder was written before today's rules for pictures and markers."""
    return config.stream.policy.limits.formats == FORMATS


def question_limits(config: RunConfig) -> Limits:
    """Limits of pictures in questions: those of the run, which for an older one knew no TIFF."""
    limits = config.stream.policy.limits
    return Limits(**vars(limits) | {"formats": Limits().formats}) if is_older(config) else limits


def reads_otherwise(config: RunConfig, task: Task) -> bool:
    """Whether a run is older and has another picture or prompt of a task in its answers than would be made today."""
    return is_older(config) and bool(_oblong(config, task.digests) or _moved(config, task))


def notes_of_older(config: RunConfig, tasks: Sequence[Task]) -> tuple[str, ...]:
    """What today's rules change for an older run, a line for every task; none where they change nothing."""
    if not is_older(config):
        return ()
    lines = []
    for task in tasks:
        pictures = _oblong(config, task.digests)
        questions = _moved(config, task)
        if pictures or questions:
            lines.append(
                f"{task.name}: {pictures} of {len(task.digests)} pictures are not square and {questions} questions do "
                "not begin with their picture; this run was begun by a version that resized such pictures before "
                "padding and left such markers in place. They are read by today's rules (docs/parity.md): what is "
                "learned or answered from now on may differ a little from what is there; learn it anew for one rule"
            )
    return tuple(lines)


def say_of_older(config: RunConfig, tasks: Sequence[Task]) -> None:
    """Prints what today's rules change for an older run."""
    for line in notes_of_older(config, tasks):
        say(f"note: {line}")


def note_of_questions(config: RunConfig, pictures: Iterable[str]) -> tuple[str, ...]:
    """The same for pictures in questions to an older run."""
    count = _oblong(config, pictures) if is_older(config) else 0
    if not count:
        return ()
    return (
        f"{count} pictures are not square, and this run was learned by a version that resized such pictures before "
        "padding; they are padded first now (docs/parity.md)",
    )


def _oblong(config: RunConfig, pictures: Iterable[str]) -> int:
    """Number of pictures that are not square; only their headers are read."""
    count = 0
    for picture in pictures:
        try:
            header = inspect(picture, question_limits(config))
        except DataError:
            # Whoever needs its pixels says what is wrong with it.
            continue
        count += header.width != header.height
    return count


def _moved(config: RunConfig, task: Task) -> int:
    """Number of questions whose markers are put elsewhere today."""
    count = 0
    for record in task.train + task.val + task.test:
        count += sum(placed(turn.question, config.template) != turn.question for turn in record.turns)
    return count
