"""A run as a record and as a text table: tasks and scores, owners of expert slots by layer, sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hidecmoe_jax.core import strict, trees
from hidecmoe_jax.core.records import CommittedEdit, ExpertBank, Inspection, LearnedLesson, LearnedSeed, Redirect
from hidecmoe_jax.experts.bank import EMPTY, FUSED, Bank
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.dead_experts import sentence
from hidecmoe_jax.runs.finished import FinishedRun, open_finished
from hidecmoe_jax.runs.scores import Cells

_MARKS = {FUSED: "F", EMPTY: "."}


def describe(run: str | Path) -> str:
    """The text of `hidecmoe inspect`."""
    return "\n".join(inspection_lines(inspect_run(run)))


def inspect_run(run: str | Path) -> Inspection:
    """Lessons, experts and sizes of every seed, and the edits that were committed.

    Raises:
      CheckpointError: no run, or a damaged one.
    """
    finished = open_finished(run)
    method = finished.config.method
    committed = [CommittedEdit(edit.tasks, edit.at, edit.what) for edit in edits.read(finished.folder.path)]
    return Inspection(
        method=method.name,
        settings=strict.plain(method),
        seeds=tuple(_seed(finished, seed) for seed in finished.config.seeds),
        edits=tuple(committed),
        base_parameters=trees.count(finished.model.params),
    )


def _seed(run: FinishedRun, seed: int) -> LearnedSeed:
    """What a seed has learned, with the run's edits."""
    method = run.config.method
    archive = run.ledger(seed).archive()
    learner = run.learner(archive, seed=seed)
    # Only experts can be redirected.
    rows = method.redirects(learner) if learner.past else {}
    redirects = []
    for family, bank in learner.past.items():
        for (task, home), of_bank in rows.items():
            layers = tuple(int(row) + bank.first_layer for row in of_bank)
            redirects.append(Redirect(family, int(task), int(home), layers))
    sizes = {}
    for what, counts in method.sizes(run.model, learner).items():
        sizes[what] = {kind: int(count) for kind, count in counts.items()}
    return LearnedSeed(
        seed=seed,
        lessons=_lessons(run, seed),
        banks=tuple(_bank(family, bank) for family, bank in learner.past.items()),
        redirects=tuple(redirects),
        parameters=sizes,
    )


def _lessons(run: FinishedRun, seed: int) -> tuple[LearnedLesson, ...]:
    """The lessons of a seed, each with its score in the last row."""
    ledger = run.ledger(seed)
    lessons = ledger.tasks()
    last_row = Cells(run.seed(seed).cells).read().get(len(lessons), {})
    learned = []
    for lesson in lessons:
        facts = ledger.meta(lesson.index)
        score = last_row.get(lesson.name, {}).get("score")
        idle = sentence(facts.get("experts", {}))
        learned.append(
            LearnedLesson(lesson.index, lesson.name, score, facts["samples"], facts["seconds"], idle or None)
        )
    return tuple(learned)


def _bank(family: str, bank: Bank) -> ExpertBank:
    owners = tuple(map(tuple, np.asarray(bank.owner_LS).tolist()))
    return ExpertBank(family, bank.rank, bank.slots, tuple(bank.sites), bank.first_layer, owners)


def inspection_lines(run: Inspection) -> list[str]:
    """The record for people; sizes are said once where all seeds have the same."""
    lines = [f"{run.method}: {run.settings}", ""]
    for seed in run.seeds:
        lines.append(f"seed {seed.seed}: {len(seed.lessons)} lessons")
        for lesson in seed.lessons:
            lines += _lesson_lines(lesson)
    for edit in run.edits:
        lines.append(f"edit after {edit.tasks} tasks, {edit.at}: {edit.what}")
    for seed in run.seeds:
        # Seeds may grow experts in different layers, so every one is shown with its own.
        lines += _expert_lines(seed)
    lines += ["", f"base: {run.base_parameters:,} parameters"]
    sizes = [_size_lines(seed) for seed in run.seeds]
    if all(of_seed == sizes[0] for of_seed in sizes):
        return [*lines, *sizes[0]]
    # Seeds that grew in different layers, or have not learned everything, have sizes of their own.
    for seed, of_seed in zip(run.seeds, sizes, strict=True):
        lines += [f"seed {seed.seed}, {line}" for line in of_seed]
    return lines


def _lesson_lines(lesson: LearnedLesson) -> list[str]:
    """A lesson with its score, and a remark on dead experts."""
    shown = "not measured" if lesson.score is None else f"{lesson.score:.1f}"
    label = f"  {lesson.index}  {lesson.name:<24}"
    lines = [f"{label} score {shown:>12}   {lesson.records} records, {lesson.seconds} s"]
    if lesson.remark is not None:
        lines.append(f"     {lesson.remark}")
    return lines


def _size_lines(seed: LearnedSeed) -> list[str]:
    """Parameters of a seed beyond the base: a line for what is stored, archived and trained."""
    lines = []
    for what, counts in seed.parameters.items():
        shown = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
        lines.append(f"{what}: {shown}")
    return lines


def _expert_lines(seed: LearnedSeed) -> list[str]:
    """Owner of every slot in every layer, and redirected tasks; nothing for a method without experts."""
    if not seed.banks:
        return []
    lines = ["", f"experts of seed {seed.seed}:"]
    for bank in seed.banks:
        head = f"{bank.family}: rank {bank.rank}, {bank.slots} slots, sites {', '.join(bank.sites)}"
        lines += ["", head, "  layer  slots (F fused, . empty)"]
        # The first row of a bank need not be the first decoder layer.
        for layer, owners in enumerate(bank.owners, bank.first_layer):
            # The owner of a slot is a task's number, or a letter for what is no task.
            marks = " ".join(_MARKS.get(owner, str(owner)) for owner in owners)
            lines.append(f"  {layer:>5}  {marks}")
        for redirect in seed.redirects:
            if redirect.family == bank.family:
                layers = ", ".join(map(str, redirect.layers))
                lines.append(
                    f"  task {redirect.task} is answered from the expert of task {redirect.home} in layers {layers}"
                )
    return lines
