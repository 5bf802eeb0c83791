"""`hidecmoe ask`: answers to one question or a file of them, with the task that each was taken for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Json, Run, WholeNumber
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.records import json_text, record_of


def ask(
    run: Run,
    question: Annotated[str | None, Positional, arg(metavar="QUESTION")] = None,
    /,
    *,
    image: Annotated[UseAppendAction[tuple[Path, ...]], arg(metavar="FILE")] = (),
    file: Annotated[Path | None, arg(metavar="FILE")] = None,
    json: Json = False,
    named: Annotated[str | None, arg(name="as", metavar="TASK")] = None,
    task: WholeNumber = None,
    skip_missing: bool = False,
    as_is: bool = False,
) -> int:
    """Answer a question about a picture, or a file of questions; prints the answer and the task it was taken for.

    Exit code 8: a question was refused, because it belongs to no known task (evaluate.writing.unknown=refuse). Without
    a learned task there is no answer (exit code 4).

    Examples:
      $ hidecmoe ask runs/hide --image digit.png "Which digit is this?"
      $ hidecmoe ask runs/hide --file questions.jsonl --json
      $ hidecmoe ask runs/hide --image digit.png "Which digit is this?" --as digits

    Args:
      run: run folder, or the folder of a base model.
      question: the question, without image markers.
      image: picture file; give the option again for several pictures.
      file: questions as JSON lines, {"question": "...", "image": "a.png"}, paths relative to the file's folder; all are
        checked before the model is loaded, and it is loaded once.
      json: print every answer as one line of JSON: text, task, known, refused, exit_code, routing, fit, ...
      named: task whose expert answers, whatever the gate would choose; for a question that was taken for another task.
      task: use the run as it was after its first N tasks.
      skip_missing: answer without tasks whose files are missing or damaged, instead of refusing.
      as_is: ask the question as it is; by default the line that its task was trained with is added where it is missing.
    """
    if (question is None) == (file is None):
        why = "neither QUESTION nor --file is given" if file is None else "both are given"
        raise ConfigError(
            "ask one question, or a file of them", why=why,
            remedy='hidecmoe ask RUN "Which bird is this?" --image bird.png, or hidecmoe ask RUN --file FILE',
        )  # fmt: skip
    if file is None:
        questions = (hj.Question(question, tuple(map(str, image))),)
    elif image:
        raise ConfigError(
            "--image belongs to a question of the command line", where=f"--file {file}",
            remedy='write pictures into the file: {"question": "...", "image": "a.png"}',
        )  # fmt: skip
    else:
        questions = hj.read_questions(file, run)
    replies = hj.ask(run, questions, task=task, skip_missing=skip_missing, as_is=as_is, named=named)
    for asked, reply in zip(questions, replies, strict=True):
        print_text(_json_line(asked, reply) if json else _lines(asked, reply))
    # One code for the whole file: a script must notice that a question has no answer.
    return max(reply.exit_code for reply in replies)


def _json_line(asked: Any, reply: Any) -> str:
    """A reply as one line of JSON, with the question."""
    line = {"id": asked.id, "question": asked.text, "images": list(asked.images)} | reply.to_json()
    return json_text(record_of("ask", line), indent=None)


def _lines(asked: Any, reply: Any) -> str:
    """A reply as text for a terminal."""
    lines = []
    if asked.source:
        name = f" {asked.id}" if asked.id else ""
        lines.append(f"{asked.source}{name}: {asked.text}")
    text = reply.text or "(an empty answer)"
    lines.append("(refused: this belongs to no known task)" if reply.refused else text)
    if not reply.answer.ended and not reply.refused:
        lines.append("  cut off: the answer is longer than evaluate.writing.max_new_tokens")
    lines.append(f"  {reply.decision}")
    if reply.answer.line_added is not None:
        lines.append(f"  asked with the line that it was trained with: {reply.answer.line_added}")
    if reply.answer.routing_text_cut:
        lines.append("  the gate has read only the beginning of the question, which is too long for its text tower")
    if reply.fit is not None:
        lines.append(f"  {reply.fit}")
    shares = [f"{name} {100 * weight:.0f} %" for name, weight in reply.routing.items() if weight]
    if len(shares) > 1:
        lines.append(f"  experts mixed: {', '.join(shares)} (shares, no confidence)")
    return "\n".join(lines)
