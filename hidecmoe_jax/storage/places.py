"""What a folder holds, by the file that marks it, and whether something can be written at a path.

A command looks at its output first: a refusal costs no time, for nothing here imports JAX, and leaves nothing behind.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, ResourceError
from hidecmoe_jax.core.json_text import json_value
from hidecmoe_jax.core.regular_files import check_regular
from hidecmoe_jax.storage.mounts import check_storage

RUN_MARK = "run.json"
COMPARISON_MARK = "comparison.json"
_BASE_MARK = "conversion.json"
_MODEL_MARK = "config.json"
_WEIGHTS = ("model.safetensors", "weights", "model.safetensors.index.json")
_TASK_MARKS = ("train.json", "train.jsonl")
_SEAL = "MANIFEST.json"

RUN = "a run"
COMPARISON = "a comparison of runs"
BASE = "a converted base model"
MODEL = "a model"
TASK = "a task"
SEALED = "a sealed folder, such as an export"
LOG = "a decision log"

LOG_FILE = "decisions_{:06d}.jsonl"
"""Name of a file of a decision log, by its number from 1 on."""

SPARE = 16 * 2**20  # bytes that any output needs at the least


def kind_of(folder: Path) -> str | None:
    """What a folder holds; None for an empty one, for one of another program, and where there is no folder."""
    if (folder / RUN_MARK).is_file():
        return RUN
    if (folder / COMPARISON_MARK).is_file():
        return COMPARISON
    if (folder / _BASE_MARK).is_file():
        return BASE
    if (folder / LOG_FILE.format(1)).is_file():
        return LOG
    if (folder / _SEAL).is_file():
        return SEALED
    has_weights = any((folder / name).exists() for name in _WEIGHTS)
    if has_weights and (folder / _MODEL_MARK).is_file():
        return MODEL
    if any((folder / name).is_file() for name in _TASK_MARKS):
        return TASK
    return None


def check_kind(folder: Path, allowed: tuple[str, ...], *, remedy: str = "give another folder") -> None:
    """Refuses a folder that holds something of another kind than `allowed`.

    Raises:
      ConfigError: names what the folder holds.
    """
    kind = kind_of(folder)
    if kind is not None and kind not in allowed:
        raise ConfigError(
            "the output would be written into something else", where=str(folder), why=f"it holds {kind}",
            remedy=remedy,
        )  # fmt: skip


def check_place(folder: Path, *, remedy: str = "give another --out") -> None:
    """Refuses an output folder that cannot be written, or that lies in a run, a comparison, a model or a sealed folder.

    Nothing is left behind. A folder that is there already may be written, whatever it lies in.

    Raises:
      ConfigError: it is a file, it lies in such a folder or in an object store, or the system refuses a file there.
      ResourceError: the disk is full.
    """
    check_storage(folder, remedy=remedy)
    place = folder.absolute()
    try:
        if place.exists() and not place.is_dir():
            raise ConfigError("the output must be a folder", where=str(folder), why="it is a file", remedy=remedy)
        existing = next(path for path in (place, *place.parents) if path.exists())
        _check_writable(existing, folder, remedy)
        if existing != place:
            _check_above(place, folder, remedy)
    # A name that is too long, or one with a zero byte, fails in the first question that is asked about it.
    except (OSError, ValueError) as error:
        raise _refused(error, folder, remedy) from error


def check_list(path: Path, key: str) -> None:
    """Refuses a file for a list of JSON objects that cannot be written, or that holds anything else.

    Args:
      key: of every object in the list; a file whose first line lacks it is not replaced.

    Raises:
      ConfigError, ResourceError: as `check_place`; or the file is a folder, or of another kind.
    """
    remedy = "give another file"
    try:
        if path.is_dir():
            raise ConfigError(
                "the list of problems must be a file", where=str(path), why="it is a folder", remedy=remedy
            )
        if path.exists() and not _is_list(path, key):
            raise ConfigError(
                "a file would be replaced", where=str(path), why="it is no list of problems that was written here",
                remedy=remedy,
            )  # fmt: skip
        if path.exists():
            # Nothing is written; opening it alone shows that it may be.
            with open(path, "ab"):
                return
    except (OSError, ValueError) as error:
        raise _refused(error, path, remedy) from error
    check_place(path.absolute().parent, remedy=remedy)


def _is_list(path: Path, key: str) -> bool:
    """Whether a file is empty, or its first line is a JSON object with a key."""
    check_regular(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        line = file.readline(1_000_000)
    try:
        first = json_value(line) if line.strip() else {key: ""}
    except ValueError:
        return False
    return isinstance(first, dict) and key in first


def _check_writable(existing: Path, folder: Path, remedy: str) -> None:
    """Asks the system for a file in a folder; a permission alone does not show that its disk takes one."""
    if not existing.is_dir():
        raise ConfigError("the output cannot be made", where=str(folder), why=f"{existing} is a file", remedy=remedy)
    with tempfile.TemporaryFile(dir=existing):
        pass
    free = shutil.disk_usage(existing).free
    if free < SPARE:
        raise ResourceError(
            "not enough disk space", where=str(folder), why=f"{free:,} bytes are free, {SPARE:,} are the least needed",
            remedy=f"free some space, or {remedy}",
        )  # fmt: skip


def _check_above(place: Path, folder: Path, remedy: str) -> None:
    """Refuses a new folder inside one that only its own commands write."""
    for above in place.parents:
        kind = kind_of(above)
        # A folder with a task's records may be a project of the user; what lies beside them disturbs nothing.
        if kind is not None and kind != TASK:
            raise ConfigError(
                "the output would be written into something else", where=str(folder), why=f"{above} holds {kind}",
                remedy=remedy,
            )  # fmt: skip


def _refused(error: Exception, path: Path, remedy: str) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError("cannot write there", where=str(path)[:300], why=f"the system reports: {reason}", remedy=remedy)
