"""Edits of a finished run: retire or merge a task's experts, first as a trial on every task, then as a commit.

A trial answers held-out questions of every learned task before and after the edit and counts what is stored; it writes
a table into the run folder and changes nothing else. A commit is refused where a task loses more points than allowed.
It writes the edit into RUN/edits.json and measures the last row again; the archive of the tasks keeps every byte, so
`restore` takes an edit back. Seeds may have grown experts in different layers: a seed without experts to edit is left
as it is, and the edit is refused only if that is so in all of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.methods.base import Learner, Serving
from hidecmoe_jax.methods.edit import Edit, edited, narrowed
from hidecmoe_jax.runs import edits, journal
from hidecmoe_jax.runs.config import config_of
from hidecmoe_jax.runs.edits import Committed
from hidecmoe_jax.runs.finished import RunWithData, open_with_data
from hidecmoe_jax.runs.folder import EDITS, RunFolder, finish
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.runs.journal import Change
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.seed_run import Options
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.runs.stream_loop import open_or_resume, run_seeds
from hidecmoe_jax.runs.writing import change_run, gone_on, writing
from hidecmoe_jax.scoring.score import by_id, score
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.storage.signals import Stop, graceful_stop


@dataclass(frozen=True)
class EditTrial:
    """Settings of a trial.

    Attributes:
      count: held-out questions of every task; None for all.
      allowed: points that a task may lose for the edit to be committed.
      commit: commit the edit if no task loses more.
    """

    count: int | None = None
    allowed: float = 1.0
    commit: bool = False

    def __post_init__(self):
        has_questions = self.count is None or self.count >= 1
        if self.allowed < 0 or not has_questions:
            raise ConfigError(
                "a trial needs at least one question, and `allowed` is not negative", where="count, allowed",
                why=f"got count {self.count}, allowed {self.allowed}",
            )  # fmt: skip


def retire(
    run: str | Path,
    task: str,
    *,
    layers: Sequence[int] | None = None,
    expert: int | None = None,
    **trial: Any,
) -> dict[str, Any]:
    """Tries to drop the experts of a task, in some layers or in all; `trial` are fields of `EditTrial`.

    Args:
      expert: as in `Edit`.

    Returns:
      The contents of `retire.json` in the run folder: `tasks` (seed, task, count, before, after, change in points),
      `stored` (parameters before and after), `left` (seeds without experts to retire), `committed`.

    Raises:
      ConfigError: nothing to retire in any seed, an unfinished run, or a commit that costs a task more than is allowed.
    """
    folder = Path(run)
    edit = _edit(kind="retire", task=_number(folder, task), layers=layers, expert=expert)
    which = "the experts" if expert is None else f"expert {expert}"
    what = f"retire {which} of {task}"
    return _try(folder, edit, what, EditTrial(**trial))


def merge(
    run: str | Path,
    into: str,
    task: str,
    *,
    mode: str = "svd",
    weights: Sequence[float] = (),
    density: float = 0.5,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    **trial: Any,
) -> dict[str, Any]:
    """Tries to merge the experts of a task into those of the task `into`; all else as in `retire`, with `merge.json`.

    Args:
      mode, weights, density, seed: as in `Edit`.
    """
    folder = Path(run)
    rule = {"mode": mode, "weights": tuple(weights), "density": density, "seed": seed}
    task_number = _number(folder, task)
    into_number = _number(folder, into)
    if task == into:
        others = [name for name in task_names(folder) if name != task]
        raise ConfigError(
            "a merge needs two tasks", where=f"{task} {into}", why="both are the same task",
            remedy=f"merge it into one of {', '.join(others) or 'several tasks'}; `hidecmoe overlap {folder}` shows "
            "which are alike",
        )  # fmt: skip
    edit = _edit(kind="merge", task=task_number, into=into_number, layers=layers, **rule)
    what = f"merge the experts of {task} into those of {into} ({mode})"
    return _try(folder, edit, what, EditTrial(**trial))


def restore(run: str | Path) -> Path:
    """Takes the last edit of a run back and measures its last row again; returns the folder.

    The same call goes on where an earlier one was interrupted (`runs/journal.py`).

    Raises:
      ConfigError: there is no edit, or a task was learned on top of it.
    """
    folder = Path(run)
    call = {"command": "restore"}
    with writing(folder), graceful_stop() as stop:
        if gone_on(folder, call) is not None:
            measure_again(_same_run(folder).session, folder, stop)
            return folder
        config = config_of(folder)
        committed = edits.read(folder)
        names = task_names(folder)
        if not committed:
            raise ConfigError(
                "there is no edit to take back", where=str(folder), why=f"{EDITS} is not there",
                remedy="the run is as it was learned; `hidecmoe retire` and `merge` with --commit make an edit",
            )  # fmt: skip
        last = committed[-1]
        if last.tasks < len(names):
            later = ", ".join(names[last.tasks :])
            raise ConfigError(
                "tasks were learned on top of the last edit", where=str(folder),
                why=f"{last.what}, and then {later}",
                remedy=f"take them back first: hidecmoe rollback {folder} {last.tasks}",
            )  # fmt: skip
        finished = _same_run(folder)
        # Seeds that the edit left as they were keep their last row.
        untouched = last.effect.get("left", ())
        seeds = [seed for seed in config.seeds if seed not in untouched]
        earlier = committed[:-1]
        commit_edits(finished.session, folder, earlier, seeds, stop, call)
    return folder


def _edit(*, layers: Sequence[int] | None, **fields: Any) -> Edit:
    """An `Edit` of sorted layers; its errors as `ConfigError`."""
    # Sorted: edits are compared, and the order in which layers were typed does not matter.
    ordered = None
    if layers is not None:
        ordered = tuple(sorted(set(layers)))
    try:
        return Edit(layers=ordered, **fields)
    except ValueError as error:
        kind = fields["kind"]
        raise ConfigError(
            "this is no edit", where="command", why=str(error), remedy=f"`hidecmoe {kind} --help` shows what it takes"
        ) from error


def _number(run: Path, task: str) -> int:
    names = task_names(run)
    if task not in names:
        raise ConfigError("no such task", where=task, why=f"not a task of {run}", remedy=nearest(task, names))
    return names.index(task)


def _try(folder: Path, edit: Edit, what: str, trial: EditTrial) -> dict[str, Any]:
    """Runs a trial of an edit, writes its table, and commits the edit if that is asked for and allowed."""
    call = {"command": edit.kind, "edit": strict.plain(edit), "count": trial.count, "allowed": trial.allowed}
    with writing(folder), graceful_stop() as stop:
        begun = gone_on(folder, call) if trial.commit else None
        if begun is not None:
            measure_again(_same_run(folder).session, folder, stop)
            write_json(RunFolder(folder).study(edit.kind), begun.result)
            return begun.result
        require_finished(folder)
        finished = _same_run(folder)
        by_seed = _edits_by_seed(finished, edit)
        lines: list[dict[str, Any]] = []
        stored = {}
        for seed, seed_edit in by_seed.items():
            seed_lines, sizes = _effect(finished, seed_edit, seed, trial.count, stop)
            lines += seed_lines
            stored[str(seed)] = sizes
        untouched = [seed for seed in finished.config.seeds if seed not in by_seed]
        effect = {"tasks": lines, "stored": stored, "left": untouched}
        result = {"what": what, **effect, "allowed": trial.allowed, "committed": False}
        # Written before a refusal too: the table shows why.
        write_json(finished.folder.study(edit.kind), result)
        if trial.commit:
            refuse_if_harmful(lines, trial.allowed, what)
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            committed = Committed(edit, len(finished.tasks), what, now, effect)
            all_edits = (*edits.read(folder), committed)
            result["committed"] = True
            commit_edits(finished.session, folder, all_edits, list(by_seed), stop, call, result)
            write_json(finished.folder.study(edit.kind), result)
    return result


def require_finished(folder: Path) -> None:
    """Refuses a run in which a seed has not learned all tasks, or that learned several tasks in one lesson."""
    config = config_of(folder)
    tasks = len(task_names(folder))
    learned = []
    for seed in config.seeds:
        ledger = Ledger(RunFolder(folder).seed(seed).path)
        learned.append(len(ledger.tasks()))
    learns_task_by_task = config.method.traits.one_task_per_lesson
    if not learns_task_by_task or set(learned) != {tasks}:
        raise ConfigError(
            "only a finished run that learned task by task can be edited", where=str(folder),
            why=f"its seeds have learned {learned} of {tasks} tasks",
            remedy=finish(RunFolder(folder)) if learns_task_by_task else "give a run of another method",
        )  # fmt: skip


def _edits_by_seed(run: RunWithData, edit: Edit) -> dict[int, Edit]:
    """The edit restricted to layers with experts to edit, by seed; prints which seeds are left as they are.

    Raises:
      ConfigError: no seed has experts to edit, or none has any in a layer that is named.
    """
    method = run.config.method
    by_seed = {}
    for seed in run.config.seeds:
        archive = run.ledger(seed).archive()
        learner = run.learner(archive, seed=seed)
        seed_edit = narrowed(method, learner, edit)
        if seed_edit is not None:
            by_seed[seed] = seed_edit
    editable = set()
    for seed_edit in by_seed.values():
        editable.update(seed_edit.layers or ())
    if not by_seed or not editable >= set(edit.layers or ()):
        # Impossible in every seed, so also in the last one: this call raises the error that explains why.
        edited(method, learner, edit)
    for seed in run.config.seeds:
        if seed not in by_seed:
            say(f"seed {seed}: there is nothing to {edit.kind}, it is left as it is")
        elif by_seed[seed] != edit:
            layers = ", ".join(map(str, by_seed[seed].layers))
            say(f"seed {seed}: there is something to {edit.kind} only in layers {layers}")
    return by_seed


def refuse_if_harmful(lines: list[dict[str, Any]], allowed: float, what: str) -> None:
    """Refuses an edit under which some task loses more than `allowed` points.

    Raises:
      ConfigError: names the task that loses most.
    """
    worst = min(lines, key=lambda line: line["change"])
    loss = -worst["change"]
    if loss > allowed:
        raise ConfigError(
            f"not committed: {worst['task']} would fall by {loss:.1f} points", where=what,
            why=f"from {worst['before']:.1f} to {worst['after']:.1f} on {worst['count']} held-out questions (seed "
            f"{worst['seed']}); allowed are {allowed:g}",
            remedy=f"try another edit, or accept it with --allowed {np.ceil(10 * loss) / 10:g}",
        )  # fmt: skip


def _same_run(folder: Path) -> RunWithData:
    """A run with its data, which are those that it was learned with."""
    finished = open_with_data(folder)
    finished.require_same_data()
    return finished


def commit_edits(
    session: Session,
    folder: Path,
    committed: Sequence[Committed],
    seeds: Sequence[int],
    stop: Stop,
    call: dict[str, Any],
    result: dict[str, Any] | None = None,
) -> None:
    """Replaces the edits of a run with `committed` and measures the last row of the changed `seeds` again.

    Args:
      call, result: as in `change_run`.
    """
    last_row = len(session.stream.tasks)
    rows = tuple((seed, last_row) for seed in seeds)
    entries = tuple(strict.plain(edit) for edit in committed)
    change_run(folder, call, Change(rows=rows, edits=entries), result)
    measure_again(session, folder, stop)


def measure_again(session: Session, folder: Path, stop: Stop) -> None:
    """Measures what a change of the edits has taken out, and ends the call that changed them."""
    # Resuming measures exactly the rows that are missing.
    options = Options(resume=True)
    open_or_resume(session, folder, options)
    run_seeds(session, folder, options, stop)
    journal.finish(folder)


def _effect(
    run: RunWithData,
    edit: Edit,
    seed: int,
    count: int | None,
    stop: Stop,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Effect of an edit in one seed: a line for every task, and the stored parameters before and after."""
    method = run.config.method
    archive = run.ledger(seed).archive()
    before = run.learner(archive, seed=seed)
    after = edited(method, before, edit)
    label_before = f"seed {seed}, before the edit"
    label_after = f"seed {seed}, after the edit"
    old_scores = _scores(run, before, label_before, seed, count, stop)
    new_scores = _scores(run, after, label_after, seed, count, stop)
    lines = []
    for task in run.session.stream.tasks:
        old = old_scores[task.name]
        new = new_scores[task.name]
        records, _ = held_out(task, count)
        # Rounded: with `allowed` 0, float noise must not refuse an edit that changes no answer.
        change = round(new - old, 6)
        line = {"seed": seed, "task": task.name, "count": len(records), "before": old, "after": new, "change": change}
        lines.append(line)
    old_sizes = method.sizes(run.model, before)["stored"]
    new_sizes = method.sizes(run.model, after)["stored"]
    kinds = {}
    for kind, size in old_sizes.items():
        kinds[kind] = [size, new_sizes[kind]]
    total_before = sum(old_sizes.values())
    total_after = sum(new_sizes.values())
    return lines, {"before": total_before, "after": total_after, "kinds": kinds}


def _scores(
    run: RunWithData, learner: Learner, label: str, seed: int, count: int | None, stop: Stop
) -> dict[str, float]:
    """Score 0-100 of every task's held-out questions, by task; stops between tasks where that was requested."""
    serving = run.config.method.serve(run.model, learner)
    scores = {}
    for task in run.session.status.bar(label)(run.session.stream.tasks):
        records, name = held_out(task, count)
        scores[task.name] = _score(run.session, serving, task, records, name, seed)
        if stop.requested:
            stop.leave(f"trial, seed {seed}, task {task.name}")
    return scores


def held_out(task: Task, count: int | None) -> tuple[tuple[Record, ...], str]:
    """The first validation records of a task (test records where it has none), and a label for the feature cache."""
    records = task.val or task.test
    split = "val" if task.val else "test"
    limit = "" if count is None else f" {count}"
    return records[:count], f"{task.name} {split}{limit}"


def _score(
    session: Session,
    serving: Serving,
    task: Task,
    records: tuple[Record, ...],
    label: str,
    seed: int,
) -> float:
    """Score 0-100 of the answers to a task's records; nothing is written."""
    engine = session.engine
    inputs = engine.inputs(records, label)
    name = task.index if engine.method.traits.needs_task_name else None
    decision = engine.decide(serving, inputs, name)
    # The key of the run's own answers: a sampled answer then differs by the edit alone.
    key = session.answer_key(task, seed)
    texts = []
    for batch in engine.answer(serving, inputs, decision, key=key):
        texts += [(answer.id, answer.text) for answer in batch]
    references = {record.id: record.references for record in records}
    predictions = by_id(texts, where=label)
    return score(task.scorer, predictions, references).value
