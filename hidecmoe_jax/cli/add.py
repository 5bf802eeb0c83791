"""`hidecmoe add`: one more task for a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Run


def add(
    run: Run,
    task: Annotated[Path, Positional, arg(metavar="TASK_DIR")],
    /,
    *,
    epochs: int | None = None,
    rate: float | None = None,
    redo: bool = False,
) -> None:
    """Teach a finished run one more task; the experts it has stay as they are, byte for byte.

    Examples:
      $ hidecmoe add runs/hide my/birds
      $ hidecmoe add runs/hide my/birds --epochs 3 --rate 2e-4
      $ hidecmoe add runs/hide my/birds --redo

    Args:
      run: run folder.
      task: folder with train.json, images/ and, unless a split is to be carved from train.json, test.json.
      epochs: passes over this task's training items, if not the run's.
      rate: learning rate for this task, if not the run's.
      redo: the folder replaces the last task that the run learned.
    """
    folder = hj.add(run, task, epochs=epochs, rate=rate, redo=redo)
    print(f"report: {folder / 'report.html'}")
