"""Review of a log from the command line: what waits, with its pictures, and decisions while no server writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import BusyError
from hidecmoe_jax.operate.decision_log import open_log, read_log
from hidecmoe_jax.operate.kept_pictures import find_picture
from hidecmoe_jax.operate.review import Judgement, find_answer, review_of, waiting
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.runs.questions import Question, ask


def waiting_answers(log: str | Path) -> list[dict[str, Any]]:
    """Lines of the answers that wait, the oldest first, each with `picture_files`: paths of its kept pictures.

    Raises:
      CheckpointError: the log is broken.
    """
    log = Path(log)
    answers = []
    for line in waiting(read_log(log)):
        answers.append({**line, "picture_files": [str(path) for path in _pictures(log, line) if path is not None]})
    return answers


def _pictures(log: Path, line: dict[str, Any]) -> list[Path | None]:
    return [find_picture(log, digest) for digest in line["pictures"]]


def decide(log: str | Path, judgement: Judgement, *, by: str | None = None, run: str | Path | None = None) -> list[str]:
    """Writes a decision into a log that no server writes; returns what to show for it.

    Args:
      run: of the answers; its right task answers again where the wrong one did, if question and pictures were kept.

    Raises:
      DataError: no such answer, or a decision that does not fit.
      BusyError: a server writes the log.
    """
    log = Path(log)
    answer = find_answer(read_log(log), judgement.of)
    tasks = None if run is None else task_names(Path(run))
    entry = review_of(judgement, answer, tasks=tasks, by=by)
    try:
        with open_log(log) as opened:
            opened.append(entry)
    except BusyError as error:
        raise BusyError(
            "a server writes this log", where=str(log), why=error.why,
            remedy="decide on its page, or POST /v1/reviews (docs/operate.md)",
        ) from None  # fmt: skip
    shown = [f"recorded: {entry.decision}" + (f", {entry.task}" if entry.task else "")]
    if run is None or entry.decision != "other_task":
        return shown
    pictures = _pictures(log, answer)
    if answer["question"] is None or None in pictures:
        return [*shown, "not answered again: the question or a picture was not kept"]
    (reply,) = ask(run, [Question(answer["question"], tuple(map(str, pictures)))], named=entry.task)
    return [*shown, f"{entry.task} answers: {reply.text}"]
