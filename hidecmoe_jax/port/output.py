"""Atomic output folders: written beside the target, renamed when complete.

Old and new content are never mixed. With `overwrite` the old folder is moved aside first and deleted after the new one
has its name, so a crash in between loses neither. One process at a time writes a target: a lock file beside it excludes
others, and is never deleted, because two processes could then hold two files of one name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.storage.files import disk_errors, remove_inside, sync_folder
from hidecmoe_jax.storage.lock import lock_file
from hidecmoe_jax.storage.places import check_kind, check_place


def check_target(
    target: Path, *, overwrite: bool, sources: Iterable[Path] = (), replaces: tuple[str, ...] = ()
) -> None:
    """Refuses a target that is occupied, that contains what is read, or that cannot be written.

    Args:
      replaces: kinds of folders (`storage.places`) that `overwrite` may replace; no others are.

    Raises:
      ConfigError: the target is a folder that is not empty and `overwrite` is not given, it is a file or a link, or one
        of `sources` is the target or below it, so that overwriting would delete it.
    """
    check_place(target, remedy="give another folder")
    resolved = target.resolve()
    for source in sources:
        read_path = source.resolve()
        if resolved == read_path or resolved in read_path.parents:
            raise ConfigError(
                "the output would take the place of what is read",
                where=str(target),
                why=f"{source} lies there",
                remedy="give another folder",
            )
    if target.is_symlink() or target.is_file():
        kind = "a symbolic link" if target.is_symlink() else "a file"
        raise ConfigError(
            "the output must be a folder",
            where=str(target),
            why=f"it is {kind}",
            remedy="give another path",
        )
    check_kind(target, replaces)
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        names = sorted(path.name for path in target.iterdir())
        raise ConfigError(
            "the output folder is not empty",
            where=str(target),
            why=f"found {', '.join(names[:5])}",
            remedy="give another folder, or --overwrite to replace everything in it",
        )


@contextlib.contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Locks `target`, and the temporary folders beside it, for the length of the block.

    Args:
      target: an absolute path; its parent folder is made.

    Raises:
      BusyError: another process holds the lock.
      CheckpointError, ResourceError: the parent folder cannot be made.
    """
    with contextlib.ExitStack() as locks:
        with disk_errors("could not make the output folder; give another one", target, needed=0):
            target.parent.mkdir(parents=True, exist_ok=True)
            what = "another process is writing this folder"
            remedy = "wait for it, end it, or give another folder; a network disk may keep a dead host's lock"
            file = target.with_name(f".{target.name}.lock")
            locks.enter_context(lock_file(file, what, where=target, remedy=remedy))
        yield


@contextlib.contextmanager
def fresh_folder(target: Path, *, overwrite: bool, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """An empty folder to write into; it is renamed to `target` when the block succeeds, and deleted when it does not.

    Raises:
      ConfigError: as `check_target`.
      BusyError: another process is writing there.
      ResourceError: the disk ran full.
    """
    target = Path(os.path.abspath(target))
    unfinished = target.with_name(f".{target.name}.part")
    old = target.with_name(f".{target.name}.old")
    with only_writer(target):
        with disk_errors("could not make the output folder", target, needed=0):
            if old.is_dir() and not target.exists():
                os.rename(old, target)  # an earlier process crashed between the two renames of `_place`
            check_target(target, overwrite=overwrite, replaces=replaces)
            for leftover in (unfinished, old):
                if leftover.exists():
                    remove_inside(target.parent, leftover)
            unfinished.mkdir()
        try:
            yield unfinished
        except BaseException:
            remove_inside(target.parent, unfinished)
            raise
        with disk_errors("could not put the output in place", target, needed=0):
            _place(unfinished, target, old)


def _place(unfinished: Path, target: Path, old: Path) -> None:
    """Renames the new folder to the target, and deletes the one that had the name before."""
    if target.is_dir():
        os.rename(target, old)
    os.rename(unfinished, target)
    sync_folder(target.parent)
    if old.exists():
        remove_inside(target.parent, old)
