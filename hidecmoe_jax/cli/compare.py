"""`hidecmoe compare`: several methods on one stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Assignments, Folders, Trackers, confirm_overwrite, joined, read_config
from hidecmoe_jax.core.paths import find_config
from hidecmoe_jax.runs.start import check_comparison


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
    status_minutes: float = 5.0,
    track: Trackers = (),
) -> None:
    """Run several configs on the same stream and write one report that shows them side by side.

    Examples:
      $ hidecmoe compare configs/pocket/hide.yaml configs/pocket/sequential.yaml --out runs/both
      $ hidecmoe compare pocket/hidecmoe pocket/hide_frozen_projector pocket/cmoe --budget hidecmoe --out runs/equal

    Args:
      configs: YAML files or names of shipped configs, one for each method.
      out: folder that holds one run for each config, and the common report.
      tasks: task folders in the order to learn them, instead of the configs'.
      resume: continue the runs in that folder; finished ones are not touched.
      overwrite: move the runs in that folder aside and start afresh.
      full_matrix: evaluate every task after every task, also those not yet learned.
      budget: give every method the rank at which its serving state (experts, routers, locator, projector) has this many
        numbers, within 5 percent; or the name of the method whose size all others get.
      sets: config values that replace those of every file, such as tune.epochs=2.
      yes: do not ask before overwriting.
      status_minutes: minutes between two lines about the progress where there is no terminal; 0 for none.
      track: tensorboard, wandb, mlflow or trackio, as in `hidecmoe run`. (repeatable)
    """
    # Every name is looked up before the first config is loaded, which imports JAX.
    paths = [find_config(name) for name in configs]
    check_comparison(out)
    settings = [read_config(path, sets=sets, tasks=tasks) for path in paths]
    if overwrite and any(out.glob("*/run.json")):
        confirm_overwrite(out, yes=yes)
    # A number is a size; any other word is the name of the method that sets the size.
    size = int(budget) if budget is not None and budget.isdecimal() else budget
    folder = hj.compare(
        settings,
        out,
        resume=resume,
        overwrite=overwrite,
        full_matrix=full_matrix,
        budget=size,
        status_minutes=status_minutes,
        track=joined(track),
    )
    print_text("\n".join(hj.outcome_lines(folder)))
    print_text(f"report: {folder / 'report.html'}")
