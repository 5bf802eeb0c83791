"""`hidecmoe add`: trains a finished run on one more task."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Assignments, Folders, Number, Run, TaskFolder, WholeNumber, joined, read_scale
from hidecmoe_jax.core import processes


def add(
    run: Run,
    task: Annotated[TaskFolder, Positional, arg(metavar="TASK_DIR")],
    /,
    *,
    epochs: WholeNumber = None,
    rate: Number = None,
    redo: bool = False,
    status_minutes: float = 5.0,
    tasks: Folders = (),
    sets: Assignments = (),
) -> None:
    """Train a finished run on one more task; methods with experts per task leave the existing experts unchanged.

    Examples:
      $ hidecmoe add runs/hide my/birds
      $ hidecmoe add runs/hide my/birds --epochs 3 --rate 2e-4
      $ hidecmoe add runs/hide my/birds --redo

    Args:
      run: run folder.
      task: folder with train.json, images/ and, unless a split is to be carved from train.json, test.json; or
        tfds:NAME/CONFIG.
      epochs: passes over this task's training items; by default those of the run.
      rate: learning rate for this task; by default that of the run.
      redo: learn the last task of the run again, from this folder.
      status_minutes: minutes between two lines about the progress where there is no terminal; 0 for none.
      tasks: folders of the run's tasks in their order, where these were moved.
      sets: devices to work on, such as scale.mesh.data=1; all else is as in the run.
    """
    processes.join()
    folder = hj.add(
        run,
        task,
        epochs=epochs,
        rate=rate,
        redo=redo,
        status_minutes=status_minutes,
        tasks=joined(tasks),
        scale=read_scale(sets),
    )
    if processes.is_first():
        print("\n".join(hj.outcome_lines(folder)))
        print(f"report: {folder / 'report.html'}")
