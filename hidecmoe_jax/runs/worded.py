"""Routing of a finished seed's test questions in other wordings, measured once and kept in the seed's folder."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.data.rewording import common_line
from hidecmoe_jax.evaluate.wording import TABLES, WordedTask, lowest_cell, measure_wordings
from hidecmoe_jax.runs.edits import read
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.arrays import Groups


def write_wordings(session: Session, folder: SeedFolder, archive: list[Groups | None], seed: int) -> None:
    """Measures the wordings of a seed that has learned all lessons, unless they are measured; nothing for a method
    without a gate that chooses."""
    method = session.config.method
    if not method.gated or method.traits.needs_task_name or not archive:
        return
    basis = _basis(folder.run.path, len(archive))
    if (seal.read_json(folder.wording) or {}).get("basis") == basis:
        return
    learner = session.learner_after(archive, folder.run.path, seed)
    serving = method.serve(session.answering, learner)
    learned = method.learned(learner)
    tasks = []
    for task in session.stream.tasks:
        if task.index in learned:
            line = common_line(task.train) if task.train else None
            tasks.append(WordedTask(task.index, task.name, session.test(task), line))
    measured = measure_wordings(session.engine, serving, tasks)
    seal.write_json(folder.wording, {"basis": basis, **measured})


def _basis(run: Path, lessons: int) -> dict[str, Any]:
    """What a measurement depends on beside the run's identity: its tables, the number of lessons, the time of edits."""
    return {"tables": list(TABLES), "lessons": lessons, "edits": [committed.at for committed in read(run)]}


def wordings_of(run: Path, seeds: Sequence[SeedFolder], lessons: int) -> dict[str, Any]:
    """Mean over seeds of what `write_wordings` measured; empty where a seed lacks it, or has it of another state."""
    basis = _basis(run, lessons)
    measured = []
    for seed in seeds:
        values = seal.read_json(seed.wording)
        if values is None or values["basis"] != basis:
            return {}
        measured.append(values)
    first = measured[0]
    tables = {}
    for name in TABLES:
        tables[name] = {}
        for wording in first[name]:
            cells = [values[name][wording] for values in measured]
            tables[name][wording] = [round(statistics.fmean(cell), 2) for cell in zip(*cells, strict=True)]
    means = {}
    for name in ("text_alone", "picture_alone"):
        values_of_seeds = [values[name] for values in measured]
        means[name] = None if None in values_of_seeds else round(statistics.fmean(values_of_seeds), 2)
    lowest = lowest_cell(tables["accuracy"], first["tasks"])
    return {"tasks": first["tasks"], **tables, "lowest": lowest, **means}
