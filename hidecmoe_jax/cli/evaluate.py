"""`hidecmoe eval`: evaluates a finished run again."""

from __future__ import annotations

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Assignments, Folders, Run, WholeNumber, joined, read_scale
from hidecmoe_jax.core import processes


def evaluate(
    run: Run,
    /,
    *,
    task: WholeNumber = None,
    full_matrix: bool = False,
    skip_missing: bool = False,
    tasks: Folders = (),
    sets: Assignments = (),
) -> None:
    """Evaluate a run again; answers that are already on disk are not computed twice.

    Examples:
      $ hidecmoe eval runs/hide
      $ hidecmoe eval runs/hide --task 2

    Args:
      run: run folder.
      task: evaluate the run as it was after its first N tasks; 0 is the base model.
      full_matrix: evaluate on every task of the stream, also those not yet learned.
      skip_missing: evaluate without tasks whose files are missing or damaged, beside the run, instead of refusing.
      tasks: folders of the run's tasks in their order, where these were moved.
      sets: devices to work on, such as scale.mesh.data=1; all else is as in the run.
    """
    processes.join()
    folder = hj.evaluate_run(
        run,
        task=task,
        full_matrix=full_matrix,
        skip_missing=skip_missing,
        tasks=joined(tasks),
        scale=read_scale(sets),
    )
    if processes.is_first():
        print_text(f"report: {folder / 'report.html'}")
