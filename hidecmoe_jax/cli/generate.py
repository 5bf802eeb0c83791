"""`hidecmoe generate`: answers to a file of questions, in the files that other evaluations read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Folder, Run, WholeNumber


def generate(
    run: Run,
    /,
    *,
    file: Annotated[Path, arg(metavar="FILE")],
    out: Annotated[Path, arg(metavar="FILE")],
    image_folder: Folder = None,
    form: Annotated[Literal["jsonl", "json", "tsv"] | None, arg(name="format")] = None,
    task: WholeNumber = None,
    batch: WholeNumber = None,
    max_new_tokens: WholeNumber = None,
    max_length: WholeNumber = None,
    model_id: Annotated[str | None, arg(metavar="NAME")] = None,
    add_line: bool = False,
    skip_missing: bool = False,
    status_minutes: float = 5.0,
) -> None:
    """Answer a file of questions, for the evaluations of LLaVA, CoIN, MCITlib and VLMEvalKit.

    The task of every question is chosen as in `ask` and recorded with its answer. Stop it whenever you like: the same
    command goes on where it was.

    Examples:
      $ hidecmoe generate runs/hide --file questions.jsonl --out answers.jsonl
      $ hidecmoe generate runs/hide --file UCIT/ArxivQA/test.json --image-folder UCIT/images --out merge.jsonl
      $ hidecmoe generate runs/hide --file MMBench_DEV_EN.tsv --out hide_MMBench_DEV_EN.tsv --batch 16

    Args:
      run: run folder, or the folder of a base model.
      file: questions: JSON lines or a JSON array of {"question_id": 1, "image": "a.png", "text": "..."}, or a table of
        VLMEvalKit (.tsv).
      out: answers to write, .jsonl or .tsv; must not exist.
      image_folder: folder that the pictures' names are relative to; that of the file of questions if not given.
      form: format of the file of questions, where its ending does not say it.
      task: use the run as it was after its first N tasks.
      batch: questions answered together; as in the run's config if not given. Answers do not depend on it.
      max_new_tokens: tokens of the longest answer; as in the run's config if not given.
      max_length: tokens of the longest prompt, those of its pictures included; as in the run's config if not given.
      model_id: name of the model in the answers; the name of the run's folder if not given.
      add_line: add the line that a task was trained with where a question lacks it, as `ask` does; by default questions
        are asked as they are written.
      skip_missing: answer without tasks whose files are missing or damaged, instead of refusing.
      status_minutes: minutes between two lines about the progress where there is no terminal; 0 for none.
    """
    made = hj.generate_file(
        run,
        file,
        out,
        image_folder=image_folder,
        form=form,
        task=task,
        skip_missing=skip_missing,
        add_line=add_line,
        batch=batch,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        model_id=model_id,
        status_minutes=status_minutes,
    )
    shares = []
    for name, count in sorted(made.tasks.items(), key=lambda item: -item[1]):
        shares.append(f"{name or 'no task'} {count}")
    print_text(f"written: {made.path}, {made.count} answers; taken for: {', '.join(shares)}")
    if made.unknown:
        fate = f", {made.refused} of them refused" if made.refused else ""
        print_text(
            f'  {made.unknown} belong to no known task{fate}; they have "known": false in the answers\' metadata'
        )
    if made.cut:
        print_text(f"  {made.cut} answers were cut off; --max-new-tokens allows longer ones")
