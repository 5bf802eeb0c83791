"""`hidecmoe foreign`: how well a run detects inputs of tasks that it has not learned."""

from __future__ import annotations

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Run


def foreign(run: Run, /, *, count: int = 100) -> None:
    """Measure the detection of unknown inputs: leave every task out once, and use pictures of no task at all.

    Examples:
      $ hidecmoe foreign runs/cmoe

    Args:
      run: run folder of a method whose gate is a locator.
      count: pictures of every kind that belongs to no task.
    """
    study = hj.foreign_study(run, count=count)
    print_text(f"{'':<28} {'AUROC':>7} {'unknown':>9} {'false alarms':>13}")
    for name, measured in study["left_out"].items():
        print_text(row(f"without {name}", measured))
    for kind, measured in study["outsiders"].items():
        print_text(row(kind, measured))


def row(label: str, measured: dict[str, float]) -> str:
    """One line of the table: AUROC, percent of unknown inputs detected, percent of known inputs refused."""
    auroc = measured["auroc"]
    detected = measured["unknown"]
    refused = measured["false_alarms"]
    return f"{label:<28} {auroc:7.3f} {detected:8.1f}% {refused:12.1f}%"
