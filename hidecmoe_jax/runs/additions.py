"""Whether a task can be added to a run, and what its config and its identity then are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.stream import TaskSpec, name_of
from hidecmoe_jax.runs.config import RunConfig, StreamConfig
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class Addition:
    """How a task is added: the config with it, whether that began before, whether every task is learned."""

    config: RunConfig
    resuming: bool
    finished: bool


def addition(folder: RunFolder, config: RunConfig, spec: TaskSpec, names: Sequence[str], *, redo: bool) -> Addition:
    """The addition of `spec` to a run of the tasks `names`.

    Raises:
      ConfigError: the method does not learn task by task, the run is not finished, or it has a task of this name.
    """
    if not config.method.traits.one_task_per_lesson:
        raise ConfigError(
            "this method cannot add a task", where=str(folder.path),
            why=f"{config.method.name} does not learn one by one",
            remedy=f"learn all of them anew: hidecmoe run {folder.config} --tasks DIR [DIR ...] --out NEW",
        )  # fmt: skip
    finished = min(learned_lessons(folder, config)) == len(names)
    # The config was written with the new task before its learning began.
    has_new_task = config.stream.tasks[-1:] == (spec,)
    # Learned, but perhaps not measured to the end: going on measures what is missing and learns nothing again.
    if has_new_task and not (finished and redo):
        return Addition(config, resuming=True, finished=finished)
    if not finished:
        raise ConfigError(
            "the run is not finished", where=str(folder.path),
            why=f"some of its {len(names)} tasks are not learned",
            remedy=f"finish it first: hidecmoe run {folder.config} --out {folder.path} --resume",
        )  # fmt: skip
    if not redo:
        _refuse_known_name(spec, names)
    stream = without_last(config.stream, names) if redo else config.stream
    stream = dataclasses.replace(stream, tasks=(*stream.tasks, spec))
    return Addition(dataclasses.replace(config, stream=stream), resuming=False, finished=finished)


def _refuse_known_name(spec: TaskSpec, names: Sequence[str]) -> None:
    """Refuses a new task of the run's name before a record is read.

    Raises:
      ConfigError: a task of the run has this name.
    """
    name = name_of(spec)
    if name not in names:
        return
    root = Path(spec.folder)
    remedy = f'another task: write {{"name": "{name[:62]}_2"}} into {root / "task.json"}'
    if name == names[-1]:
        remedy = f"--redo learns it again from this folder; {remedy}"
    raise ConfigError(
        "the run has a task of this name", where=str(root), why=f"{name!r} is one of {', '.join(names)}", remedy=remedy
    )


def learned_lessons(folder: RunFolder, config: RunConfig) -> list[int]:
    """How many lessons each seed has learned."""
    counts = []
    for seed in config.seeds:
        ledger = Ledger(folder.seed(seed).path)
        counts.append(len(ledger.tasks()))
    return counts


def fields_of(tasks: Iterable[str]) -> tuple[str, ...]:
    """Fields of a run's identity that change with these tasks."""
    fields = ["tasks"]
    for name in tasks:
        fields += [f"data.{name}", f"own.{name}"]
    return tuple(fields)


def without_last(stream: StreamConfig, names: Sequence[str]) -> StreamConfig:
    """The stream without its last task, which may be one of the pocket stream; `names` are those of all tasks."""
    if stream.tasks:
        return dataclasses.replace(stream, tasks=stream.tasks[:-1])
    rest = tuple(names[:-1])
    pocket = None
    if rest:
        pocket = dataclasses.replace(stream.pocket, tasks=rest)
    return dataclasses.replace(stream, pocket=pocket)
