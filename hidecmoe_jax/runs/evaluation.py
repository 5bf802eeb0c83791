"""Cells of the accuracy matrix: answers line by line on disk, then scores.

Answers are appended and synced batch by batch; an interrupted cell resumes after the last complete line and ends with
the same file. A cell is recorded only once all its answers are.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.strict import plain
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.evaluate.answer import Answer, unwritten
from hidecmoe_jax.evaluate.engine import rows_of
from hidecmoe_jax.methods.base import Decision, Serving
from hidecmoe_jax.runs.folder import CellsFolder
from hidecmoe_jax.runs.reuse import KnownAnswers, cache_key, known_answers, learned_names, reusable_answers
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.runs.status import Status, Work
from hidecmoe_jax.scoring.score import by_id, score
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.signals import Stop


def label_of(task: str, named: bool) -> str:
    """Name of a cell in its row."""
    return f"{task} (named)" if named else task


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Complete lines of an answers file, as `seal.read_lines`."""
    return seal.read_lines(path)


def _line(answer: Answer, names: Sequence[str], prompt: str, model: str) -> str:
    """One line of an answers file; its first keys are those that readers of LLaVA's and CoIN's result files expect."""
    weights = zip(names, answer.weights, strict=False)  # a learner has more task slots than the run has tasks
    scores = zip(names, answer.scores, strict=False)
    # Those scripts draw a random answer_id; here an interrupted cell must end with the same bytes.
    digest = hashlib.sha256(json.dumps([model, answer.id, answer.text]).encode()).hexdigest()
    line: dict[str, Any] = {"question_id": answer.id, "prompt": prompt, "text": answer.text}
    line |= {"answer_id": digest[:22], "model_id": model, "metadata": {}, "ended": answer.ended}
    line["weights"] = {name: round(weight, 6) for name, weight in weights}
    line["scores"] = {name: round(score, 6) for name, score in scores}
    if answer.finding is not None:
        nearest = names[answer.finding.nearest]
        finding = plain(answer.finding)
        line["finding"] = finding | {"nearest": nearest, "refused": answer.refused}
    if answer.missing:
        line["missing"] = list(answer.missing)
    return json.dumps(line, ensure_ascii=False)


def _known(
    session: Session, folder: CellsFolder, row: int, task: Task, basis: str, *, reference: bool, reuse: bool
) -> KnownAnswers:
    """Answers that a cell can copy: from earlier rows with `reuse`, and from the routed cell beside a `reference` cell.

    The latter holds for methods that never mix tasks: an answer whose task the gate chose is the answer with that task
    named.
    """
    # A sampled text depends on its place among the records.
    if session.config.method.traits.mixes_tasks or session.config.evaluate.writing.temperature > 0:
        return {}
    cells = Cells(folder.cells).read()
    sources = []
    for earlier in range(row if reuse else 0):
        sources += [(earlier, False), (earlier, True)]
    if reference:
        sources.append((row, False))
    rows = []
    for number, named in sources:
        label = label_of(task.name, named)
        cell = cells.get(number, {}).get(label, {})
        if cell.get("basis") == basis:
            lines = read_answers(folder.answers(number, task.name, named=named))
            rows.append((lines, learned_names(session, number)))
    return known_answers(rows)


def _replace_lines(path: Path, lines: list[dict[str, Any]], *, grows: bool) -> None:
    """Makes an answers file hold `lines`, in one step; one that does is not touched."""
    texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    seal.write_bytes(path, "".join(texts).encode(), grows=grows)


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
    copied: Sequence[Answer] = (),
    pace: Work | None = None,
) -> list[dict]:
    """Answers every test question of a task, resuming where an interrupted attempt stopped; returns all lines, in the
    questions' order.

    Args:
      named: answer with the task named.
      decision: of every question, if it was made already.
      copied: answers that are known already; nothing is generated for their questions.
      pace: gets the answers that are written, timed but for those of the first batch.

    Raises:
      PreemptedError: after a signal, once the batch at hand is on disk.
    """
    records = session.test(task)
    names = _task_names(session)
    done = read_answers(path)
    prompts = {record.id: _prompt_of(record) for record in records}

    def line_of(answer: Answer) -> str:
        return _line(answer, names, prompts[answer.id], session.config.method.name)

    known = {}
    for answer in copied:
        # Through the text that a file would hold, so that copied and resumed lines are rounded alike.
        known[answer.id] = json.loads(line_of(answer))
    lines = _by_question(done) | known
    path.parent.mkdir(parents=True, exist_ok=True)
    open_questions = sum(record.id not in lines for record in records)
    session.status.questions.add(len(records) - open_questions, 0.0)
    if open_questions:
        _replace_lines(path, done, grows=True)
        inputs = session.inputs(task)
        if decision is None:
            decision = session.engine.decide(serving, inputs, task.index if named else None)
        # Sampling keys count these rows. Known answers exist only under greedy decoding, which draws nothing.
        open_rows = [row for row, record in enumerate(records) if record.id not in known]
        batches = session.engine.answer(
            serving, inputs.rows(open_rows), rows_of(decision, open_rows),
            key=session.answer_key(task, seed), length=session.prompt_length, skip=frozenset(_by_question(done)),
        )  # fmt: skip
        batch_count = math.ceil(open_questions / session.config.evaluate.writing.batch)
        shown_batches = session.status.bar(f"batches of answers to {task.name}", total=batch_count)(batches)
        timed_batches = _timed(shown_batches, session.status, pace or Work())
        _append(path, timed_batches, task, line_of, stop)
        lines = _by_question(read_answers(path)) | known
    # Copied answers were not appended above; here they take their places between the generated ones.
    whole = [lines[record.id] for record in records]
    _replace_lines(path, whole, grows=False)
    return whole


def _task_names(session: Session) -> list[str]:
    return [task.name for task in session.stream.tasks]


def _by_question(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["question_id"]: line for line in lines}


def _timed(batches: Iterable[list[Answer]], status: Status, pace: Work) -> Iterator[list[Answer]]:
    """The same batches, counted as work done by the run's status and by the `pace` of this task."""
    since = time.monotonic()
    for batch in batches:
        now = time.monotonic()
        seconds = now - since
        # The first batch of a process contains compilation; any task's may, where its programs are others.
        status.questions.add(len(batch), seconds if status.questions.seconds or status.questions.done else None)
        pace.add(len(batch), seconds if pace.done else None)
        since = now
        yield batch


def _prompt_of(record: Record) -> str:
    """The question that is scored, without its markers of pictures, as result files of LLaVA have it."""
    return record.turns[-1].question.replace(IMAGE, "").strip()


def _append(
    path: Path, batches: Iterable[list[Answer]], task: Task, line_of: Callable[[Answer], str], stop: Stop
) -> None:
    """Writes answers as they come, durable batch by batch."""
    file = seal.Growing(path)
    for number, batch in enumerate(batches):
        text = "".join(line_of(answer) + "\n" for answer in batch)
        file.append(text.encode())
        crash_point("mid_evaluate", f"{task.name}:{number}")
        if stop.requested:
            stop.leave(f"answers to {task.name}, batch {number}")


def judge(task: Task, records: Sequence[Record], lines: list[dict], names: Sequence[str]) -> dict[str, Any]:
    """One cell: score, number of questions, texts that could not be parsed or were cut, and routed tasks."""
    texts = [(line["question_id"], line["text"]) for line in lines]
    references = {record.id: record.references for record in records}
    predictions = by_id(texts, where=f"answers to {task.name}")
    result = score(task.scorer, predictions, references)
    routed = []
    unknown = 0
    for line in lines:
        if not line["weights"]:
            continue
        name = routed_task(line)
        if name is None:
            unknown += 1
        else:
            routed.append(name)
    counts = {name: routed.count(name) for name in names} if routed else None
    return {
        "score": result.value,
        "count": result.count,
        "unparsed": result.unparsed,
        "cut": sum(not line["ended"] for line in lines),
        "parts": result.parts,
        "routed": counts,
        "unknown": unknown,
    }


def routed_task(line: dict[str, Any]) -> str | None:
    """The task an answer was routed to; None for an unknown input. A tie that the base answered counts as the nearest
    task."""
    weights = line["weights"]
    finding = line.get("finding")
    if any(weights.values()):
        return max(weights, key=weights.get)
    return None if finding is None or finding["unknown"] else finding["nearest"]


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
      stop: checked after every batch of answers.
      reuse: copy answers of earlier rows where they hold in this one.
    """
    cells = Cells(folder.cells)
    label = label_of(task.name, reference)
    # A measured cell is final: evaluating again measures only what is missing.
    if label in cells.read().get(row, {}):
        return
    start = time.monotonic()
    names = _task_names(session)
    basis = cache_key(session, serving, task)
    known = _known(session, folder, row, task, basis, reference=reference, reuse=reuse)
    decision = None
    copied = []
    if known:
        inputs = session.inputs(task)
        decision = session.engine.decide(serving, inputs, task.index if named else None)
        routed = unwritten(inputs.records, decision, session.config.evaluate.writing)
        copied = reusable_answers(routed, known, names, learned_names(session, row))
    path = folder.answers(row, task.name, named=reference)
    pace = Work()
    lines = write_answers(
        session, serving, task, path, seed=seed, named=named, stop=stop, decision=decision, copied=copied, pace=pace
    )  # fmt: skip
    cell = judge(task, session.test(task), lines, names)
    # Seconds of one answer, batches but the first; None where there was a single batch.
    warm = round(pace.seconds / pace.timed, 6) if pace.timed else None
    cell |= {"reused": len(copied), "basis": basis, "warm": {"seconds": warm}}
    folder.path.mkdir(parents=True, exist_ok=True)
    cell["seconds"] = round(time.monotonic() - start, 3)
    cells.write(row, label, cell)


def confusion(cells: dict[str, dict[str, Any]], names: Sequence[str]) -> np.ndarray | None:
    """Counts [true task, chosen task] of a row, unknown inputs in the last column; None where nothing chooses."""
    table = []
    for true in names:
        cell = cells.get(true)
        if cell is None or not (cell["routed"] or cell.get("unknown")):
            return None
        routed = cell["routed"] or {}
        counts = [routed.get(name, 0) for name in names]
        table.append([*counts, cell.get("unknown", 0)])
    return np.array(table, np.int64)
