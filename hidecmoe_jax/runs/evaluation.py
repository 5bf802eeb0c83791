"""Rows of the accuracy matrix: answers line by line on disk, then scores.

Answers are appended and synced batch by batch; a row that was cut off goes on after the last whole line and ends
with the same file. A cell exists only when all its answers do.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core.strict import plain
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.evaluate.answer import Answer, unwritten
from hidecmoe_jax.methods.base import Decision, Serving
from hidecmoe_jax.runs.folder import CellsFolder
from hidecmoe_jax.runs.reuse import basis_of, facts, learned, taken
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.session import Session, bar
from hidecmoe_jax.scoring.score import by_id, score
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.files import write_bytes
from hidecmoe_jax.storage.signals import Stop


def label_of(task: str, named: bool) -> str:
    """What a cell is called in its row."""
    return f"{task} (named)" if named else task


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Whole lines of an answers file; a line torn by a crash is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").split("\n"):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _line(answer: Answer, names: Sequence[str]) -> str:
    routed = {name: round(weight, 6) for name, weight in zip(names, answer.weights, strict=False)}
    scores = {name: round(value, 6) for name, value in zip(names, answer.scores, strict=False)}
    line = {"question_id": answer.id, "text": answer.text, "ended": answer.ended, "weights": routed, "scores": scores}
    if answer.finding is not None:
        line["finding"] = plain(answer.finding) | {"nearest": names[answer.finding.nearest], "refused": answer.refused}
    if answer.missing:
        line["missing"] = list(answer.missing)
    return json.dumps(line, ensure_ascii=False)


def _facts(
    session: Session, folder: CellsFolder, row: int, task: Task, basis: str, *, reference: bool, reuse: bool
) -> dict[tuple[str, str], dict[str, Any]]:
    """Texts that a cell need not write again: those of the routed cell beside a named one, where a gate that never
    blends has named the task by itself, and with `reuse` those of earlier rows."""
    # A sampled text depends on its place in the batch, so it cannot be reused.
    samples = session.config.evaluate.writing.temperature > 0
    if session.config.method.traits.mixes_tasks or samples:
        return {}
    cells = Cells(folder.cells).read()
    places = [(earlier, named) for earlier in range(row if reuse else 0) for named in (False, True)]
    return facts(
        (read_answers(folder.answers(number, task.name, named=named)), learned(session, number))
        for number, named in places + [(row, False)] * reference
        if cells.get(number, {}).get(label_of(task.name, named), {}).get("basis") == basis
    )


def _replaced(path: Path, lines: list[dict[str, Any]]) -> None:
    """Makes an answers file hold `lines`, in one step, unless it does."""
    whole = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != whole:
        write_bytes(path, whole.encode())


def write_answers(
    session: Session,
    serving: Serving,
    task: Task,
    path: Path,
    *,
    seed: int,
    named: bool,
    stop: Stop,
    decision: Decision | None = None,
    given: Sequence[Answer] = (),
) -> list[dict]:
    """Answers every test question of a task, going on where a former attempt stopped; returns all lines, in the
    questions' order.

    Args:
      decision: how the task of every question was found, if that is known already.
      given: answers that are known already; nothing is written for their questions.

    Raises:
      PreemptedError: after a signal, once the batch at hand is on disk.
    """
    records, done, names = session.test(task), read_answers(path), [one.name for one in session.stream.tasks]
    known = {answer.id: json.loads(_line(answer, names)) for answer in given}
    lines = {line["question_id"]: line for line in done} | known
    path.parent.mkdir(parents=True, exist_ok=True)
    if any(record.id not in lines for record in records):
        _replaced(path, done)
        inputs = session.inputs(task)
        if decision is None:
            decision = session.engine.decide(serving, inputs, task.index if named else None)
        open_rows = [row for row, record in enumerate(records) if record.id not in known]
        batches = session.engine.answer(
            serving, inputs.rows(open_rows), jax.tree.map(itemgetter(open_rows), decision),
            key=session.answer_key(task, seed), length=session.prompt_length,
            skip=frozenset(line["question_id"] for line in done),
        )  # fmt: skip
        _append(path, batches, task, names, stop)
        lines = {line["question_id"]: line for line in read_answers(path)} | known
    whole = [lines[record.id] for record in records]
    _replaced(path, whole)
    return whole


def _append(path: Path, batches: Iterable[list[Answer]], task: Task, names: Sequence[str], stop: Stop) -> None:
    """Writes answers as they come, durable batch by batch."""
    with open(path, "a", encoding="utf-8") as file:
        for number, batch in enumerate(bar(f"answers to {task.name}")(batches)):
            file.write("".join(_line(answer, names) + "\n" for answer in batch))
            file.flush()
            os.fsync(file.fileno())
            crash_point("mid_evaluate", f"{task.name}:{number}")
            if stop.requested:
                stop.leave(f"answers to {task.name}, batch {number}")


def judge(task: Task, records, lines: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """One cell: score, denominator, what could not be read or was cut, and where inputs were routed."""
    predictions = by_id([(line["question_id"], line["text"]) for line in lines], where=f"answers to {task.name}")
    result = score(task.scorer, predictions, {record.id: record.references for record in records})
    weighed = [line for line in lines if line["weights"]]
    routed = [name for name in map(_chosen, weighed) if name is not None]
    return {
        "score": result.value,
        "count": result.count,
        "unparsed": result.unparsed,
        "cut": sum(not line["ended"] for line in lines),
        "parts": result.parts,
        "routed": {name: routed.count(name) for name in names} if routed else None,
        "unknown": len(weighed) - len(routed),
    }


def _chosen(line: dict[str, Any]) -> str | None:
    """The task an answer was routed to; of a tie that the base has answered the nearest, None for an unknown input."""
    weights, found = line["weights"], line.get("finding")
    if any(weights.values()):
        return max(weights, key=weights.get)
    return None if found is None or found["unknown"] else found["nearest"]


def evaluate_cell(
    session: Session,
    serving: Serving,
    folder: CellsFolder,
    row: int,
    task: Task,
    *,
    seed: int,
    named: bool,
    reference: bool,
    stop: Stop,
    reuse: bool = False,
) -> None:
    """Measures one cell unless it has been measured.

    Args:
      named: answer with the task named (methods that need it, and the reference).
      reference: file it beside the cell of the routed answers.
      stop: asked after every batch of answers.
      reuse: answers of earlier rows hold in this one.
    """
    cells, label = Cells(folder.cells), label_of(task.name, reference)
    if label in cells.read().get(row, {}):
        return
    start = time.monotonic()
    path = folder.answers(row, task.name, named=reference)
    records, names, basis = session.test(task), [t.name for t in session.stream.tasks], basis_of(session, serving, task)
    known, decision, given = _facts(session, folder, row, task, basis, reference=reference, reuse=reuse), None, []
    if known:
        decision = session.engine.decide(serving, session.inputs(task), task.index if named else None)
        routed = unwritten(records, decision, session.config.evaluate.writing)
        given = taken(routed, known, names, learned(session, row))
    lines = write_answers(
        session, serving, task, path, seed=seed, named=named, stop=stop, decision=decision, given=given
    )  # fmt: skip
    cell = judge(task, records, lines, names) | {"reused": len(given), "basis": basis}
    folder.path.mkdir(parents=True, exist_ok=True)
    cells.write(row, label, cell | {"seconds": round(time.monotonic() - start, 3)})


def confusion(cells: dict[str, dict[str, Any]], names: Sequence[str]) -> np.ndarray | None:
    """Counts [true task, chosen task] of a row, the last column those of no known task; None where nothing chooses."""
    if not all(name in cells and (cells[name]["routed"] or cells[name].get("unknown")) for name in names):
        return None
    chosen = [cells[true]["routed"] or dict.fromkeys(names, 0) for true in names]
    lost = [cells[true].get("unknown", 0) for true in names]
    return np.array([[*(row[name] for name in names), n] for row, n in zip(chosen, lost, strict=True)], np.int64)
