"""`hidecmoe add`: trains a finished run on one more task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import (
    Assignments,
    Folders,
    Number,
    Run,
    TaskFolder,
    Trackers,
    WholeNumber,
    joined,
    read_scale,
)
from hidecmoe_jax.core import processes
from hidecmoe_jax.core.errors import ConfigError


def add(
    run: Run,
    task: Annotated[TaskFolder, Positional, arg(metavar="TASK_DIR")],
    /,
    *,
    epochs: WholeNumber = None,
    rate: Number = None,
    redo: bool = False,
    status_minutes: float = 5.0,
    track: Trackers = (),
    gates: Annotated[Path | None, arg(metavar="FILE")] = None,
    force: bool = False,
    by: Annotated[str | None, arg(metavar="NAME")] = None,
    reason: Annotated[str | None, arg(metavar="TEXT")] = None,
    tasks: Folders = (),
    sets: Assignments = (),
) -> None:
    """Train a finished run on one more task; methods with experts per task leave the existing experts unchanged.

    With --gates the task is committed only if it keeps every limit of the file; else its lesson is taken back, a table
    is printed and the exit code is 9. A server meets the run before or after, never between.

    Examples:
      $ hidecmoe add runs/hide my/birds
      $ hidecmoe add runs/hide my/birds --epochs 3 --rate 2e-4
      $ hidecmoe add runs/hide my/birds --redo
      $ hidecmoe add runs/hide my/birds --gates gates.yaml
      $ hidecmoe add runs/hide my/birds --gates gates.yaml --force --by anna --reason "the old cameras are gone"

    Args:
      run: run folder.
      task: folder with train.json, images/ and, unless a split is to be carved from train.json, test.json; or
        tfds:NAME/CONFIG.
      epochs: passes over this task's training items; by default those of the run.
      rate: learning rate for this task; by default that of the run.
      redo: learn the last task of the run again, from this folder.
      status_minutes: minutes between two lines about the progress where there is no terminal; 0 for none.
      track: tensorboard, wandb, mlflow or trackio, as in `hidecmoe run`. (repeatable)
      gates: YAML file of what the old tasks may lose, what the new one must reach, and further sets (docs/operate.md).
      force: commit past gates that are not passed; needs --by and --reason, which gates.json of the run records.
      by: who answers for it.
      reason: why it is committed all the same.
      tasks: folders of the run's tasks in their order, where these were moved.
      sets: devices to work on, such as scale.mesh.data=1; all else is as in the run.
    """
    gating = _gating(gates, force, by, reason)
    processes.join()
    folder = hj.add(
        run,
        task,
        epochs=epochs,
        rate=rate,
        redo=redo,
        status_minutes=status_minutes,
        track=joined(track),
        tasks=joined(tasks),
        scale=read_scale(sets),
        gating=gating,
    )
    if processes.is_first():
        print_text("\n".join(hj.outcome_lines(folder)))
        print_text(f"report: {folder / 'report.html'}")


def _gating(path: Path | None, force: bool, by: str | None, reason: str | None) -> hj.Gating | None:
    """The gates of the options.

    Raises:
      ConfigError: options that do not belong together.
    """
    is_named = bool(by and by.strip() and reason and reason.strip())
    if force != is_named or bool(by or reason) != force:
        raise ConfigError(
            "--force, --by and --reason belong together", where="command",
            why="a forced commit has a name and a reason",
            remedy='--force --by anna --reason "the old cameras are gone"',
        )  # fmt: skip
    if path is None:
        if force:
            raise ConfigError("there is no gate to force", where="--force", remedy="give --gates FILE too")
        return None
    return hj.read_gates(path, force=hj.Force(by, reason) if force else None)
