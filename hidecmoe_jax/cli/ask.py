"""`hidecmoe ask`: one answer, with the weight of every task's experts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Run

BAR = 24  # characters of a full bar


def ask(
    run: Run,
    question: Annotated[str, Positional, arg(metavar="QUESTION")],
    /,
    *,
    image: Annotated[UseAppendAction[tuple[Path, ...]], arg(metavar="FILE")] = (),
    task: Annotated[int | None, arg(metavar="N")] = None,
    skip_missing: bool = False,
) -> None:
    """Answer a question about a picture; prints the answer and the weight of every task's experts.

    Examples:
      $ hidecmoe ask runs/hide --image digit.png "Which digit is this?"

    Args:
      run: run folder, or the folder of a base model.
      question: the question, without image markers.
      image: picture file; give the option again for several pictures.
      task: use the run as it was after its first N tasks.
      skip_missing: answer without tasks whose files are missing or damaged, instead of refusing.
    """
    reply = hj.load(run, task=task, skip_missing=skip_missing).answer(list(image), question)
    print("(refused: this belongs to no known task)" if reply.answer.refused else reply.text)
    for name, weight in reply.weights.items():
        print(f"  {name:<24} {weight:6.3f}  {'#' * round(BAR * weight)}")
    print(f"  {reply.decision}")
