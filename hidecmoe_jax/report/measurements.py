"""Inputs of a run's report: what each seed measured (`SeedResult`) and what all seeds share (`RunFacts`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.scoring.matrix import Matrix

Counts = Sequence[Sequence[int]]
Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class SeedResult:
    """Measurements of one seed.

    Attributes:
      seed: the seed.
      matrix: T + 1 rows of T scores (row 0 zero-shot, row k after task k), None where not measured; a method that
        never learns has row 0 only.
      named_task_matrix: like `matrix`, with the task named instead of routed; the last row alone may be measured.
      routing_confusion: T x T counts of the final model, rows the true task, columns the task it was routed to.
      locator_confusion: T x (T + 1) counts of the gate's decisions, the last column inputs of no known task; None
        where the method has no gate that decides.
      routing_accuracy: 0-100; computed from the confusion matrix where left out.
      unparsed: counts in the shape of `matrix` of answers from which no result could be parsed.
      seconds: wall-clock by phase.
      answers: {"all": number of answers that the cells score, "reused": how many were taken from other cells}.
      curves: training loss as (step, loss) by stage name, in the order trained.
      milliseconds_per_answer: wall-clock of one generated answer; None where all were reused.
      answers_compiled: whether that includes compilation, because no task's questions filled a second batch.
    """

    seed: int
    matrix: Matrix
    named_task_matrix: Matrix | None = None
    routing_confusion: Counts | None = None
    locator_confusion: Counts | None = None
    routing_accuracy: float | None = None
    unparsed: Sequence[Sequence[int | None]] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, int] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    milliseconds_per_answer: float | None = None
    answers_compiled: bool = False


@dataclass(frozen=True)
class RunFacts:
    """Facts that are the same for all seeds of a run.

    Attributes:
      method: name of the method, e.g. `hide-frozen-projector`.
      tasks: names in the order learned.
      scorers: scorer of each task.
      stored_parameters: numbers a served model needs beyond the base, {"total", "experts", "routers", "locator",
        "projector"}; None where unknown.
      archived_parameters: the same for what the ledger keeps (every task's own expert).
      trained_parameters: the same for what the optimiser updated in the largest single stage.
      stored_bytes, archived_bytes: size on disk.
      added_parameters: numbers that each task added, by kind; `experts` are its own.
      notes: remarks on a task's experts (dead, unused), by task.
      settings: configuration needed to repeat the run; JSON types.
      flops_per_query: operations of one prompt up to its first answer token: {"tokens", "pictures", "forward_base",
        "forward_method", "locator_prefill", "total", "ratio"}; None where unknown.
      confusions: a task's most frequent wrong answers as {"expected", "answered", "count"}, by task; first seed.
      bytes_per_task: size on disk of what a lesson added to the archive, by lesson.
      growth: where the first seed added experts and why, by task and layer; empty for methods that do not grow.
      floors: {"answer", "score"} of the best constant answer to each task's questions; empty where unknown.
      lessons: names of the tasks that each lesson taught; None where unknown.
      thresholds: below which an input is unknown to a task, with what their records promise, by task; first seed.
      wording: routing of test questions in other wordings, as `runs.worded.wordings_of`; empty where not measured.
      titles: names for people of tasks whose folders or `task.json` have another than the task's name.
    """

    method: str
    tasks: tuple[str, ...]
    scorers: tuple[str, ...]
    stored_parameters: Mapping[str, int] | None = None
    archived_parameters: Mapping[str, int] | None = None
    trained_parameters: Mapping[str, int] | None = None
    stored_bytes: int | None = None
    archived_bytes: int | None = None
    added_parameters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    growth: Mapping[str, Any] = field(default_factory=dict)
    flops_per_query: Mapping[str, int | float] | None = None
    floors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lessons: Sequence[Sequence[str]] | None = None
    confusions: Mapping[str, Sequence[Mapping[str, str | int]]] = field(default_factory=dict)
    bytes_per_task: Mapping[str, int] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    wording: Mapping[str, Any] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)


def check_consistent(facts: RunFacts, seeds: Sequence[SeedResult]) -> None:
    """Checks that seeds, scorers and the shapes of all tables agree with the tasks.

    Raises:
      DataError: with the first contradiction.
    """
    tasks = len(facts.tasks)
    numbers = [seed.seed for seed in seeds]
    problems = []
    if not seeds:
        problems.append("no seeds")
    if len(set(numbers)) != len(numbers):
        problems.append(f"repeated seeds {numbers}")
    if len(facts.scorers) != tasks:
        problems.append(f"{len(facts.scorers)} scorers for {tasks} tasks")
    if len(set(facts.tasks)) != tasks:
        problems.append(f"repeated task names {list(facts.tasks)}")
    for seed in seeds:
        problems += _wrong_shapes(seed, tasks)
    if problems:
        raise DataError(
            "These results do not fit together",
            where=facts.method,
            why=problems[0],
            remedy="evaluate the run again: `hidecmoe eval RUN`",
        )


def _wrong_shapes(seed: SeedResult, tasks: int) -> list[str]:
    """Tables of one seed whose shape contradicts the number of tasks, in words."""
    number = seed.seed
    problems = []
    # Optional tables that were not measured are empty here, so they have no wrong row.
    tables = {
        "matrix": seed.matrix,
        "routing_confusion": seed.routing_confusion or (),
        "unparsed": seed.unparsed or (),
        "named_task_matrix": seed.named_task_matrix or (),
    }
    for name, rows in tables.items():
        if any(len(row) != tasks for row in rows):
            problems.append(f"{name} of seed {number} has rows whose length is not the number of tasks, {tasks}")
    if seed.routing_confusion and len(seed.routing_confusion) != tasks:
        problems.append(f"routing_confusion of seed {number} does not have one row for each task")
    if seed.locator_confusion is not None:
        lengths = [len(row) for row in seed.locator_confusion]
        # One column more than tasks: the inputs that the gate takes for unknown.
        columns = tasks + 1
        if lengths != [columns] * tasks:
            problems.append(f"locator_confusion of seed {number} is not {tasks} x {columns}")
    return problems
