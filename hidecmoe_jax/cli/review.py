"""`hidecmoe review`: answers that wait for a person, and decisions about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Folder
from hidecmoe_jax.core.errors import ConfigError


def review(
    log: Annotated[Path, Positional, arg(metavar="LOG")],
    /,
    *,
    of: Annotated[str | None, arg(metavar="ID")] = None,
    decision: Literal["right", "other_task", "answer", "new_task", "bad_picture"] | None = None,
    task: Annotated[str | None, arg(metavar="NAME")] = None,
    answer: Annotated[str | None, arg(metavar="TEXT")] = None,
    by: Annotated[str | None, arg(metavar="NAME")] = None,
    run: Folder = None,
    json_lines: Annotated[bool, arg(name="json")] = False,
) -> None:
    """List the answers that wait for a person (unknown, nearly tied, drawn at random), or decide about one.

    A decision becomes a line of the log. While a server writes the log, decide on its page, or POST /v1/reviews. With
    --run, an answer of the wrong task is given again by the right one at once, if its pictures were kept.

    Examples:
      $ hidecmoe review log
      $ hidecmoe review log --of 5f0c2a91d3b7e846 --decision right --by ben
      $ hidecmoe review log --of 5f0c2a91d3b7e846 --decision other_task --task charts --by ben --run runs/hide
      $ hidecmoe review log --of 5f0c2a91d3b7e846 --decision new_task --task owls --answer "a barn owl" --by ben

    Args:
      log: folder of the decision log.
      of: id of the answer to decide about.
      decision: right; other_task (with --task); answer (with the right --answer); new_task (--task names it, --answer
        helps to learn it); bad_picture.
      task: the right task, or the name of a new one.
      answer: the right answer.
      by: who decides; the log keeps it.
      run: run folder; checks the task's name, and answers again.
      json_lines: print what waits as JSON lines.
    """
    if (of is None) != (decision is None):
        raise ConfigError(
            "--of and --decision belong together", where="command",
            why="one says which answer, the other what is right",
            remedy="hidecmoe review LOG lists the ids",
        )  # fmt: skip
    if of is not None:
        for line in hj.decide(log, hj.Judgement(of, decision, task, answer), by=by, run=run):
            print_text(line)
        return
    lines = hj.waiting_answers(log)
    for line in lines:
        print_text(json.dumps(line, ensure_ascii=False) if json_lines else _shown(line))
    if not json_lines:
        print_text(f"{len(lines)} wait")


def _shown(line: dict) -> str:
    """An answer that waits, as text for a terminal."""
    task = line["task"] or "no known task"
    answer = "(refused)" if line["refused"] else line["answer"]
    asked = [f"{line['time'][:16]}  {line['id']}  {line['sampled']}", f"  {line['question']}", f"  {task}: {answer}"]
    asked += [f"  picture: {picture}" for picture in line["picture_files"]]
    return "\n".join(asked)
