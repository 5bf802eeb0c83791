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
    sets: Assignments = (),
    yes: bool = False,
) -> None:
    """Run several configs on the same stream and write one report that shows them side by side.

    Examples:
      $ hidecmoe compare configs/pocket/hide.yaml configs/pocket/sequential.yaml --out runs/both

    Args:
      configs: YAML files or names of shipped configs, one for each method.
      out: folder that holds one run for each config, and the common report.
      tasks: task folders in the order to learn them, instead of the configs'.
      resume: go on with the runs in that folder; finished ones are left alone.
      overwrite: move the runs in that folder aside and start afresh.
      full_matrix: evaluate every task after every task, also those not yet learned.
      sets: values laid over every config, such as train.epochs=2.
      yes: do not ask before overwriting.
    """
    settings = [hj.load_config(name, overrides=joined(sets), tasks=joined(tasks)) for name in configs]
    if overwrite and any(out.glob("*/run.json")):
        confirm_overwrite(out, yes=yes)
    folder = hj.compare(settings, out, resume=resume, overwrite=overwrite, full_matrix=full_matrix)
    print(f"report: {folder / 'report.html'}")
