"""Sizes of lessons against what a method needs of them: known when a config is opened, before anything trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.encoder import RecordEncoder
from hidecmoe_jax.data.stream import Stream
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.methods.gates.unknown import held_out_of
from hidecmoe_jax.runs.config import RunConfig


@dataclass(frozen=True)
class Sizes:
    """Lessons of too few records.

    Attributes:
      refusals: one for every lesson that a stage of the method cannot be carried out on.
      warnings: by the name of a lesson's last task, what its records are too few for without an error.
    """

    refusals: tuple[DataError, ...] = ()
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def lesson_sizes(config: RunConfig, stream: Stream, encoder: RecordEncoder) -> Sizes:
    """Looks at the number of records of every lesson, without those that are dropped for their length."""
    method = config.method
    tune = config.tune
    refusals = []
    warnings = {}
    for number, lesson in enumerate(method.lessons(len(stream.tasks))):
        tasks = [stream.tasks[task] for task in lesson]
        names = ", ".join(task.name for task in tasks)
        records = method.records(stream, lesson)
        encoded, _ = encoder.conversations(records, max_length=tune.max_length, max_dropped=tune.max_dropped)
        refusal = _refusal(method, number, len(encoded))
        if refusal is not None:
            where = f"task {names} ({tasks[0].root})"
            refusals.append(DataError(refusal.what, where=where, why=refusal.why, remedy=refusal.remedy))
        warnings[tasks[-1].name] = _without_threshold(method, names, len(encoded))
    return Sizes(tuple(refusals), warnings)


def _refusal(method: Method, lesson: int, count: int) -> DataError | None:
    """Why a lesson of so many records cannot be learned; None where it can."""
    try:
        for stage in method.stages(lesson):
            stage.require(count)
    except DataError as error:
        return error
    return None


def _without_threshold(method: Method, name: str, count: int) -> tuple[str, ...]:
    """A warning about a lesson too small for the threshold that tells unknown questions from its own."""
    if not method.gated or method.gate.foreign is None:
        return ()
    kept_apart = method.gate.unknown_settings.get("kept_apart")
    if kept_apart is None or held_out_of(count, kept_apart):
        return ()
    return (
        f"{name}: of {count} training records none is held out (kept_apart {kept_apart}), so no question "
        "will be unknown to it, whatever `foreign` says; add records or raise kept_apart",
    )
