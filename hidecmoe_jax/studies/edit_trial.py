"""Retiring and merging experts of a finished run: a trial that measures every task, then, if it is wanted, a commit.

A trial answers held-out questions of every learned task before and after the edit and counts what is stored; it leaves
a table in the run folder and touches nothing else. A commit is refused where a task falls by more than is allowed
(RT11). It writes the edit into RUN/edits.json and measures the last row again; the archive of the tasks keeps every
byte, so `restore` takes an edit back. Seeds may have grown experts in different layers: one in which there is nothing
to edit is left as it is, and a run only if that is so in all of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.methods.base import Serving
from hidecmoe_jax.methods.edit import Edit, edited, narrowed
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.config import config_of
from hidecmoe_jax.runs.edits import Committed
from hidecmoe_jax.runs.finished import RunWithData, open_with_data
from hidecmoe_jax.runs.folder import EDITS, RunFolder
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.seed_run import Options
from hidecmoe_jax.runs.session import Session, bar, say
from hidecmoe_jax.runs.stream_loop import enter, walk
from hidecmoe_jax.runs.withdraw import withdraw_row
from hidecmoe_jax.scoring.score import by_id, score
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.storage.lock import writer_lock
from hidecmoe_jax.storage.signals import Stop, graceful_stop


@dataclass(frozen=True)
class EditTrial:
    """How an edit is tried.

    Attributes:
      count: held-out questions of every task; None for all.
      allowed: points that a task may fall by for the edit to be committed.
      commit: write it, if it may be.
    """

    count: int | None = None
    allowed: float = 1.0
    commit: bool = False

    def __post_init__(self):
        if self.allowed < 0 or (self.count is not None and self.count < 1):
            raise ConfigError(
                "a trial needs at least one question, and `allowed` is not negative", where="count, allowed",
                why=f"got count {self.count}, allowed {self.allowed}",
            )  # fmt: skip


def retire(
    run: str | Path, task: str, *, layers: Sequence[int] | None = None, expert: int | None = None, **trial: Any
) -> dict[str, Any]:
    """Tries to drop the experts of a task, in some layers or in all; `trial` are fields of `EditTrial`.

    Args:
      expert: as in `Edit`.

    Returns:
      What `retire.json` in the run folder holds: `tasks` (seed, task, count, before, after, change in points), `stored`
      (numbers before and after), `left` (seeds in which there is nothing to retire), `committed`.

    Raises:
      ConfigError: nothing to retire in any seed, an unfinished run, or a commit that costs a task more than is allowed.
    """
    folder = Path(run)
    edit = _edit(kind="retire", task=_number(folder, task), layers=layers, expert=expert)
    which = "the experts" if expert is None else f"expert {expert}"
    return _tried(folder, edit, f"retire {which} of {task}", EditTrial(**trial))


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
    edit = _edit(kind="merge", task=_number(folder, task), into=_number(folder, into), layers=layers, **rule)
    return _tried(folder, edit, f"merge the experts of {task} into those of {into} ({mode})", EditTrial(**trial))


def restore(run: str | Path) -> Path:
    """Takes the last edit of a run back and measures its last row again; returns the folder.

    Raises:
      ConfigError: there is no edit, or a task was learned on top of it.
    """
    folder = Path(run)
    config = config_of(folder)
    with writer_lock(folder), graceful_stop() as stop:
        done, names = edits.read(folder), task_names(folder)
        if not done:
            raise ConfigError("there is no edit to take back", where=str(folder), why=f"{EDITS} is not there")
        if done[-1].tasks < len(names):
            later = ", ".join(names[done[-1].tasks :])
            raise ConfigError(
                "tasks were learned on top of the last edit", where=str(folder),
                why=f"{done[-1].what}, and then {later}",
                remedy=f"take them back first: hidecmoe rollback {folder} {done[-1].tasks}",
            )  # fmt: skip
        finished = open_with_data(folder)
        finished.require_same_data()
        left = done[-1].effect.get("left", ())
        _written(finished.session, folder, done[:-1], [seed for seed in config.seeds if seed not in left], stop)
    return folder


def _edit(*, layers: Sequence[int] | None, **fields: Any) -> Edit:
    try:
        return Edit(layers=None if layers is None else tuple(sorted(set(layers))), **fields)
    except ValueError as error:
        raise ConfigError("this is no edit", where="command", why=str(error)) from error


def _number(run: Path, task: str) -> int:
    names = task_names(run)
    if task not in names:
        raise ConfigError("no such task", where=task, why=f"the run knows {', '.join(names)}")
    return names.index(task)


def _tried(folder: Path, edit: Edit, what: str, trial: EditTrial) -> dict[str, Any]:
    config = config_of(folder)
    with writer_lock(folder), graceful_stop() as stop:
        names = task_names(folder)
        learned = [len(Ledger(RunFolder(folder).seed(seed).path).tasks()) for seed in config.seeds]
        if not config.method.traits.one_task_per_lesson or set(learned) != {len(names)}:
            raise ConfigError(
                "only a finished run that learned task by task can be edited", where=str(folder),
                why=f"its seeds have learned {learned} of {len(names)} tasks", remedy="finish it with --resume",
            )  # fmt: skip
        finished = open_with_data(folder)
        finished.require_same_data()
        lines, stored, parts = [], {}, _parts(finished, edit)
        for seed, part in parts.items():
            told, stored[str(seed)] = _effect(finished, part, seed, trial.count, stop)
            lines += told
        effect = {"tasks": lines, "stored": stored, "left": [seed for seed in config.seeds if seed not in parts]}
        result = {"what": what, **effect, "allowed": trial.allowed, "committed": False}
        write_json(finished.folder.study(edit.kind), result)
        if trial.commit:
            _gate(lines, trial.allowed, what)
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            committed = (*edits.read(folder), Committed(edit, len(names), what, now, effect))
            _written(finished.session, folder, committed, list(parts), stop)
            result["committed"] = True
            write_json(finished.folder.study(edit.kind), result)
    return result


def _parts(run: RunWithData, edit: Edit) -> dict[int, Edit]:
    """What there is to do of an edit in every seed in which there is something; says which seeds that leaves.

    Raises:
      ConfigError: there is nothing to edit in any seed, or in none in a layer that is named.
    """
    method, seeds, found = run.config.method, run.config.seeds, {}
    for seed in seeds:
        learner = run.learner(run.ledger(seed).archive())
        found[seed] = narrowed(method, learner, edit)
    parts = {seed: part for seed, part in found.items() if part is not None}
    known = {layer for part in parts.values() for layer in part.layers or ()}
    if not parts or not known >= set(edit.layers or ()):
        edited(method, learner, edit)  # what no seed has, this one has not either: says so and raises
    for seed in seeds:
        if seed not in parts:
            say(f"seed {seed}: there is nothing to {edit.kind}, it is left as it is")
        elif parts[seed] != edit:
            layers = ", ".join(map(str, parts[seed].layers))
            say(f"seed {seed}: there is something to {edit.kind} only in layers {layers}")
    return parts


def _gate(lines: list[dict[str, Any]], allowed: float, what: str) -> None:
    """Refuses an edit that hurts (RT11)."""
    worst = min(lines, key=lambda line: line["change"])
    if worst["change"] < -allowed:
        raise ConfigError(
            f"not committed: {worst['task']} would fall by {-worst['change']:.1f} points", where=what,
            why=f"from {worst['before']:.1f} to {worst['after']:.1f} on {worst['count']} held-out questions (seed "
            f"{worst['seed']}); allowed are {allowed:g}",
            remedy=f"try another edit, or accept it with --allowed {np.ceil(-10 * worst['change']) / 10:g}",
        )  # fmt: skip


def _written(session: Session, folder: Path, now: Sequence[Committed], seeds: Sequence[int], stop: Stop) -> None:
    """Puts `now` in place of the edits of a run and measures the last row of the seeds that this changes again.

    The old row goes first: a run that dies in between has a row that is missing, never one of another learner.
    """
    for seed in seeds:
        withdraw_row(RunFolder(folder).seed(seed), len(session.stream.tasks))
    edits.write(folder, now)
    options = Options(resume=True)
    enter(session, folder, options)
    walk(session, folder, options, stop)


def _effect(
    run: RunWithData, edit: Edit, seed: int, count: int | None, stop: Stop
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What an edit does in one seed: a line for every task, and numbers stored before and after."""
    session, method, model = run.session, run.config.method, run.session.model
    before = run.learner(run.ledger(seed).archive())
    after = edited(method, before, edit)
    shown = {task.name: held_out(task, count) for task in session.stream.tasks}
    scores: dict[str, list[float]] = {task.name: [] for task in session.stream.tasks}
    for learner, when in ((before, "before"), (after, "after")):
        serving = method.serve(model, learner)
        for task in bar(f"seed {seed}, {when} the edit")(session.stream.tasks):
            scores[task.name].append(_score(session, serving, task, *shown[task.name], seed))
            if stop.requested:
                stop.leave(f"trial, seed {seed}, task {task.name}")
    lines = [
        {"seed": seed, "task": name, "count": len(shown[name][0])}
        | {"before": old, "after": new, "change": round(new - old, 6)}
        for name, (old, new) in scores.items()
    ]
    sizes = [method.sizes(model, learner)["stored"] for learner in (before, after)]
    totals = {name: sum(size.values()) for name, size in zip(("before", "after"), sizes, strict=True)}
    return lines, totals | {"kinds": {kind: [size[kind] for size in sizes] for kind in sizes[0]}}


def held_out(task: Task, count: int | None) -> tuple[tuple[Record, ...], str]:
    """The first validation records of a task, or test records where it has none, and what to call them."""
    records, split = (task.val, "val") if task.val else (task.test, "test")
    return records[:count], f"{task.name} {split}{'' if count is None else f' {count}'}"


def _score(session: Session, serving: Serving, task: Task, records: tuple[Record, ...], label: str, seed: int) -> float:
    """Score 0-100 of the answers to a task's records; nothing is written."""
    inputs = session.engine.inputs(records, label)
    named = session.config.method.traits.needs_task_name
    decision = session.engine.decide(serving, inputs, task.index if named else None)
    batches = session.engine.answer(serving, inputs, decision, key=session.answer_key(task, seed))
    told = by_id([(answer.id, answer.text) for batch in batches for answer in batch], where=label)
    return score(task.scorer, told, {record.id: record.references for record in records}).value
