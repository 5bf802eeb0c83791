"""`hidecmoe run`: learn a stream of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Assignments, Config, Folder, Folders, confirm_overwrite, joined


def run(
    config: Config,
    /,
    *,
    tasks: Folders = (),
    out: Folder = None,
    resume: bool = False,
    overwrite: bool = False,
    full_matrix: bool = False,
    sets: Assignments = (),
    yes: bool = False,
    allow_config_change: Annotated[str, arg(metavar="PATH,...")] = "",
    on_corrupt: Literal["refuse", "previous"] = "refuse",
) -> None:
    """Learn a stream of tasks, one after the other, evaluate after each, and write the report.

    Examples:
      $ hidecmoe run configs/pocket/hide.yaml --out runs/hide
      $ hidecmoe run configs/pocket/hide.yaml --tasks my/birds my/charts --set train.epochs=2
      $ hidecmoe run configs/pocket/hide.yaml --out runs/hide --resume

    Args:
      config: YAML file, or the name of a shipped config: pocket/hide.
      tasks: task folders (train.json, test.json, images/) in order, instead of the config's.
      out: run folder; runs/<name of the config> if not given.
      resume: go on with the run in that folder.
      overwrite: move the run in that folder aside and start afresh.
      full_matrix: evaluate every task after every task, also those not yet learned.
      sets: values laid over the config, such as train.epochs=2.
      yes: do not ask before overwriting.
      allow_config_change: with --resume, fields that may differ from before, as the refusal names them.
      on_corrupt: with --resume, whether a damaged newest checkpoint stops or the one before is taken.
    """
    out = out or Path("runs") / Path(config).stem
    settings = hj.load_config(config, overrides=joined(sets), tasks=joined(tasks))
    there = hj.check_run(out, resume=resume, overwrite=overwrite)
    if there and overwrite:
        confirm_overwrite(out, yes=yes)
    folder = hj.learn(
        settings,
        out,
        resume=resume,
        overwrite=overwrite,
        full_matrix=full_matrix,
        allow=tuple(filter(None, allow_config_change.split(","))),
        on_corrupt=on_corrupt,
    )
    print(f"report: {folder / 'report.html'}")
