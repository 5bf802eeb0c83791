"""Gates before a new task is committed: what its lesson may cost the old tasks, and what the new one must reach.

A file `gates.yaml` says what is measured against which limit (docs/operate.md has the form). Scores are those of the
first seed, which is the one that answers: of the test split, and of folders of the user's own beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import ConfigError, GateError, nearest
from hidecmoe_jax.core.text_table import text_table
from hidecmoe_jax.core.yaml_text import read_yaml
from hidecmoe_jax.data.records import POLICY, Record
from hidecmoe_jax.data.stream import Task, TaskSpec, name_of
from hidecmoe_jax.data.task_source import NAMES, open_source
from hidecmoe_jax.evaluate.engine import Inputs
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.scoring.score import score
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.files import read_json, write_json

NAME = "gates"  # of the file in the run folder that records every decision
_ROUNDING = 1e-6  # points by which equal answers may differ


@dataclass(frozen=True)
class OldTasks:
    """Points that the score of every earlier task may fall by."""

    may_lose: float

    def __post_init__(self):
        if self.may_lose < 0:
            raise ValueError(f"may_lose is {self.may_lose:g}, but a score cannot be asked to rise: 0 or more")


@dataclass(frozen=True)
class NewTask:
    """Score that the new task must reach, under its own scorer."""

    at_least: float


@dataclass(frozen=True)
class OwnSet:
    """A further set of questions, beside the test splits.

    Attributes:
      folder: task folder; its test file is read, or else its training file. Relative to the file of the gates.
      task: task whose inputs it holds; by default the folder's name.
      may_lose: points that its score may fall by; of the new task there is no score before.
      at_least: score that it must reach.
    """

    folder: str
    task: str | None = None
    may_lose: float | None = None
    at_least: float | None = None

    def __post_init__(self):
        if self.may_lose is None and self.at_least is None:
            raise ValueError("a set needs may_lose, at_least, or both")


@dataclass(frozen=True)
class Gates:
    """Limits of `gates.yaml`."""

    old_tasks: OldTasks | None = None
    new_task: NewTask | None = None
    sets: tuple[OwnSet, ...] = ()

    def __post_init__(self):
        if self.old_tasks is None and self.new_task is None and not self.sets:
            raise ValueError("there is no gate: give old_tasks, new_task or sets")


@dataclass(frozen=True)
class Force:
    """Who commits a task that did not pass, and why."""

    by: str
    reason: str


@dataclass(frozen=True)
class OpenedSet:
    """A set whose records are read.

    Attributes:
      number: of its task, in the order of the run with the new task.
    """

    settings: OwnSet
    number: int
    task: str
    records: tuple[Record, ...]


@dataclass(frozen=True)
class GateResult:
    """One gate: what was measured against its limit.

    Attributes:
      before: score without the new task; None where it has none.
      value: what is compared, a score or a fall in points; None where nothing was measured, which passes no gate.
      rule: `at least` or `at most`.
    """

    gate: str
    before: float | None
    after: float | None
    value: float | None
    rule: str
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the value keeps the limit."""
        if self.value is None:
            return False
        if self.rule == "at most":
            return self.value <= self.limit + _ROUNDING
        return self.value >= self.limit - _ROUNDING


@dataclass(frozen=True)
class Gating:
    """Gates of one addition.

    Attributes:
      path: file that they were read from.
      force: commit in any case, recorded with a name and a reason.
    """

    path: Path
    gates: Gates
    force: Force | None = None

    def open_sets(self, names: Sequence[str]) -> tuple[OpenedSet, ...]:
        """The sets with their records.

        Args:
          names: of the run's tasks, the new one last.

        Raises:
          ConfigError: a set of no task, or one that asks what the new task may lose.
          DataError: a folder cannot be read.
        """
        return tuple(self._opened(settings, list(names)) for settings in self.gates.sets)

    def _opened(self, settings: OwnSet, names: list[str]) -> OpenedSet:
        folder = self.path.parent / settings.folder
        task = settings.task or name_of(TaskSpec(str(folder)))
        if task not in names:
            raise ConfigError(
                "a set of no task", where=f"{self.path}: {settings.folder}", why=f"it is of {task!r}",
                remedy=f"{nearest(task, names)}; `task:` names the one whose inputs it holds",
            )  # fmt: skip
        if task == names[-1] and settings.may_lose is not None:
            raise ConfigError(
                "the new task has no score before", where=f"{self.path}: {settings.folder}",
                why=f"may_lose is {settings.may_lose:g}, and {task} is the task that is added",
                remedy="give at_least instead",
            )  # fmt: skip
        source = open_source(folder, dict.fromkeys(NAMES), None)
        split = "test" if "test" in source.files else "train"
        return OpenedSet(settings, names.index(task), task, source.read(split, POLICY).records)


def read_gates(path: str | Path, *, force: Force | None = None) -> Gating:
    """Returns the gates of a YAML file.

    Raises:
      ConfigError: the file cannot be read, has an unknown key or a wrong value, or no gate at all.
    """
    path = Path(path)
    return Gating(path, strict.build(Gates, read_yaml(path), str(path)), force)


def judge(session: Session, run: Path, gating: Gating, sets: Sequence[OpenedSet]) -> tuple[GateResult, ...]:
    """Measures every gate of a run whose last task has just been learned.

    Args:
      sets: of `Gating.open_sets`.
    """
    gates = gating.gates
    tasks = session.stream.tasks
    row = len(tasks)
    cells = Cells(RunFolder(run).seed(session.config.seeds[0]).cells).read()
    results = []
    if gates.old_tasks is not None:
        for task in tasks[:-1]:
            before = _score(cells, row - 1, task.name)
            after = _score(cells, row, task.name)
            results.append(_fall(task.name, before, after, gates.old_tasks.may_lose))
    if gates.new_task is not None:
        after = _score(cells, row, tasks[-1].name)
        results.append(GateResult(tasks[-1].name, None, after, after, "at least", gates.new_task.at_least))
    if sets:
        archive = Ledger(RunFolder(run).seed(session.config.seeds[0]).path).archive()
        for own in sets:
            results += _of_set(session, run, archive, own)
    return tuple(results)


def _score(cells: Mapping[int, Mapping[str, Any]], row: int, task: str) -> float | None:
    cell = cells.get(row, {}).get(task)
    return None if cell is None else cell["score"]


def _fall(name: str, before: float | None, after: float | None, limit: float) -> GateResult:
    value = None if before is None or after is None else before - after
    return GateResult(name, before, after, value, "at most", limit)


def _of_set(session: Session, run: Path, archive: list[Groups | None], own: OpenedSet) -> list[GateResult]:
    """The gates of a set: its fall, its score, or both."""
    settings = own.settings
    name = f"{own.task} ({settings.folder})"
    task = session.stream.tasks[own.number]
    inputs = session.engine.inputs(own.records, name)
    after = _score_of(session, run, archive, task, inputs)
    results = []
    if settings.may_lose is not None:
        before = _score_of(session, run, archive[:-1], task, inputs)
        results.append(_fall(name, before, after, settings.may_lose))
    if settings.at_least is not None:
        results.append(GateResult(name, None, after, after, "at least", settings.at_least))
    return results


def _score_of(session: Session, run: Path, archive: list[Groups | None], task: Task, inputs: Inputs) -> float:
    """Score of the answers to a set, routed by the gate, after the archived lessons."""
    seed = session.config.seeds[0]
    method = session.config.method
    serving = method.serve(session.answering, session.learner_after(archive, run, seed))
    number = task.index if method.traits.needs_task_name else None
    decision = session.engine.decide(serving, inputs, number)
    texts = {}
    for batch in session.engine.answer(serving, inputs, decision, key=jax.random.key(seed)):
        texts |= {answer.id: answer.text for answer in batch}
    references = {record.id: record.references for record in inputs.records}
    return score(task.scorer, texts, references).value


def record(run: Path, task: str, gating: Gating, results: Sequence[GateResult]) -> None:
    """Appends a decision to `gates.json` of the run."""
    path = RunFolder(run).study(NAME)
    decisions = read_json(path)["decisions"] if path.is_file() else []
    passed = all(result.passed for result in results)
    lines = [strict.plain(result) | {"passed": result.passed} for result in results]
    decision = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "task": task, "gates": lines, "passed": passed,
        "committed": passed or gating.force is not None,
        "force": None if gating.force is None or passed else strict.plain(gating.force),
    }  # fmt: skip
    write_json(path, {"decisions": [*decisions, decision]})


def gate_lines(results: Sequence[GateResult]) -> list[str]:
    """The gates as a table for a terminal."""
    rows = [("gate", "before", "after", "measured", "limit", "")]
    for result in results:
        value = "not measured"
        if result.value is not None:
            value = f"falls {result.value:.1f}" if result.rule == "at most" else f"{result.value:.1f}"
        verdict = "passed" if result.passed else "NOT PASSED"
        limit = f"{result.rule} {result.limit:g}"
        rows.append((result.gate, _number(result.before), _number(result.after), value, limit, verdict))
    return text_table(rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def refusal(run: Path, task: str, gating: Gating, results: Sequence[GateResult]) -> GateError:
    """The error of a task that was taken back."""
    failed = sum(not result.passed for result in results)
    table = "\n         ".join(gate_lines(results))
    return GateError(
        f"{task} was not committed: {failed} of {len(results)} gates were not passed", where=str(gating.path),
        why=table,
        remedy=f"{run} is as it was before; more or better records, another --rate or --epochs, or, with a name that "
        "answers for it, --force --by NAME --reason TEXT",
    )  # fmt: skip
