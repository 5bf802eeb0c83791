"""`hidecmoe rollback`: a run as it was after an earlier task."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Run


def rollback(run: Run, tasks: Annotated[int, Positional, arg(metavar="N")], /) -> None:
    """Take a run back to where it was after its first N tasks; later tasks are moved aside inside it, not deleted.

    Examples:
      $ hidecmoe rollback runs/hide 3

    Args:
      run: run folder.
      tasks: how many tasks it keeps.
    """
    folder = hj.rollback(run, tasks)
    print(f"report: {folder / 'report.html'}")
