"""A folder that is there whole or not at all: it is written beside its place and takes it by one rename.

What stands there already is never mixed with what is new. With `overwrite` the old folder is moved aside first and
deleted after the new one has its name, so a crash in between loses neither. One process at a time does this to one
place: the others meet a lock beside it, whose file is never deleted, because two processes could then hold two files of
one name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.storage.files import disk_errors, remove_inside, sync_folder
from hidecmoe_jax.storage.lock import lock_file


def check_target(target: Path, *, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Refuses a place that something occupies, and one that holds what is read.

    Raises:
      ConfigError: there is something and `overwrite` is not given, it is a file or a link, or one of `sources` lies
        there or below, so that overwriting would delete it.
    """
    for source in sources:
        if target.resolve() in (source.resolve(), *source.resolve().parents):
            raise ConfigError(
                "the output would take the place of what is read", where=str(target), why=f"{source} lies there",
                remedy="give another folder",
            )  # fmt: skip
    if target.is_symlink() or target.is_file():
        raise ConfigError(
            "the output must be a folder", where=str(target),
            why="it is a symbolic link" if target.is_symlink() else "it is a file", remedy="give another path",
        )  # fmt: skip
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        names = sorted(path.name for path in target.iterdir())
        raise ConfigError(
            "the output folder is not empty", where=str(target), why=f"found {', '.join(names[:5])}",
            remedy="give another folder, or --overwrite to replace everything in it",
        )  # fmt: skip


@contextlib.contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Holds the only right to make `target`, and what stands beside it under its name, for the length of the block.

    Args:
      target: an absolute path; the folder above it is made.

    Raises:
      BusyError: another process holds it.
      CheckpointError, ResourceError: there can be no such folder.
    """
    with contextlib.ExitStack() as held:
        with disk_errors("could not make the output folder; give another one", target, needed=0):
            target.parent.mkdir(parents=True, exist_ok=True)
            what = "another process is writing this folder"
            remedy = "wait for it, end it, or give another folder; a network disk may keep a dead host's lock"
            held.enter_context(lock_file(target.with_name(f".{target.name}.lock"), what, where=target, remedy=remedy))
        yield


@contextlib.contextmanager
def fresh_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder to write into, which becomes `target` when the block ends well and vanishes when it does not.

    Raises:
      ConfigError: as `check_target`.
      BusyError: another process is writing there.
      ResourceError: the disk ran full.
    """
    target = Path(os.path.abspath(target))
    aside, old = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.old")
    with only_writer(target):
        with disk_errors("could not make the output folder", target, needed=0):
            if old.is_dir() and not target.exists():
                os.rename(old, target)  # a crash came between the two renames of `_place`
            check_target(target, overwrite=overwrite)
            for left in (aside, old):
                if left.exists():
                    remove_inside(target.parent, left)
            aside.mkdir()
        try:
            yield aside
        except BaseException:
            remove_inside(target.parent, aside)
            raise
        with disk_errors("could not put the output in place", target, needed=0):
            _place(aside, target, old)


def _place(aside: Path, target: Path, old: Path) -> None:
    """Gives what was written the target's name, and deletes what had it before."""
    if target.is_dir():
        os.rename(target, old)
    os.rename(aside, target)
    sync_folder(target.parent)
    if old.exists():
        remove_inside(target.parent, old)
