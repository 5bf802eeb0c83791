"""From a configuration to a run folder: learn a stream, add a task, roll back, evaluate again.

Every function here opens the run, holds its lock, walks the seeds and writes the report.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.stream import TaskSpec, name_of
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.runs import gates, journal, results
from hidecmoe_jax.runs.additions import addition, fields_of, learned_lessons, without_last
from hidecmoe_jax.runs.config import RunConfig, StreamConfig, config_of, config_text, moved, write_config
from hidecmoe_jax.runs.copies import working_folder
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.gates import Gating, OpenedSet
from hidecmoe_jax.runs.identity import UNDO, changes_of, continued, open_run, task_names
from hidecmoe_jax.runs.journal import Change
from hidecmoe_jax.runs.missing import load_archive
from hidecmoe_jax.runs.older import say_of_older
from hidecmoe_jax.runs.rows import Rows
from hidecmoe_jax.runs.scale import Scale
from hidecmoe_jax.runs.seed_run import Options, SeedRun
from hidecmoe_jax.runs.session import Session, open_session, say_notes, session_facts
from hidecmoe_jax.runs.start import check_start, evaluating, require_folders
from hidecmoe_jax.runs.status import MINUTES, Status, say
from hidecmoe_jax.runs.trackers import require_trackers
from hidecmoe_jax.runs.writing import change_run, gone_on, writing
from hidecmoe_jax.storage.signals import Stop, graceful_stop

EVERY_DEVICE = Scale()


def learn(
    what: RunConfig | Method, stream: Sequence[str | Path] | Path | str, out: str | Path | None = None, **options: Any
) -> Path:
    """Learns a stream of tasks into a run folder and writes its report; returns the folder.

    `learn(config, out)` uses the config's stream; `learn(config_or_method, [task folders], out)` another one.

    Args:
      what: a config, or a method (then everything else has its default).
      options: `resume`, `overwrite`, `full_matrix`, `allow`, `on_corrupt`, `status_minutes`, `track`, as in `Options`.

    Raises:
      HidecmoeError: with the exit code of its kind; what was committed stays.
    """
    config = what if isinstance(what, RunConfig) else RunConfig(method=what)
    if out is None:
        out = stream
    else:
        folders = [stream] if isinstance(stream, str | Path) else stream
        tasks = tuple(TaskSpec(str(folder)) for folder in folders)
        config = dataclasses.replace(config, stream=StreamConfig(None, tasks))
    chosen = Options(**options)
    with working_folder(Path(out)) as folder:
        _learn(config, folder, chosen)
    return Path(out)


def _learn(config: RunConfig, folder: Path, chosen: Options) -> None:
    """Learns the config's stream into a folder; errors as `learn`."""
    has_run = check_start(folder, resume=chosen.resume, overwrite=chosen.overwrite)
    errors = RunFolder(folder).errors
    if has_run and chosen.resume:
        run = RunFolder(folder)
        command = f"hidecmoe run {shlex.quote(str(run.config))} --out {shlex.quote(str(folder))} --resume"
        require_folders(config, task_names(folder), command)
    with graceful_stop() as stop:
        # A start that is refused here leaves no folder behind, so the lock is taken after it.
        session = open_session(config, errors=str(errors))
        session = dataclasses.replace(session, status=Status(chosen.status_minutes))
        if has_run and chosen.resume:
            say_of_older(config, session.stream.tasks)
        require_fit(session)
        with writing(folder, new=True):
            if not has_run or chosen.overwrite:
                say_notes(session, session.stream.tasks)
            open_or_resume(session, folder, chosen)
            run_seeds(session, folder, chosen, stop)
            journal.drop(folder)


def require_fit(session: Session) -> None:
    """Refuses a method that does not fit the base.

    Raises:
      ConfigError: names the sites or layers that the base lacks.
    """
    session.config.method.init(session.model, capacity=1)


def open_or_resume(session: Session, folder: Path, options: Options) -> None:
    """Starts the run in a locked folder, or makes sure that it is the same one, and writes the resolved config.

    Raises:
      ConfigError: the method does not fit the base; nothing is written then.
    """
    require_fit(session)
    open_run(
        folder, session.identity(), resume=options.resume, overwrite=options.overwrite, allow=options.allow,
        session=session_facts(session.model.layout, session.int8),
    )  # fmt: skip
    write_config(session.config, folder)


def run_seeds(session: Session, folder: Path, options: Options, stop: Stop) -> None:
    """Runs every seed of a run that was opened, then writes the report."""
    begin_status([(session, folder)], options)
    run = RunFolder(folder)
    for seed in session.config.seeds:
        seed_run = SeedRun(session, run.seed(seed), seed, options, stop)
        seed_run.run()
    results.write(session, folder)


def begin_status(runs: Sequence[tuple[Session, Path]], options: Options) -> None:
    """Sums up the work that is left to some runs, which share one status, and shows it."""
    steps = 0
    questions = 0
    for session, folder in runs:
        for seed in session.config.seeds:
            seed_run = SeedRun(session, RunFolder(folder).seed(seed), seed, options, Stop())
            seed_steps, seed_questions = seed_run.open_work()
            steps += seed_steps
            questions += seed_questions
    first, _ = runs[0]
    tasks = len(first.stream.tasks)
    title = ", ".join(session.config.method.name for session, _ in runs)
    word = "task" if tasks == 1 else "tasks"
    first.status.begin(f"{title}: {tasks} {word}", steps, questions)


def add(
    run: str | Path,
    task: str | Path,
    *,
    epochs: int | None = None,
    rate: float | None = None,
    redo: bool = False,
    status_minutes: float = MINUTES,
    track: Sequence[str] = (),
    tasks: Sequence[str | Path] = (),
    scale: Scale = EVERY_DEVICE,
    gating: Gating | None = None,
) -> Path:
    """Teaches a finished run one more task, or the last one again (`redo`); earlier experts keep every byte.

    The same call goes on where an earlier one was interrupted (`runs/journal.py`).

    Args:
      status_minutes, track: as in `Options`.
      tasks: where the folders of the run's tasks lie now, if they were moved.
      scale: the devices to work on, which a run does not record.
      gating: gates that the new task must pass, else its lesson is taken back, before anybody else may read the run.

    Raises:
      ConfigError: the method does not learn task by task, or the run is not finished.
      CheckpointError: something else than the new task differs from what the run was learned with.
      GateError: the task did not pass; the run is as it was.
    """
    require_trackers(track)
    with working_folder(Path(run)) as path, writing(path), graceful_stop() as stop:
        folder = RunFolder(path)
        names = task_names(path)
        config = moved(dataclasses.replace(config_of(run), scale=scale), tasks, names)
        require_folders(config, names, f"hidecmoe add {shlex.quote(str(run))} {shlex.quote(str(task))}")
        spec = TaskSpec(str(Path(task).resolve()), epochs=epochs, rate=rate)
        added = addition(folder, config, spec, names, redo=redo)
        sets = _gate_sets(gating, spec, added.resuming, names, redo=redo)
        session = open_session(added.config, errors=str(folder.errors))
        session = dataclasses.replace(session, status=Status(status_minutes))
        say_of_older(config, session.stream.tasks)
        new = session.stream.tasks[-1]
        call = {"command": "add", "task": spec.folder, "epochs": epochs, "rate": rate, "redo": redo,
                "data": new.fingerprint}  # fmt: skip
        begun = gone_on(path, call) is not None
        resuming = begun or added.resuming
        if gating is not None and added.finished and resuming and not begun:
            raise ConfigError(
                "this task is committed already", where=str(run), why="gates decide before a commit",
                remedy=f"hidecmoe rollback {shlex.quote(str(run))} {len(names) - 1}, then add it again",
            )  # fmt: skip
        # A task that is learned again may get another name.
        changing = {new.name, names[-1]} if redo else {new.name}
        options = Options(resume=True, allow=fields_of(changing), status_minutes=status_minutes, track=tuple(track))
        if resuming and added.finished:
            say(f"{names[-1]} is the last task of the run already; what is not measured yet is measured now")
            options = dataclasses.replace(options, allow=())
        if resuming:
            # Refuses another run before anything is learned.
            changes_of(path, session.identity(), options.allow, remedy=UNDO)
            open_or_resume(session, path, options)
        else:
            say_notes(session, session.stream.tasks[-1:])
            rest = len(names) - 1 if redo else len(names)
            _change_tasks(session, path, call, names, rest, options)
        run_seeds(session, path, options, stop)
        if gating is not None:
            _commit_or_take_back(session, path, gating, sets, stop)
        journal.finish(path)
    return Path(run)


def _gate_sets(
    gating: Gating | None, spec: TaskSpec, resuming: bool, names: Sequence[str], *, redo: bool
) -> tuple[OpenedSet, ...]:
    """The user's own sets of the gates, read before anything is learned.

    Raises:
      ConfigError: gates for a task that is learned again.
    """
    if gating is None:
        return ()
    if redo:
        raise ConfigError(
            "gates are for a new task", where="--redo", why="the lesson that is replaced could not be put back",
            remedy="hidecmoe rollback RUN N, then `hidecmoe add RUN DIR --gates FILE`",
        )  # fmt: skip
    return gating.open_sets(names if resuming else [*names, name_of(spec)])


def _commit_or_take_back(session: Session, run: Path, gating: Gating, sets: Sequence[OpenedSet], stop: Stop) -> None:
    """Measures the gates of the last task, and takes its lesson back where it does not pass.

    Raises:
      GateError: it was taken back.
    """
    names = [task.name for task in session.stream.tasks]
    judged = gates.judge(session, run, gating, sets)
    gates.record(run, names[-1], gating, judged)
    passed = all(result.passed for result in judged)
    if passed or gating.force is not None:
        say("\n".join(gates.gate_lines(judged)))
        if not passed:
            say(f"committed all the same, by {gating.force.by}: {gating.force.reason}")
        return
    rest = len(names) - 1
    shorter = dataclasses.replace(session.config, stream=without_last(session.config.stream, names))
    stream = dataclasses.replace(session.stream, tasks=session.stream.tasks[:-1])
    before = dataclasses.replace(session, config=shorter, stream=stream)
    options = Options(resume=True, allow=fields_of(names[rest:]))
    _change_tasks(before, run, {"command": "rollback", "tasks": rest}, names, rest, options)
    run_seeds(before, run, options, stop)
    journal.finish(run)
    raise gates.refusal(run, names[-1], gating, judged)


def _change_tasks(
    session: Session, run: Path, call: dict[str, Any], names: Sequence[str], rest: int, options: Options
) -> None:
    """Makes a run one of the session's tasks; of those that it had, the lessons after the first `rest` are taken out.

    Args:
      names: tasks that the run had.
      options: `allow` names the fields of the identity that change.
    """
    require_fit(session)
    folder = RunFolder(run)
    # Refuses another run before anything is moved.
    facts = session_facts(session.model.layout, session.int8)
    identity, _ = continued(run, session.identity(), options.allow, session=facts, remedy=UNDO)
    lessons = []
    for row in range(len(names), rest, -1):
        lessons += [(seed, row, names[row - 1]) for seed in session.config.seeds]
    change = Change(
        lessons=tuple(lessons), edits_until=rest, run=identity, config=config_text(session.config)
    )  # fmt: skip
    change_run(folder.path, call, change)


def rollback(run: str | Path, tasks: int) -> Path:
    """Takes a run back to where it was after its first `tasks` tasks; later ones are moved aside, not deleted.

    Edits that were committed when more tasks were there are dropped; the others stay.

    Raises:
      ConfigError: no such point to go back to, or the method does not learn task by task.
    """
    folder = RunFolder(Path(run))
    call = {"command": "rollback", "tasks": tasks}
    with writing(folder.path), graceful_stop() as stop:
        names = task_names(folder.path)
        config = config_of(run)
        resuming = gone_on(folder.path, call) is not None
        if not resuming:
            config = _shortened(folder, config, names, tasks)
        require_folders(config, names, evaluating(folder.path))
        session = open_session(config, errors=str(folder.errors))
        options = Options(resume=True, allow=fields_of(names[tasks:]))
        if resuming:
            open_or_resume(session, folder.path, options)
        else:
            _change_tasks(session, folder.path, call, names, tasks, options)
        run_seeds(session, folder.path, options, stop)
        journal.finish(folder.path)
    return folder.path


def _shortened(folder: RunFolder, config: RunConfig, names: Sequence[str], tasks: int) -> RunConfig:
    """The config of a run of its first `tasks` tasks alone.

    Raises:
      ConfigError: no such point to go back to, or the method does not learn task by task.
    """
    least = min(learned_lessons(folder, config))
    is_earlier = 1 <= tasks <= least and tasks != len(names)
    if not config.method.traits.one_task_per_lesson or not is_earlier:
        raise ConfigError(
            "there is no such point to go back to", where=str(folder.path),
            why=f"asked for {tasks}; {config.method.name} has learned {least} of {len(names)} tasks",
            remedy=f"give a number from 1 to {min(least, len(names) - 1)}",
        )  # fmt: skip
    # Tasks are removed from the end, because a pocket stream precedes folders of the user.
    stream = config.stream
    for known in range(len(names), tasks, -1):
        stream = without_last(stream, names[:known])
    return dataclasses.replace(config, stream=stream)


def evaluate_run(
    run: str | Path,
    *,
    task: int | None = None,
    full_matrix: bool = False,
    skip_missing: bool = False,
    tasks: Sequence[str | Path] = (),
    scale: Scale = EVERY_DEVICE,
) -> Path:
    """Measures cells that are still missing: of one row (after `task` tasks), or of all of them; writes the report.

    Args:
      skip_missing: where tasks of the row cannot be loaded, measure it without them, in `seed_0/without/`. The report,
        which is about the whole run, is then left as it is.
      tasks: where the folders of the run's tasks lie now, if they were moved; they are recorded in the run.
      scale: the devices to work on, which a run does not record.

    Raises:
      ConfigError: no such row.
      CheckpointError: names every task of the row that cannot be loaded.
    """
    names = task_names(Path(run))
    config = moved(dataclasses.replace(config_of(run), scale=scale), tasks, names)
    require_folders(config, names, evaluating(Path(run)))
    with working_folder(Path(run)) as path, writing(path), graceful_stop() as stop:
        folder = RunFolder(path)
        session = open_session(config)
        say_of_older(config, session.stream.tasks)
        open_run(
            folder.path, session.identity(), resume=True, overwrite=False,
            session=session_facts(session.model.layout, session.int8), remedy=UNDO,
        )  # fmt: skip
        if tasks:
            write_config(session.config, folder.path)
        lost: dict[str, str] = {}
        for seed in config.seeds:
            rows = Rows(session, folder.seed(seed), seed, stop, full_matrix)
            lost |= _evaluate_rows(rows, task, skip_missing=skip_missing)
        if lost:
            why = "; ".join(lost.values())
            say(f"the report stays as it is, for tasks cannot be loaded: {why}")
        else:
            results.write(session, folder.path)
            journal.drop(folder.path)
    return Path(run)


def _evaluate_rows(rows: Rows, task: int | None, *, skip_missing: bool) -> dict[str, str]:
    """Measures one row of a seed, or all of them; returns the lost lessons of the whole seed: why, by name."""
    method = rows.session.config.method
    names = [spec.name for spec in rows.session.stream.tasks]
    whole = load_archive(rows.folder, method, names)
    learned = len(whole.names)
    if task is not None and not 0 <= task <= learned:
        raise ConfigError(
            "the run has not learned so many tasks", where=f"{rows.folder.run.path}, seed {rows.seed}",
            why=f"asked for its state after {task}, learned are {learned}: {', '.join(whole.names) or 'none'}",
            remedy=f"choose a state from 1 to {learned}; 0 is the base model",
        )  # fmt: skip
    loaded = whole.first(task)
    loaded.require(method, skip_missing=skip_missing)
    archive = loaded.archive
    last_row = len(archive)
    if loaded.lost:
        aside = rows.evaluate_without(last_row, archive, tuple(loaded.lost))
        lost_names = ", ".join(loaded.lost)
        say(f"measured without {lost_names}: {aside.path}")
        return whole.lost
    # Row 0 is the base model, so n lessons have n + 1 rows.
    every_row = range(last_row + 1)
    wanted_rows = every_row if task is None else (task,)
    for row in wanted_rows:
        rows.evaluate(row, archive)
    return whole.lost
