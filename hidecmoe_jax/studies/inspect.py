"""Description of a run as a text table: tasks and scores, owners of expert slots by layer, sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.experts.bank import EMPTY, FUSED, Bank
from hidecmoe_jax.methods.base import Learner
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.dead_experts import sentence
from hidecmoe_jax.runs.finished import FinishedRun, open_finished
from hidecmoe_jax.runs.scores import Cells

_MARKS = {FUSED: "F", EMPTY: "."}


def describe(run: str | Path) -> str:
    """Tasks of every seed with their scores and slot owners; then its sizes, once where all seeds have the same."""
    finished = open_finished(run)
    method = finished.config.method
    lines = [f"{method.name}: {method}", ""]
    for seed in finished.config.seeds:
        lines += _lessons(finished, seed)
    committed = edits.read(finished.folder.path)
    for edit in committed:
        lines.append(f"edit after {edit.tasks} tasks, {edit.at}: {edit.what}")
    for seed in finished.config.seeds:
        # Seeds may grow experts in different layers, so every one is shown with its own.
        lines += _experts(finished, seed)
    base_size = trees.count(finished.model.params)
    lines += ["", f"base: {base_size:,} parameters"]
    sizes = {seed: _sizes(finished, seed) for seed in finished.config.seeds}
    first = sizes[finished.first]
    if all(own == first for own in sizes.values()):
        return "\n".join([*lines, *first])
    # Seeds that grew in different layers, or have not learned everything, have sizes of their own.
    for seed, own in sizes.items():
        lines += [f"seed {seed}, {line}" for line in own]
    return "\n".join(lines)


def _sizes(run: FinishedRun, seed: int) -> list[str]:
    """Parameters of a seed beyond the base: a line for what is stored, archived and trained."""
    lines = []
    for what, counts in run.config.method.sizes(run.model, _learner(run, seed)).items():
        shown = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
        lines.append(f"{what}: {shown}")
    return lines


def _learner(run: FinishedRun, seed: int) -> Learner:
    """What a seed has learned, with the run's edits."""
    archive = run.ledger(seed).archive()
    return run.learner(archive, seed=seed)


def _experts(run: FinishedRun, seed: int) -> list[str]:
    """Slot owners of a seed; nothing for a method without experts."""
    learner = _learner(run, seed)
    if not learner.past:
        return []
    lines = ["", f"experts of seed {seed}:"]
    redirects = run.config.method.redirects(learner)
    for family, bank in learner.past.items():
        lines += _slots(family, bank, redirects)
    return lines


def _lessons(run: FinishedRun, seed: int) -> list[str]:
    """A line for every lesson of a seed, with its score in the last row, and remarks on dead experts."""
    ledger = run.ledger(seed)
    lessons = ledger.tasks()
    count = len(lessons)
    scores = Cells(run.seed(seed).cells).read()
    last_row = scores.get(count, {})
    lines = [f"seed {seed}: {count} lessons"]
    for lesson in lessons:
        cell = last_row.get(lesson.name, {})
        score = cell.get("score")
        shown = "not measured"
        if score is not None:
            shown = f"{score:.1f}"
        index = lesson.index
        facts = ledger.meta(index)
        records = facts["samples"]
        seconds = facts["seconds"]
        label = f"  {index}  {lesson.name:<24}"
        lines.append(f"{label} score {shown:>12}   {records} records, {seconds} s")
        idle = sentence(facts.get("experts", {}))
        if idle:
            lines.append(f"     {idle}")
    return lines


def _slots(family: str, bank: Bank, redirects: dict[tuple[int, int], np.ndarray]) -> list[str]:
    """Owner of every slot in every layer of a bank, and tasks that are served from another task's slot.

    Args:
      redirects: rows of the bank by (task, task whose slot serves it).
    """
    sites = ", ".join(bank.sites)
    head = f"{family}: rank {bank.rank}, {bank.slots} slots, sites {sites}"
    lines = ["", head, "  layer  slots (F fused, . empty)"]
    # The first row of a bank need not be the first decoder layer.
    owners_LS = np.asarray(bank.owner_LS).tolist()
    for layer, owners in enumerate(owners_LS, bank.first_layer):
        marks = " ".join(map(_mark, owners))
        lines.append(f"  {layer:>5}  {marks}")
    for (task, home), rows in redirects.items():
        layers = ", ".join(str(row + bank.first_layer) for row in rows)
        lines.append(f"  task {task} is answered from the expert of task {home} in layers {layers}")
    return lines


def _mark(owner: int) -> str:
    """The owner of a slot in the table: a task's number, or a letter for what is no task."""
    return _MARKS.get(owner, str(owner))
