"""`hidecmoe data import`: files of other formats and official trees of benchmarks become task folders."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Folder, Number, WholeNumber, joined, pairs
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.scoring.score import scorer_of

CLASSES = "classes"
BENCHMARKS = ("mcitlib", "coin")
Formats = Literal["llava", "sharegpt", "messages", "jsonl", "csv", "classes", "hf", "parquet", "mcitlib", "coin"]
Fields = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="FIELD=KEY ...")]
Text = Annotated[str | None, arg(metavar="TEXT")]


def import_data(
    format: Annotated[Formats, Positional, arg(metavar="FORMAT")],
    source: Annotated[Path, Positional, arg(metavar="SRC")],
    target: Annotated[Path, Positional, arg(metavar="DST")],
    /,
    *,
    images: Folder = None,
    fields: Fields = (),
    question: Text = None,
    scorer: Text = None,
    test: Number = None,
    seed: WholeNumber = None,
    instructions: Text = None,
) -> None:
    """Make a task folder of files of another format, and print what was changed.

    FORMAT is one of:
      llava, sharegpt, messages   JSON or JSON lines of conversations, in any of their three spellings
      jsonl                       JSON lines, each a conversation, or a question with its answer
      csv                         a table whose first line names the columns: image, question, answer
      classes                     a folder of pictures for each answer; needs --question
      hf, parquet                 a folder of `datasets` or of the hub; one or more parquet files
      mcitlib, coin               UCIT, MLLM-DCL, MLLM-ACL or CoIN as published; DST gets a task folder for each task

    SRC is a file, whose records are for training, or a folder of files named train, val and test. Pictures are linked,
    not copied, where both places lie on one disk. Records that cannot be read are all named, and nothing is written.

    Examples:
      $ hidecmoe data import llava downloads/llava.json my/llava --images downloads/images
      $ hidecmoe data import csv inspection/table.csv my/parts --fields image=photo answer=verdict
      $ hidecmoe data import classes photos my/animals --question "Which animal is this?"
      $ hidecmoe data import mcitlib downloads/UCIT my/ucit

    Args:
      format: as above.
      source: file or folder to read.
      target: task folder to write; must not exist.
      images: folder that paths of pictures are relative to; by default that of the records.
      fields: key or column of the source for id, image, question or answer, where its name does not say it.
      question: question of every record that has none.
      scorer: scoring rule for task.json.
      test: classes: part of every answer's pictures that is kept for testing; by default 0.2.
      seed: classes: decides which pictures these are; by default 0.
      instructions: coin: which wording of the instructions; by default Instructions_Original.
    """
    if format in BENCHMARKS:
        _refuse(format, fields=fields, question=question, scorer=scorer, test=test, seed=seed)
        made = hj.import_benchmark(format, source, target, images=images, instructions=instructions)
        print_text(made)
        print_text(f"next: hidecmoe data check {shlex.join(str(task.folder) for task in made.tasks)}")
        return
    if format == CLASSES:
        _refuse(format, images=images, fields=fields, scorer=scorer, instructions=instructions)
        _import_classes(source, target, question, test, seed)
    else:
        _refuse(format, test=test, seed=seed, instructions=instructions)
        if scorer is not None:
            scorer_of(scorer, where=f"--scorer {scorer}")
        options = hj.ImportOptions(images, pairs(joined(fields)), question, scorer)
        print_text(hj.import_task(format, source, target, options=options))
    print_text(f"next: hidecmoe data check {shlex.quote(str(target))}")


def _import_classes(source: Path, target: Path, question: str | None, test: float | None, seed: int | None) -> None:
    if question is None:
        raise ConfigError(
            "class folders have no question", where="--question", why="it is not given",
            remedy='--question "Which animal is this?" is asked about every picture',
        )  # fmt: skip
    kept = 0.2 if test is None else test
    print_text(hj.task_from_folders(source, target, question=question, test=kept, seed=seed or 0))


def _refuse(format: str, **options) -> None:
    """Raises a ConfigError for an option that a format does not take."""
    for name, value in options.items():
        if value not in (None, ()):
            raise ConfigError(
                "this format does not take the option", where=f"--{name}", why=f"the format is {format}",
                remedy="leave it out",
            )  # fmt: skip
