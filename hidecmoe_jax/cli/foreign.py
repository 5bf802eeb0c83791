"""`hidecmoe foreign`: does a run notice what it has never learned?"""

from __future__ import annotations

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Run


def foreign(run: Run, /, *, count: int = 100) -> None:
    """Leave every task out once, and show pictures of no task: how well are they told from known inputs?

    Examples:
      $ hidecmoe foreign runs/cmoe

    Args:
      run: run folder of a method whose gate is a locator.
      count: pictures of every foreign kind.
    """
    found = hj.foreign_study(run, count=count)
    print(f"{'':<28} {'AUROC':>7} {'unknown':>9} {'false alarms':>13}")
    for part, title in (("left_out", "without"), ("outsiders", "")):
        for name, told in found[part].items():
            label = f"{title} {name}".strip()
            print(f"{label:<28} {told['auroc']:7.3f} {told['unknown']:8.1f}% {told['false_alarms']:12.1f}%")
