"""What commands print with `--json`: one dataclass for every command, its schema, and its text.

A field keeps its name and meaning from version to version; new ones may be added. `hidecmoe config schema --of COMMAND`
prints the JSON Schema of a record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.json_schema import schema_of


@dataclass(frozen=True)
class Fit:
    """How near an input is to its nearest task.

    Attributes:
      task: name of the nearest task.
      word: `well`, `barely` or `not at all`; null where nothing was compared.
      score: of the gate, higher is nearer.
      threshold: below it an input is unknown; null where the gate has none.
      own_questions: number of the task's own test questions that the score was compared with.
      own_lower: part of these that score lower, 0 to 1.
    """

    task: str
    word: str | None
    score: float
    threshold: float | None
    own_questions: int
    own_lower: float | None


@dataclass(frozen=True)
class AskedQuestion:
    """A line of `ask --json`: a question and its answer.

    Attributes:
      id: of the question in its file; null for one of the command line.
      images: picture files.
      text: the answer; empty where the question was refused.
      task: name of the task that answered; null where the base answered alone or nothing did.
      known: whether the input belongs to a known task; null where the gate does not decide that.
      exit_code: 0, or 8 where the question was refused.
      routing: shares of the tasks' experts by task, largest first.
      decision: the routing in a sentence.
      ended: false where the answer was cut off at the longest that the config allows.
      missing: tasks that could not be loaded.
      line_added: the line of its task's training questions that was added to the question.
      retired: name of the retired task that the input belongs to.
      routing_text_cut: whether the gate has read only the beginning of the question, which is too long for it.
    """

    id: str | int | None
    question: str
    images: tuple[str, ...]
    text: str
    task: str | None
    known: bool | None
    refused: bool
    exit_code: int
    routing: dict[str, float]
    fit: Fit | None
    decision: str
    ended: bool
    missing: tuple[str, ...]
    line_added: str | None
    retired: str | None
    routing_text_cut: bool


@dataclass(frozen=True)
class LearnedLesson:
    """A lesson of one seed.

    Attributes:
      score: in the last row of the score matrix; null where it was not measured.
      records: training records.
      seconds: time of training.
      remark: experts without use, in a sentence; null where there are none.
    """

    index: int
    name: str
    score: float | None
    records: int
    seconds: float
    remark: str | None


@dataclass(frozen=True)
class ExpertBank:
    """Experts of one family.

    Attributes:
      family: such as `linears`.
      sites: where in a decoder layer they sit.
      first_layer: decoder layer of the first row of `owners`.
      owners: for every layer, the owner of every slot: number of a task, -1 empty, -2 fused of several tasks.
    """

    family: str
    rank: int
    slots: int
    sites: tuple[str, ...]
    first_layer: int
    owners: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Redirect:
    """A task that is answered from the expert of another one, in the bank `family`, in these decoder layers."""

    family: str
    task: int
    home: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class LearnedSeed:
    """What one seed of a run has learned.

    Attributes:
      parameters: beyond the base: {stored, archived, trained} by {experts, routers, locator, projector}.
    """

    seed: int
    lessons: tuple[LearnedLesson, ...]
    banks: tuple[ExpertBank, ...]
    redirects: tuple[Redirect, ...]
    parameters: dict[str, dict[str, int]]


@dataclass(frozen=True)
class CommittedEdit:
    """A committed retire, merge or calibrate: after how many tasks, when, and what it did."""

    tasks: int
    at: str
    what: str


@dataclass(frozen=True)
class Inspection:
    """A run as `inspect` shows it.

    Attributes:
      method: its name in the config.
      settings: section `method` of the config.
      base_parameters: of the frozen model.
    """

    method: str
    settings: dict[str, Any]
    seeds: tuple[LearnedSeed, ...]
    edits: tuple[CommittedEdit, ...]
    base_parameters: int


@dataclass(frozen=True)
class TaskPair:
    """Two tasks of `overlap`.

    Attributes:
      mixed: percent of their inputs that score nearer to the other task; null where the gate needs a task's name.
      cosine: of their most similar experts; null where they own none in a common layer.
      near: whether either reaches its limit.
      suggestion: command to try; null where there is none.
    """

    tasks: tuple[str, str]
    mixed: float | None
    cosine: float | None
    near: bool
    suggestion: str | None


@dataclass(frozen=True)
class Overlap:
    """Pairs of tasks, the most confused first, and the limits from which a pair is near."""

    mixed: float
    alike: float
    pairs: tuple[TaskPair, ...]


@dataclass(frozen=True)
class CheckedTask:
    """A task that could be opened: numbers of records and pictures, rule of scoring, and notes about its reading."""

    name: str
    title: str
    train: int
    val: int
    test: int
    pictures: int
    scorer: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DataProblem:
    """Something that must be corrected: the file, the place in it, the record's id where there is one, and what."""

    file: str
    source: str
    id: str | None
    problem: str


@dataclass(frozen=True)
class DataLeak:
    """A test item that is also a training item."""

    task: str
    id: str
    trained_in: str
    trained_id: str


@dataclass(frozen=True)
class DataCheck:
    """Result of `data check`.

    Attributes:
      ok: whether training may start.
      exit_code: 0, 2 for a wrong list of tasks, 3 for wrong data.
      measured: measurements of the data against the limits of the config, one line each.
      warnings: what does not prevent training.
    """

    ok: bool
    exit_code: int
    tasks: tuple[CheckedTask, ...]
    problems: tuple[DataProblem, ...]
    leaks: tuple[DataLeak, ...]
    allowed_leaks: int
    warnings: tuple[str, ...]
    measured: tuple[str, ...]


@dataclass(frozen=True)
class MachineCheck:
    """One line of `doctor`.

    Attributes:
      name: what was checked.
      passed: False makes the command end with exit code 1.
      result: version, size or message to print.
      remedy: what to do if the check failed.
    """

    name: str
    passed: bool
    result: str
    remedy: str = ""


@dataclass(frozen=True)
class Doctor:
    """All checks of `doctor`, and whether every one passed."""

    passed: bool
    checks: tuple[MachineCheck, ...]


@dataclass(frozen=True)
class RunPlan:
    """What a run needs of a machine, as `plan` computes it; bytes are those of one device, times are seconds.

    Attributes:
      target: the machine: devices, memory, rates, link, price, and where these are from.
      base: parameters, bytes and dtype of the frozen model.
      data: tokens, records and questions that were assumed.
      layout: of the base while training and answering, and what the backward pass computes again.
      batch: micro-batch, accumulation, records a step, and what to set for them.
      memory: bytes by phase and kind.
      step: operations, exchange and time of one optimiser step.
      stream: time and money of the whole stream.
      limits: what the numbers are not.
      compiled: memory and exchange of the compiled programs, with `--compile`.
    """

    target: dict[str, Any]
    method: str
    base: dict[str, Any]
    data: dict[str, int]
    layout: dict[str, str]
    batch: dict[str, Any]
    memory: dict[str, dict[str, int | float]]
    step: dict[str, int | float]
    stream: dict[str, int | float | None]
    limits: str
    compiled: dict[str, Any] | None = None


# command -> what it prints with `--json`
RECORDS = {
    "ask": AskedQuestion,
    "data check": DataCheck,
    "doctor": Doctor,
    "inspect": Inspection,
    "overlap": Overlap,
    "plan": RunPlan,
}


def record_schema(command: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what a command prints with `--json`."""
    return schema_of(RECORDS[command], {}, numbers_as_text=False)


def record_of(command: str, values: Mapping[str, Any]) -> Any:
    """The record of a command from plain values.

    Raises:
      ConfigError: a value is missing, unknown or of another type.
    """
    return strict.build(RECORDS[command], values, f"--json of {command}")


def json_text(record: Any, *, indent: int | None = 1) -> str:
    """A record as JSON text; `indent=None` for one line."""
    return json.dumps(strict.plain(record, complete=True), indent=indent, ensure_ascii=False, allow_nan=False)
