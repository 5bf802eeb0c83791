"""`hidecmoe run`: learn a stream of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import (
    Assignments,
    Config,
    Folder,
    Folders,
    Trackers,
    confirm_overwrite,
    joined,
    read_config,
)
from hidecmoe_jax.core import processes
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.paths import find_config
from hidecmoe_jax.runs.start import check_start


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
    status_minutes: float = 5.0,
    track: Trackers = (),
    dry_run: bool = False,
    target: Annotated[str | None, arg(metavar="MACHINE")] = None,
) -> int:
    """Learn a stream of tasks, one after the other, evaluate after each, and write the report.

    Examples:
      $ hidecmoe run configs/pocket/hide.yaml --out runs/hide
      $ hidecmoe run configs/pocket/hide.yaml --tasks my/birds my/charts --set tune.epochs=2
      $ hidecmoe run configs/pocket/hide.yaml --out runs/hide --resume
      $ hidecmoe run configs/pocket/hide.yaml --out runs/hide --track tensorboard
      $ hidecmoe run configs/pocket/hide.yaml --dry-run

    Args:
      config: YAML file, or the name of a shipped config: pocket/hide.
      tasks: task folders (train.json, test.json, images/) or tfds:NAME/CONFIG[@VERSION] in order, instead of the
        config's.
      out: run folder; runs/<name of the config> if not given.
      resume: continue the run in that folder.
      overwrite: move the run in that folder aside and start afresh.
      full_matrix: evaluate every task after every task, also those not yet learned.
      sets: config values that replace those of the file, such as tune.epochs=2.
      yes: do not ask before overwriting.
      allow_config_change: with --resume, fields that may differ from before, as the refusal names them.
      on_corrupt: with --resume and a damaged newest checkpoint: refuse, or continue from the previous one.
      status_minutes: minutes between two lines about the progress where there is no terminal; 0 for none.
      track: tensorboard, wandb, mlflow or trackio, which get the training curve besides metrics.jsonl; on this machine
        alone, unless their own variables say otherwise (docs/tracking.md). (repeatable)
      dry_run: train and write nothing: say what is missing on disk, and how long a run takes and how much memory; exit
        code 3 where data is missing, 4 where the base is, 6 where it does not fit.
      target: with --dry-run, the machine to plan for, as in `hidecmoe plan`.
    """
    if out is None:
        out = Path("runs") / Path(config).stem
    find_config(config)
    processes.join()
    # Before the config is read, which imports JAX: a refusal costs no time.
    exists = processes.first_decides(lambda: check_start(out, resume=resume, overwrite=overwrite))
    settings = read_config(config, sets=sets, tasks=tasks)
    if dry_run:
        return _dry_run(settings, target)
    if target is not None:
        raise ConfigError(
            "--target belongs to --dry-run", where=f"--target {target}", why="a run takes the devices that it finds",
            remedy="add --dry-run, or leave --target out",
        )  # fmt: skip
    if overwrite:
        processes.first_decides(lambda: confirm_overwrite(out, yes=yes or not exists))
    # An empty text splits into one empty field, which is none.
    allow = tuple(filter(None, allow_config_change.split(",")))
    folder = hj.learn(
        settings,
        out,
        resume=resume,
        overwrite=overwrite,
        full_matrix=full_matrix,
        allow=allow,
        on_corrupt=on_corrupt,
        status_minutes=status_minutes,
        track=joined(track),
    )
    if processes.is_first():
        print_text("\n".join(hj.outcome_lines(folder)))
        print_text(f"report: {folder / 'report.html'}")
    return 0


def _dry_run(settings: hj.RunConfig, target: str | None) -> int:
    """Prints what a run would find and need; returns its exit code."""
    shapes = hj.described_shapes(Path(settings.base.path))
    found = hj.dry_run(settings, target=target, base=shapes)
    print_text("\n".join(hj.dry_run_lines(found, settings)))
    return found.exit_code
