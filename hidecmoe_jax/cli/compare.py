"""`hidecmoe compare`: several methods on one stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Assignments, Folders, confirm_overwrite, joined


def compare(
    configs: Annotated[tuple[str, ...], Positional, arg(metavar="CONFIG ...")],
    /,
    *,
    out: Annotated[Path, arg(metavar="DIR")],
    tasks: Folders = (),
    resume: bool = False,
    overwrite: bool = False,
    full_matrix: bool = False,
    budget: str | None = None,
    sets: Assignments = (),
    yes: bool = False,
) -> None:
    """Run several configs on the same stream and write one report that shows them side by side.

    Examples:
      $ hidecmoe compare configs/pocket/hide.yaml configs/pocket/sequential.yaml --out runs/both
      $ hidecmoe compare pocket/hidecmoe pocket/hide_frozen_projector pocket/cmoe --budget hidecmoe --out runs/equal

    Args:
      configs: YAML files or names of shipped configs, one for each method.
      out: folder that holds one run for each config, and the common report.
      tasks: task folders in the order to learn them, instead of the configs'.
      resume: go on with the runs in that folder; finished ones are left alone.
      overwrite: move the runs in that folder aside and start afresh.
      full_matrix: evaluate every task after every task, also those not yet learned.
      budget: give every method the rank at which its serving state (experts, routers, locator, projector) has this many
        numbers, within 5 percent; or the name of the method whose size all others get.
      sets: values laid over every config, such as train.epochs=2.
      yes: do not ask before overwriting.
    """
    settings = [hj.load_config(name, overrides=joined(sets), tasks=joined(tasks)) for name in configs]
    if overwrite and any(out.glob("*/run.json")):
        confirm_overwrite(out, yes=yes)
    size = int(budget) if budget is not None and budget.isdecimal() else budget
    folder = hj.compare(settings, out, resume=resume, overwrite=overwrite, full_matrix=full_matrix, budget=size)
    print(f"report: {folder / 'report.html'}")
