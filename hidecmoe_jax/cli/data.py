"""`hidecmoe data check` opens a config as `run` does; `hidecmoe data pocket` writes the pocket stream,
`hidecmoe data folders` makes a task of class folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Assignments, Folders, Json, joined, read_config
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.core.paths import near_path
from hidecmoe_jax.core.records import json_text
from hidecmoe_jax.data.prepared import place

FINDINGS = "data_errors.jsonl"


def check(
    where: Annotated[tuple[str, ...], Positional, arg(metavar="CONFIG | DIR ...")],
    /,
    *,
    tasks: Folders = (),
    sets: Assignments = (),
    errors: Annotated[Path, arg(metavar="FILE")] = Path(FINDINGS),
    json: Json = False,
) -> int:
    """Check what `run` would do before it trains: base and tokenizer, every record, picture, reference and length, and
    test items that are also training items.

    Beyond that it warns of near-duplicate pictures and of files of truth that do not fit the test, and prints which
    answers tasks share.

    Examples:
      $ hidecmoe data check my/birds my/charts
      $ hidecmoe data check configs/pocket/hide.yaml
      $ hidecmoe data check configs/pocket/hide.yaml --tasks my/birds my/charts
      $ hidecmoe data check my/birds --json

    Args:
      where: one config as `run` takes it, or task folders in the order of the stream, checked with the pocket base and
        default settings.
      tasks: task folders in the order to learn them, instead of the config's.
      sets: config values that replace those of the file, such as stream.allowed_leaks=3.
      errors: file for all problems, as JSON lines; written only if there are any.
      json: print JSON instead of a table.
    """
    config = stream_config(where, tasks, sets, command="hidecmoe data check")
    opening = hj.open_config(config, errors=str(errors), compares=True)
    report = hj.whole_stream(opening.report, hj.stream_specs(config.stream), pictures=opening.pictures)
    print_text(json_text(report.record()) if json else report.text())
    # An exit code of its own, so that a script can stop before it trains.
    return report.exit_code


def stream_config(
    where: tuple[str, ...], tasks: Iterable[tuple], sets: Iterable[tuple], *, command: str
) -> hj.RunConfig:
    """Returns the config that the words of `command` name: a file with its `--tasks`, or defaults with these folders.

    Raises:
      ConfigError, DataError: no words, or words that are neither.
    """
    where = tuple(map(place, where))
    if not where:
        raise ConfigError("nothing to check", why="no config and no folder given", remedy=f"{command} DIR")
    folders = [name for name in where if Path(name).is_dir()]
    if len(where) == 1 and not folders:
        return read_config(where[0], sets=sets, tasks=tasks)
    if not folders and all(name.endswith((".yaml", ".yml")) for name in where):
        raise ConfigError("one config at a time", where=" ".join(where), remedy="check them one after the other")
    if len(folders) < len(where):
        missing = next(name for name in where if name not in folders)
        raise DataError(
            "no such task folder", where=missing, remedy=near_path(missing) or "give task folders, or one config alone"
        )
    if tasks:
        raise ConfigError(
            "task folders stand in two places", where=" ".join(where), why="as words and as --tasks",
            remedy="give one config before --tasks, or the folders alone",
        )  # fmt: skip
    return hj.default_config(overrides=joined(sets), tasks=folders)


def pocket(
    folder: Annotated[Path, Positional, arg(metavar="DIR")],
    /,
    *,
    seed: int = 0,
    train: int = 1000,
    val: int = 200,
    test: int = 300,
) -> None:
    """Draw the pocket stream into a folder: one task folder each, in the format of a user's own tasks.

    Examples:
      $ hidecmoe data pocket my/pocket
      $ hidecmoe data pocket my/small --train 200 --val 40 --test 60

    Args:
      folder: where to write; must not exist.
      seed: decides every picture and question.
      train: training items a task.
      val: validation items a task.
      test: test items a task.
    """
    print_text(f"drawn: {hj.write_stream(folder, seed=seed, train=train, val=val, test=test)}")


def folders(
    source: Annotated[Path, Positional, arg(metavar="PICTURES")],
    task: Annotated[Path, Positional, arg(metavar="DIR")],
    /,
    *,
    question: Annotated[str, arg(metavar="TEXT")],
    test: float = 0.2,
    seed: int = 0,
) -> None:
    """Make a task folder of pictures that lie in one folder for each answer, such as photos/cat and photos/dog.

    The name of a folder is the answer to its pictures, in any script. Pictures are linked, or
    copied where they lie on another disk. `hidecmoe data import classes` does the same.

    Examples:
      $ hidecmoe data folders photos my/animals --question "Which animal is this?"

    Args:
      source: folder that holds one folder of pictures for each answer.
      task: task folder to write; must not exist.
      question: the question about every picture.
      test: part of every answer's pictures that is kept for testing, above 0 and below 1.
      seed: decides which pictures these are.
    """
    made = hj.task_from_folders(source, task, question=question, test=test, seed=seed)
    print_text(made)
    print_text(f"next: hidecmoe data check {task}")
