"""`hidecmoe report`: writes the report of a run again from its files."""

from __future__ import annotations

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Run


def report(run: Run, /) -> None:
    """Write report.json, report.html, figures and tables of a run or comparison again, from what is on disk.

    Examples:
      $ hidecmoe report runs/hide

    Args:
      run: run folder, or the folder of a comparison.
    """
    folder = hj.rebuild(run)
    print_text(f"report: {folder / 'report.html'}")
