"""Whether a run may start in a folder: looked at before JAX starts and before a picture is read."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError
from hidecmoe_jax.runs.folder import ERRORS, IDENTITY, RunFolder
from hidecmoe_jax.storage.files import is_partial
from hidecmoe_jax.storage.lock import LOCK, NOTE, check_unlocked
from hidecmoe_jax.storage.places import COMPARISON, RUN, check_kind, check_place

if TYPE_CHECKING:
    from hidecmoe_jax.runs.config import RunConfig


def check_start(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Returns whether `folder` holds a run, if one can be written there now; leaves nothing behind.

    Raises:
      ConfigError, ResourceError: as `check_run` and `check_place`.
      CheckpointError: as `check_run`.
      BusyError: another process writes the run.
    """
    check_place(folder)
    has_run = check_run(folder, resume=resume, overwrite=overwrite)
    check_unlocked(folder)
    return has_run


def check_comparison(folder: Path) -> None:
    """Refuses a folder that cannot hold a comparison: runs lie in it, and none is the folder itself.

    Raises:
      ConfigError: it holds a run, a model or a task, or `check_place` refuses it.
    """
    check_place(folder)
    check_kind(folder, (COMPARISON,), remedy="give another --out")


def require_folders(config: RunConfig, names: Sequence[str], command: str) -> None:
    """Refuses a run whose task folders are not where it was learned from, before anything is read.

    Args:
      names: of the run's tasks.
      command: the command that takes the folders' new places; `--tasks` and the folders are added to it.

    Raises:
      DataError: names the folders that are not there, and the flag.
    """
    missing = [spec.folder for spec in config.stream.tasks if not Path(spec.folder).is_dir()]
    if not missing:
        return
    places = " ".join(f"NEW/{shlex.quote(name)}" for name in names)
    raise DataError(
        f"{len(missing)} of {len(names)} task folders of the run are not there",
        why=f"no folder: {', '.join(missing)}",
        remedy=f"if they were moved, say where every task lies now, in this order: {command} --tasks {places}",
    )


def evaluating(run: Path) -> str:
    """The command that records new places of a run's task folders, for commands without a flag for them."""
    return f"hidecmoe eval {shlex.quote(str(run))}"


def check_run(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Returns whether `folder` holds a run; decides from the flags alone, reads and writes nothing else.

    Raises:
      ConfigError: a run is there and no flag decides what happens to it, or both flags are given, or the folder
        holds something that is no run.
      CheckpointError: `resume` and there is nothing to resume.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other", where=str(folder), remedy="give one of them")
    has_run = RunFolder(folder).identity.is_file()
    check_kind(folder, (RUN,), remedy="give another --out")
    if not has_run and resume:
        raise CheckpointError(
            "nothing to resume",
            where=str(folder),
            why=f"there is no {IDENTITY}",
            remedy="check --out, or start afresh without --resume",
        )
    if has_run and not resume and not overwrite:
        raise ConfigError(
            "the run already exists",
            where=str(folder),
            why="its work would be lost or mixed with another's",
            remedy="use --overwrite to start afresh (the old run is moved aside) or --resume to go on",
        )
    # The list of bad records may be there before a run is: it lists why the run did not start.
    strangers = []
    if folder.is_dir():
        names = [path.name for path in folder.iterdir()]
        strangers = [name for name in names if name not in (LOCK, NOTE, ERRORS) and not is_partial(name)]
    if not has_run and strangers:
        raise ConfigError(
            "the folder is not empty and holds no run",
            where=str(folder),
            why=f"found {', '.join(sorted(strangers)[:5])}, but no {IDENTITY}",
            remedy="give another --out",
        )
    return has_run
