"""What is scored: runs of this project with every seed, and folders of other evaluations, with their tasks in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data.benchmarks import StreamTask
from hidecmoe_jax.data.jsonfile import json_or_lines
from hidecmoe_jax.data.pocket.cache import pocket_tasks
from hidecmoe_jax.data.prepared import prepared
from hidecmoe_jax.data.stream import TaskSpec, carve, name_of, sample, scorer_name
from hidecmoe_jax.runs.folder import RunFolder, SeedFolder
from hidecmoe_jax.runs.sealing import read_record, read_settings
from hidecmoe_jax.scoring.rules import rule_of
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.signed import read_signed
from hidecmoe_jax.studies.predictions.layout import Found, find_results, place_results
from hidecmoe_jax.studies.predictions.references import Asked, questions_of, read_questions, task_folder


@dataclass(frozen=True)
class Task:
    """A task with its questions and its rule's name."""

    name: str
    rule: str
    asked: Asked


@dataclass(frozen=True)
class Source:
    """One matrix to score.

    Attributes:
      label: name in the tables.
      method: sources of one method are seeds or orders of it.
      tasks: in the order they were learned.
      cells: result files by (row, column); row k is after k tasks, row 0 zero-shot.
    """

    label: str
    method: str
    seed: int | None
    tasks: tuple[Task, ...]
    cells: Mapping[tuple[int, int], Found]
    notes: tuple[str, ...] = ()


def stream_tasks(stream: Sequence[StreamTask], *, root: Path | None, folders: Sequence[Path]) -> list[Task]:
    """Tasks of a benchmark: their folders below `root`, or those given, found by their names.

    Raises:
      ConfigError: neither a root nor folders.
      DataError: a task without a test file.
    """
    if root is None and not folders:
        raise ConfigError(
            "a benchmark needs its test files", why="neither --data nor --tasks is given",
            remedy="--data DIR names the folder that holds the folders of its tasks",
        )  # fmt: skip
    tasks = []
    for task in stream:
        matching = [folder for folder in folders if _is_of(folder, task)]
        if folders and not matching:
            raise ConfigError(
                f"no task folder is that of {task.name}", where=" ".join(map(str, folders)),
                why=f"a folder named {' or '.join((task.name, *task.aliases))} is looked for",
                remedy="rename the folder, or score without --stream",
            )  # fmt: skip
        folder = matching[0] if matching else task_folder(root, task)
        tasks.append(Task(task.name, task.rule, _asked(folder, task.rule, root=root)))
    return tasks


def _is_of(folder: Path, task: StreamTask) -> bool:
    return not task.names.isdisjoint(StreamTask(folder.resolve().name, "").names)


def folder_tasks(folders: Sequence[Path]) -> list[Task]:
    """Tasks of folders with a test file, each under the scorer of its `task.json` (`exact` without one).

    Raises:
      DataError, ConfigError: no test file, a wrong task.json, an unknown scorer.
    """
    return [_task_of(TaskSpec(str(folder))) for folder in folders]


def _task_of(spec: TaskSpec, name: str | None = None, val_fraction: float = 0.1) -> Task:
    folder = Path(spec.folder)
    rule = scorer_name(spec)
    data_set = prepared(folder)
    if data_set is not None:
        is_split = "test" not in data_set.files
        split = "train" if is_split else "test"
        asked = questions_of(data_set.items(split), folder / data_set.files[split], rule=rule)
    else:
        test = json_or_lines(folder / spec.test)
        train = json_or_lines(folder / spec.train)
        is_split = not test.is_file() and train.is_file()
        asked = _asked(folder, rule, test=train.name if is_split else test.name)
    questions = asked.questions
    notes = asked.notes
    if is_split:
        # The split that a run made, by the same hash of ids.
        records = tuple(_Split(question.id, (question.image,) if question.image else ()) for question in questions)
        carved = {record.id for record in carve(records, val_fraction, "test")[1]}
        questions = tuple(question for question in questions if question.id in carved)
        notes = (*notes, f"no {spec.test}: the part of {spec.train} that runs hold out")
    if spec.limit_test is not None:
        questions = sample(questions, spec.limit_test)
    return Task(name or name_of(spec), rule, Asked(asked.path, questions, notes))


@dataclass(frozen=True)
class _Split:
    """What the split of a file of records looks at."""

    id: str
    images: tuple[str, ...]
    source: str = ""


def _asked(folder: Path, rule: str, *, root: Path | None = None, test: str | None = None) -> Asked:
    # An unknown rule is refused before its questions are read.
    rule_of(rule, where=str(folder))
    return read_questions(folder, test=test, root=root, rule=rule)


def sources_of(
    paths: Sequence[str], tasks: Sequence[Task], aliases: Sequence[StreamTask], stages: Mapping[str, int | str]
) -> list[Source]:
    """Everything to score below the given paths.

    Args:
      paths: files or folders, or `NAME=PATH`; sources of one name are seeds or orders of one method.
      tasks: for folders of other evaluations; a run names its own, whose rules these replace where names agree.
      aliases: the same tasks with all their names.

    Raises:
      DataError, ConfigError: as `find_results` and `place_results`; a path that needs `tasks` without any.
    """
    sources: list[Source] = []
    for word in paths:
        name, path = _named(word)
        run = RunFolder(path)
        if run.comparison.is_file():
            below = []
            for label in read_signed(run.comparison)["runs"]:
                below += _of_run(RunFolder(path / label), tasks)
        elif run.identity.is_file():
            below = _of_run(run, tasks)
        else:
            below = [_of_folder(path, tasks, aliases, stages)]
        sources += [replace(source, method=name or source.method) for source in below]
    return _with_own_labels(sources)


def _named(word: str) -> tuple[str, Path]:
    """Name and path of `NAME=PATH`; a path that is there as it is written has no name."""
    name, equals, path = word.partition("=")
    if not equals or Path(word).exists():
        return "", Path(word)
    return name, Path(path)


def _of_folder(
    path: Path, tasks: Sequence[Task], aliases: Sequence[StreamTask], stages: Mapping[str, int | str]
) -> Source:
    found = find_results(path)
    if not tasks:
        raise ConfigError(
            "these answers need their questions", where=str(path), why="the folder is no run of this project",
            remedy="name a benchmark with --stream and --data, or the task folders with --tasks",
        )  # fmt: skip
    placed = place_results(path, found, aliases, stages)
    label = path.resolve().name if path.is_dir() else path.stem
    return Source(label, label, None, tuple(tasks), placed.cells, placed.notes)


def _of_run(run: RunFolder, tasks: Sequence[Task]) -> list[Source]:
    """Every seed of a run of this project."""
    names = list(read_record(run)["identity"]["tasks"])
    facts = seal.read_json(run.facts) or {}
    lessons = facts.get("lessons") or [[name] for name in names]
    taught = [0]
    for lesson in lessons:
        taught.append(taught[-1] + len(lesson))
    by_name = {task.name: task for task in tasks}
    scored = [by_name[name] for name in names if name in by_name]
    if len(scored) < len(names):
        stream = (read_settings(run) or {}).get("stream") or {}
        specs = zip(names, run_specs(stream), strict=True)
        fraction = stream.get("val_fraction", 0.1)
        scored = [by_name.get(name) or _task_of_run(run, spec, name, fraction) for name, spec in specs]
    label = run.path.resolve().name
    seeds = run.seeds()
    sources = []
    for seed in seeds:
        name = f"{label} seed {seed.number}" if len(seeds) > 1 else label
        cells = _cells(seed, names, taught)
        sources.append(Source(name, label, seed.number, tuple(scored), cells))
    return sources


def _task_of_run(run: RunFolder, spec: TaskSpec, name: str, val_fraction: float) -> Task:
    if not Path(spec.folder).is_dir():
        raise DataError(
            f"the folder of the run's task {name} is not there", where=spec.folder,
            why=f"{run.config} names it", remedy="say where the tasks lie now: --tasks DIR ...",
        )  # fmt: skip
    return _task_of(spec, name, val_fraction)


def run_specs(stream: Mapping[str, Any]) -> list[TaskSpec]:
    """Folders of a run's tasks as its config.yaml has them; the pocket stream is drawn where it is missing."""
    specs = []
    if stream.get("pocket") is not None:
        specs = [TaskSpec(str(folder)) for folder in pocket_tasks(**_tuples(stream["pocket"]))]
    for task in stream.get("tasks") or ():
        specs.append(TaskSpec(**task) if isinstance(task, dict) else TaskSpec(str(task)))
    return specs


def _tuples(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()}


def _cells(seed: SeedFolder, names: Sequence[str], taught: Sequence[int]) -> dict[tuple[int, int], Found]:
    cells = {}
    for row, place in enumerate(taught):
        for column, name in enumerate(names):
            path = seed.answers(row, name, named=False)
            # Reading it here refuses answers that the run did not write.
            if seal.read_bytes(path) is not None:
                cells[place, column] = Found(path, (), (path.parent.name, name))
    return cells


def _with_own_labels(sources: Sequence[Source]) -> list[Source]:
    """The sources, with a number behind labels that occur more than once."""
    counts: dict[str, int] = {}
    labelled = []
    for source in sources:
        count = counts.get(source.label, 0) + 1
        counts[source.label] = count
        labelled.append(source if count == 1 else replace(source, label=f"{source.label} ({count})"))
    return labelled
