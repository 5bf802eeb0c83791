"""`hidecmoe inspect`: lists the tasks and experts of a run."""

from __future__ import annotations

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Run


def inspect(run: Run, /) -> None:
    """Show the tasks of a run, its experts per layer, and their sizes.

    Examples:
      $ hidecmoe inspect runs/hide

    Args:
      run: run folder.
    """
    print(hj.describe(run))
