"""From a configuration to a run folder: learn a stream, add a task, evaluate again.

This is the top of the library: it opens what a run needs, holds the lock, walks the seeds and writes the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.data.stream import TaskSpec
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.runs import edits, results
from hidecmoe_jax.runs.config import RunConfig, StreamConfig, from_mapping, to_mapping
from hidecmoe_jax.runs.identity import ERRORS, changes_of, check_run, open_run
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.missing import gather
from hidecmoe_jax.runs.progress import forget
from hidecmoe_jax.runs.scores import Cells, Curve
from hidecmoe_jax.runs.seed_run import Options, SeedRun
from hidecmoe_jax.runs.session import Session, open_session, say, session_facts
from hidecmoe_jax.storage.files import read_json
from hidecmoe_jax.storage.lock import writer_lock
from hidecmoe_jax.storage.signals import Stop, graceful_stop

CONFIG = "config.yaml"


def learn(
    what: RunConfig | Method, stream: Sequence[str | Path] | Path | str, out: str | Path | None = None, **options: Any
) -> Path:
    """Learns a stream of tasks into a run folder and writes its report; returns the folder.

    `learn(config, out)` uses the config's stream; `learn(config_or_method, [task folders], out)` another one.

    Args:
      what: a config, or a method (then everything else has its default).
      options: `resume`, `overwrite`, `full_matrix`, `allow`, `on_corrupt`, as in `Options`.

    Raises:
      HidecmoeError: with the exit code of its kind; what was committed stays.
    """
    config = what if isinstance(what, RunConfig) else RunConfig(method=what)
    if out is None:
        out = stream
    else:
        tasks = tuple(TaskSpec(str(folder)) for folder in ([stream] if isinstance(stream, str | Path) else stream))
        config = dataclasses.replace(config, stream=StreamConfig(None, tasks))
    chosen, folder = Options(**options), Path(out)
    check_run(folder, resume=chosen.resume, overwrite=chosen.overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with writer_lock(folder), graceful_stop() as stop:
        session = open_session(config, errors=str(folder / ERRORS))
        enter(session, folder, chosen)
        walk(session, folder, chosen, stop)
    return folder


def enter(session: Session, folder: Path, options: Options) -> None:
    """Starts the run in a locked folder, or makes sure that it is the same one, and writes the resolved config.

    Raises:
      ConfigError: the method does not fit the base; nothing is written then.
    """
    session.config.method.init(session.model, 1)
    open_run(
        folder, session.identity(), resume=options.resume, overwrite=options.overwrite, allow=options.allow,
        session=session_facts(),
    )  # fmt: skip
    write_config(session.config, folder)


def walk(session: Session, folder: Path, options: Options, stop: Stop) -> None:
    """Runs every seed of a run that was entered, then writes the report."""
    for seed in session.config.seeds:
        SeedRun(session, folder / f"seed_{seed}", seed, options, stop).run()
    results.write(session, folder)


def write_config(config: RunConfig, folder: Path) -> None:
    """The resolved configuration, as YAML that `load_config` reads back."""
    part = folder / f"{CONFIG}.part"
    part.write_text(yaml.safe_dump(to_mapping(config), sort_keys=False), encoding="utf-8")
    part.replace(folder / CONFIG)


def config_of(run: str | Path) -> RunConfig:
    """The configuration a run was started with.

    Raises:
      CheckpointError: the folder holds no run.
    """
    path = Path(run) / CONFIG
    if not path.is_file():
        raise CheckpointError(
            "this is no run", where=str(run), why=f"there is no {CONFIG}", remedy="give a folder made by `hidecmoe run`"
        )
    return from_mapping(strict.read_yaml(path), str(path))


def add(
    run: str | Path, task: str | Path, *, epochs: int | None = None, rate: float | None = None, redo: bool = False
) -> Path:
    """Teaches a finished run one more task, or the last one again (`redo`); earlier experts keep every byte.

    The same call goes on with a task whose learning was interrupted.

    Raises:
      ConfigError: the method learns no tasks one by one, or the run is not finished.
      CheckpointError: something else than the new task differs from what the run was learned with.
    """
    folder = Path(run)
    config = config_of(folder)
    with writer_lock(folder), graceful_stop() as stop:
        names = open_stream_names(folder)
        if not config.method.traits.one_task_per_lesson:
            raise ConfigError(
                "this method cannot add a task",
                where=str(folder),
                why=f"{config.method.name} does not learn one by one",
            )
        spec = TaskSpec(str(Path(task).resolve()), epochs=epochs, rate=rate)
        finished = [len(Ledger(folder / f"seed_{seed}").tasks()) == len(names) for seed in config.seeds]
        going_on = not all(finished) and config.stream.tasks[-1:] == (spec,)
        if not all(finished) and not going_on:
            raise ConfigError(
                "the run is not finished", where=str(folder), why=f"some of its {len(names)} tasks are not learned",
                remedy=f"finish it first: hidecmoe run {folder / CONFIG} --out {folder} --resume",
            )  # fmt: skip
        if not going_on:
            stream = without_last(config.stream, names) if redo else config.stream
            stream = dataclasses.replace(stream, tasks=(*stream.tasks, spec))
            config = dataclasses.replace(config, stream=stream)
        session = open_session(config, errors=str(folder / ERRORS))
        changing = {session.stream.tasks[-1].name} | ({names[-1]} if redo else set())
        allow = ("tasks", *(f"{part}.{name}" for part in ("data", "own") for name in changing))
        options = Options(resume=True, allow=allow)
        if redo and not going_on:
            changes_of(folder, session.identity(), allow)  # refuses before anything is moved
            for seed in config.seeds:
                forget_last(folder / f"seed_{seed}", len(names), names[-1])
            edits.keep_until(folder, len(names) - 1)
        enter(session, folder, options)
        walk(session, folder, options, stop)
    return folder


def rollback(run: str | Path, tasks: int) -> Path:
    """Takes a run back to where it was after its first `tasks` tasks; later ones are moved aside, not deleted.

    Edits that were committed when more tasks were there are dropped; the others stay.

    Raises:
      ConfigError: no such point to go back to, or the method learns no tasks one by one.
    """
    folder = Path(run)
    config = config_of(folder)
    with writer_lock(folder), graceful_stop() as stop:
        names = open_stream_names(folder)
        least = min(len(Ledger(folder / f"seed_{seed}").tasks()) for seed in config.seeds)
        if not config.method.traits.one_task_per_lesson or not 1 <= tasks <= least or tasks == len(names):
            raise ConfigError(
                "there is no such point to go back to", where=str(folder),
                why=f"asked for {tasks}; {config.method.name} has learned {least} of {len(names)} tasks",
                remedy=f"give a number from 1 to {min(least, len(names) - 1)}",
            )  # fmt: skip
        stream = config.stream
        for known in range(len(names), tasks, -1):
            stream = without_last(stream, names[:known])
        session = open_session(dataclasses.replace(config, stream=stream), errors=str(folder / ERRORS))
        gone = names[tasks:]
        options = Options(
            resume=True, allow=("tasks", *(f"{part}.{name}" for part in ("data", "own") for name in gone))
        )
        changes_of(folder, session.identity(), options.allow)  # refuses before anything is moved
        for seed in config.seeds:
            home = folder / f"seed_{seed}"
            for row in range(len(names), tasks, -1):
                learned = row <= len(Ledger(home).tasks())
                (forget_last if learned else forget_begun)(home, row, names[row - 1])
            Curve(home / "metrics.jsonl").rewind((tasks, 0, 0))
        edits.keep_until(folder, tasks)
        enter(session, folder, options)
        walk(session, folder, options, stop)
    return folder


def without_last(stream: StreamConfig, names: Sequence[str]) -> StreamConfig:
    """The stream less its last task, which may be one of the pocket stream; `names` are those of all tasks."""
    if stream.tasks:
        return dataclasses.replace(stream, tasks=stream.tasks[:-1])
    rest = tuple(names[:-1])
    return dataclasses.replace(stream, pocket=dataclasses.replace(stream.pocket, tasks=rest) if rest else None)


def forget_last(folder: Path, row: int, task: str) -> None:
    """Takes the last lesson of a seed out, so that it can be learned again; answers are moved aside, not deleted."""
    aside = Ledger(folder).withdraw(row - 1)
    forget(folder)
    _move(_row(folder, row) + _columns(folder, task), aside)
    Cells(folder / "cells.json").forget(row, task)


def forget_begun(folder: Path, row: int, task: str) -> None:
    """Takes out what there is of a lesson that was not finished: checkpoints, and early answers to its task, which are
    moved aside."""
    forget(folder)
    _move(_columns(folder, task), _aside(folder, f"{row - 1:03d}_{task}"))
    Cells(folder / "cells.json").forget(row, task)


def forget_row(folder: Path, row: int) -> None:
    """Takes the measurements of a seed's last row out, so that they are made again; answers are moved aside."""
    _move(_row(folder, row), _aside(folder, f"row_{row:03d}"))
    Cells(folder / "cells.json").forget(row)


def _row(folder: Path, row: int) -> list[Path]:
    """Answers of a seed's last row, and those of the variants."""
    return [folder / "answers" / f"row_{row:03d}", folder / "variants"]


def _columns(folder: Path, task: str) -> list[Path]:
    """Answers to a task's questions in all rows of a seed."""
    return [path for name in (task, f"{task}.named") for path in sorted(folder.glob(f"answers/row_*/{name}.jsonl"))]


def _aside(folder: Path, name: str) -> Path:
    """A free name among what was taken out of a seed."""
    aside = folder / "withdrawn"
    aside.mkdir(exist_ok=True)
    return aside / f"{name}.{sum(1 for _ in aside.iterdir())}"


def _move(paths: list[Path], aside: Path) -> None:
    """Moves answers to names that begin with `aside`; of a row that is gone its columns are gone with it."""
    for path in paths:
        if path.exists():
            path.rename(aside.parent / f"{aside.name}.{path.parent.name}.{path.name}")


def open_stream_names(folder: Path) -> list[str]:
    """Names of the tasks a run was started with."""
    return list(read_json(folder / "run.json")["identity"]["tasks"])


def evaluate_run(
    run: str | Path, *, task: int | None = None, full_matrix: bool = False, skip_missing: bool = False
) -> Path:
    """Measures cells that are still missing: of one row (after `task` tasks), or of all of them; writes the report.

    Args:
      skip_missing: where tasks of the row cannot be loaded, measure it without them, in `seed_0/without/`. The report,
        which is about the whole run, is then left as it is.

    Raises:
      ConfigError: no such row.
      CheckpointError: names every task of the row that cannot be loaded.
    """
    folder = Path(run)
    config = config_of(folder)
    with writer_lock(folder), graceful_stop() as stop:
        session = open_session(config)
        open_run(folder, session.identity(), resume=True, overwrite=False, session=session_facts())
        lost: dict[str, str] = {}
        for seed in config.seeds:
            part = SeedRun(session, folder / f"seed_{seed}", seed, Options(resume=True, full_matrix=full_matrix), stop)
            found = gather(part.folder, config.method, [one.name for one in session.stream.tasks])
            if task is not None and not 0 <= task <= len(found.names):
                raise ConfigError(
                    "no such row", where=f"{folder}, seed {seed}",
                    why=f"asked for {task}, learned are {len(found.names)}",
                )  # fmt: skip
            lost |= found.lost
            found = found.first(task)
            found.require(config.method, skip_missing=skip_missing)
            if found.lost:
                aside = part.evaluate_without(len(found.kept), found.kept, tuple(found.lost))
                say(f"measured without {', '.join(found.lost)}: {aside}")
                continue
            for row in range(len(found.kept) + 1) if task is None else (task,):
                part.evaluate(row, found.kept)
        if lost:
            say(f"the report stays as it is, for tasks cannot be loaded: {'; '.join(lost.values())}")
        else:
            results.write(session, folder)
    return folder
