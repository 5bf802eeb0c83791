"""`hidecmoe data check` validates a stream before training; `hidecmoe data pocket` writes the pocket stream,
`hidecmoe data folders` makes a task of class folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Assignments, read_config
from hidecmoe_jax.core.errors import ConfigError, DataError

FINDINGS = "data_errors.jsonl"


def check(
    where: Annotated[tuple[str, ...], Positional, arg(metavar="CONFIG | DIR ...")],
    /,
    *,
    sets: Assignments = (),
    errors: Annotated[Path, arg(metavar="FILE")] = Path(FINDINGS),
) -> int:
    """Check a stream before training on it: every record, every picture, and test items that are also training items.

    Examples:
      $ hidecmoe data check my/birds my/charts
      $ hidecmoe data check configs/pocket/hide.yaml

    Args:
      where: task folders in the order of the stream, or one config that names a stream.
      sets: config values that replace those of the file, such as stream.allowed_leaks=3.
      errors: file for all problems, as JSON lines; written only if there are any.
    """
    if not where:
        raise ConfigError("nothing to check", why="no config and no folder given", remedy="hidecmoe data check DIR")
    folders = [name for name in where if Path(name).is_dir()]
    if folders and len(folders) < len(where):
        missing = next(name for name in where if name not in folders)
        raise DataError("no such task folder", where=missing, remedy="give task folders, or one config alone")
    if not folders and len(where) > 1:
        raise ConfigError("one config at a time", where=" ".join(where), remedy="check them one after the other")
    if folders:
        tasks = tuple(hj.TaskSpec(name) for name in folders)
        stream = hj.StreamConfig(tasks=tasks)
    else:
        stream = read_config(where[0], sets=sets).stream
    specs = hj.stream_specs(stream)
    policy = hj.Policy(errors=str(errors))
    report = hj.check_stream(specs, policy=policy, val_fraction=stream.val_fraction)
    print(report.text())
    # An exit code of its own, so that a script can stop before it trains.
    return report.exit_code


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
    print(f"drawn: {hj.write_stream(folder, seed=seed, train=train, val=val, test=test)}")


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

    The name of a folder is the answer to its pictures, in any script. Pictures are copied unchanged.

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
    print(made)
    print(f"next: hidecmoe data check {task}")
