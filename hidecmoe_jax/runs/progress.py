"""Checkpoints in the middle of a task: optimiser state, parameters in training and the position in the data.

They are sealed like tasks, but temporary: only the newest two are kept, and all are deleted once their task is
committed. Rotation deletes nothing outside its own folder, so it can never reach a finished task. Steps count from 0 in
every stage, so a serial number gives a checkpoint's age; its `meta` names the lesson, the stage and the data that it
belongs to, and it is resumed for nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.storage.arrays import Groups, read_store, write_store
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.files import disk_errors, remove_inside, sync_folder

_FOLDER = re.compile(r"(\d{6,})_step_(\d+)")
_CHOICES = ("refuse", "previous")


def _serial(folder: Path) -> int:
    """Serial number of a checkpoint, in its folder's name."""
    return int(_FOLDER.fullmatch(folder.name)[1])


@dataclasses.dataclass(frozen=True)
class Progress:
    """The mid-task checkpoints of one seed of a run.

    Attributes:
      folder: `RUN/seed_0/progress`.
      keep: how many of the newest are kept.
    """

    folder: Path
    keep: int = 2

    def save(self, step: int, state: Mapping[str, Any], *, meta: Mapping[str, Any]) -> Path:
        """Saves a flat state `{path: array}` durably, then drops all but the newest; returns the new folder.

        Args:
          step: of the stage, counted from 0.
          state: everything that training resumes from.
          meta: JSON facts; name the stage and the data, because after a crash a checkpoint may outlive its task.

        Raises:
          NumericsError, ResourceError, CheckpointError: as `write_store`; the earlier checkpoints are intact.
        """
        with disk_errors("could not make the folder for checkpoints", self.folder, needed=0):
            self.folder.mkdir(parents=True, exist_ok=True)
        # Leftovers of a crash while a checkpoint was written or deleted.
        leftovers = [path for path in self.folder.iterdir() if path.name.startswith(".half_")]
        self._drop(leftovers)
        old = self._saved()
        serial = _serial(old[-1]) + 1 if old else 0
        folder = self.folder / f"{serial:06d}_step_{step}"
        aside = self.folder / f".half_{folder.name}"
        write_store(aside, {"state": state}, {"step": step, "place": self._place, "facts": dict(meta)})
        crash_point("before_progress_rename", str(step))
        with disk_errors("could not save", folder, needed=0):
            os.rename(aside, folder)
            sync_folder(self.folder)
        crash_point("after_progress_save", str(step))
        saved = [*old, folder]
        # Only after the new one is durable: at every moment one checkpoint is intact.
        self._drop(saved[: -self.keep])
        return folder

    def latest(self, *, on_corrupt: str = "refuse") -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
        """Returns `(step, state, meta)` of the newest checkpoint, or None where there is none.

        Args:
          on_corrupt: "refuse" stops at a damaged newest one; "previous" falls back to the one before it and
            records that in `fallbacks.jsonl` beside them.

        Raises:
          CheckpointError: the newest is damaged (with "previous": all are); the newest good step is named.
        """
        if on_corrupt not in _CHOICES:
            raise ConfigError(
                "unknown choice", where="on_corrupt", why=f"{on_corrupt!r} is none of {', '.join(_CHOICES)}"
            )
        saved = self._saved()
        for place, folder in enumerate(reversed(saved)):
            try:
                groups, meta = self._read(folder)
            except CheckpointError as error:
                older = saved[: len(saved) - 1 - place]
                if on_corrupt == "refuse" or not older:
                    raise CheckpointError(
                        error.what,
                        where=error.where,
                        why=error.why,
                        remedy=self._remedy(older),
                    ) from error
                self._note(folder, error)
                continue
            return meta["step"], groups["state"], meta["facts"]
        return None

    def clear(self) -> None:
        """Drops all checkpoints; call it once their task is committed."""
        self._drop(self._saved())

    @property
    def _place(self) -> str:
        """Which seed's checkpoints these are, and of what."""
        folder = self.folder.absolute()
        return f"{folder.parent.name}/{folder.name}"

    def _read(self, folder: Path) -> tuple[Groups, dict[str, Any]]:
        """Arrays and facts of a checkpoint; one that was saved elsewhere counts as damaged."""
        groups, meta = read_store(folder)
        # Checkpoints of earlier versions do not name their place.
        if meta.get("place", self._place) != self._place:
            raise CheckpointError(
                "a checkpoint is of another seed or stage", where=str(folder), why=f"it was saved in {meta['place']}"
            )
        return groups, meta

    def _saved(self) -> list[Path]:
        """Sealed checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        folders = [path for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name)]
        return sorted(folders, key=_serial)

    def _drop(self, folders: list[Path]) -> None:
        """Deletes checkpoints, renamed first, so that a crash leaves no half-deleted one in sight."""
        for folder in folders:
            aside = folder
            # A link is removed as it is: renaming it would not protect what it points to.
            if not folder.name.startswith(".half_") and not folder.is_symlink():
                aside = self.folder / f".half_{folder.name}"
                os.rename(folder, aside)
            remove_inside(self.folder, aside)

    def _remedy(self, older: list[Path]) -> str:
        """How to go on without a damaged checkpoint, from the newest intact one of `older`."""
        for folder in reversed(older):
            try:
                _, meta = self._read(folder)
            except CheckpointError:
                continue
            return f"the newest good step is {meta['step']}: go on from it with --resume --on-corrupt previous"
        return f"no checkpoint is whole: remove {self.folder} and --resume goes on from the last finished task"

    def _note(self, folder: Path, error: CheckpointError) -> None:
        line = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "passed_over": folder.name, "why": error.why}
        with open(self.folder / "fallbacks.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def step_checkpoints(seed: SeedFolder) -> Progress:
    """Checkpoints within a training stage of the lesson that a seed has begun."""
    return Progress(seed.step_checkpoints)


def stage_checkpoints(seed: SeedFolder) -> Progress:
    """The learner between two stages of that lesson, so that a crash costs a stage and never a lesson."""
    return Progress(seed.stage_checkpoints, keep=1)


def clear_checkpoints(seed: SeedFolder) -> None:
    """Drops every checkpoint of the lesson that a seed has begun."""
    step_checkpoints(seed).clear()
    stage_checkpoints(seed).clear()
