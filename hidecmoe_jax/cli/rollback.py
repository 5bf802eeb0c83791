"""`hidecmoe rollback`: resets a run to its state after an earlier task."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Run


def rollback(run: Run, tasks: Annotated[int, Positional, arg(metavar="N")], /) -> None:
    """Reset a run to its state after its first N tasks; later tasks are moved aside inside the run, not deleted.

    Examples:
      $ hidecmoe rollback runs/hide 3

    Args:
      run: run folder.
      tasks: number of tasks that stay.
    """
    folder = hj.rollback(run, tasks)
    print_text(f"report: {folder / 'report.html'}")
