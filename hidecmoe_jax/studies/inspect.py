"""Description of a run as a text table: tasks and scores, owners of expert slots by layer, sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.experts.bank import EMPTY, FUSED, Bank
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.dead_experts import sentence
from hidecmoe_jax.runs.finished import FinishedRun, open_finished
from hidecmoe_jax.runs.scores import Cells

_MARKS = {FUSED: "F", EMPTY: "."}


def describe(run: str | Path) -> str:
    """Tasks of every seed with their scores; then slot owners and sizes of the first seed, the one that answers."""
    finished = open_finished(run)
    method = finished.config.method
    lines = [f"{method.name}: {method}", ""]
    for seed in finished.config.seeds:
        lines += _lessons(finished, seed)
    for committed in edits.read(finished.folder.path):
        lines.append(f"edit after {committed.tasks} tasks, {committed.at}: {committed.what}")
    archive = finished.ledger().archive()
    learner = finished.learner(archive)
    if learner.past:
        # Seeds may grow experts in different layers.
        lines += ["", f"experts of seed {finished.first}:"]
    redirects = method.redirects(learner) if learner.past else {}
    for family, bank in learner.past.items():
        lines += _slots(family, bank, redirects)
    lines += ["", f"base: {trees.count(finished.model.params):,} parameters"]
    for what, counts in method.sizes(finished.model, learner).items():
        sizes = [f"{kind} {count:,}" for kind, count in counts.items()]
        lines.append(f"{what}: {', '.join(sizes)}")
    return "\n".join(lines)


def _lessons(run: FinishedRun, seed: int) -> list[str]:
    """A line for every lesson of a seed, with its score in the last row, and remarks on dead experts."""
    ledger = run.ledger(seed)
    lessons = ledger.tasks()
    cells = Cells(run.seed(seed).cells).read()
    last_row = cells.get(len(lessons), {})
    lines = [f"seed {seed}: {len(lessons)} lessons"]
    for lesson in lessons:
        score = last_row.get(lesson.name, {}).get("score")
        shown = "not measured" if score is None else f"{score:.1f}"
        facts = ledger.meta(lesson.index)
        records = facts["samples"]
        seconds = facts["seconds"]
        label = f"  {lesson.index}  {lesson.name:<24}"
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
    lines = [
        "",
        f"{family}: rank {bank.rank}, {bank.slots} slots, sites {', '.join(bank.sites)}",
        "  layer  slots (F fused, . empty)",
    ]
    # The first row of a bank need not be the first decoder layer.
    owners_LS = np.asarray(bank.owner_LS).tolist()
    for layer, owners in enumerate(owners_LS, bank.first_layer):
        marks = [_MARKS.get(owner, str(owner)) for owner in owners]
        lines.append(f"  {layer:>5}  {' '.join(marks)}")
    for (task, home), rows in redirects.items():
        layers = [str(row + bank.first_layer) for row in rows]
        lines.append(f"  task {task} is answered from the expert of task {home} in layers {', '.join(layers)}")
    return lines
