"""The ledger of one seed: one sealed folder per finished task.

A task is written to `.incoming/`, sealed, read back and compared, and becomes visible by one rename to
`tasks/000_digits`. No second record could disagree: a task is finished exactly when its folder has its name. A crash
before the rename leaves the earlier tasks untouched, and committing again starts over; after a crash behind it the task
is finished. No function here deletes a finished task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.storage.arrays import Groups, check_name, describe, on_host, read_facts, read_store, write_store
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.files import disk_errors, remove_inside, sync_folder
from hidecmoe_jax.storage.manifest import verify

_FOLDER = re.compile(r"(\d{3,})_([a-z0-9][a-z0-9_-]{0,63})")


@dataclasses.dataclass(frozen=True)
class TaskRecord:
    """A committed task: its place in the stream, its name and its sealed folder."""

    index: int
    name: str
    folder: Path


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The finished tasks of one seed of a run.

    Attributes:
      folder: `RUN/seed_0`; tasks lie in `tasks/` below it.
    """

    folder: Path

    @property
    def place(self) -> SeedFolder:
        """Paths below the folder."""
        return SeedFolder(self.folder)

    def commit(
        self, index: int, name: str, groups: Mapping[str, Mapping[str, Any]], *, meta: Mapping[str, Any]
    ) -> TaskRecord:
        """Makes a learned task permanent and visible, in one step; returns its record.

        Committing a task again with the same arrays (a restart after a crash) changes nothing.

        Args:
          index: place in the stream, counted from 0; the next free one.
          name: `[a-z0-9][a-z0-9_-]{0,63}`.
          groups: `{"experts": {path: array}, ...}`; only leaves of this task.
          meta: facts about the task that fit into JSON.

        Raises:
          CheckpointError: the place is taken by another task or is not the next one.
          NumericsError: an array holds NaN or infinity.
          ResourceError: the disk is too full; the earlier tasks are intact.
        """
        crash_point("before_commit", name)
        done = self.tasks()
        folder = self.place.task(index, check_name(name, "a task name"))
        if index < len(done):
            return self._same(done[index], folder, groups)
        if index > len(done):
            raise CheckpointError(
                "tasks are committed in order",
                where=folder.name,
                why=f"the next task is number {len(done)}, got {index}",
            )
        aside = self.place.incoming / folder.name
        self.clean()
        with disk_errors("could not make the run folder", aside, needed=0):
            aside.parent.mkdir(parents=True, exist_ok=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
        # Another disk could not take the rename, so the folder is written inside the seed.
        place = {"seed": self.folder.name, "index": index, "name": name}
        write_store(aside, groups, place | {"facts": dict(meta)})
        crash_point("before_rename", name)
        with disk_errors("could not commit a task", folder, needed=0):
            os.rename(aside, folder)
            sync_folder(folder.parent)
        crash_point("after_commit", name)
        return TaskRecord(index, name, folder)

    def tasks(self) -> tuple[TaskRecord, ...]:
        """Returns the committed tasks in order; they are numbered 0, 1, 2, ... without a gap.

        Raises:
          CheckpointError: a task is missing in the middle, two share a number, or a folder is not one of a task.
        """
        root = self.place.tasks
        names = []
        if root.is_dir():
            names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        records = []
        for place, name in enumerate(names):
            match = _FOLDER.fullmatch(name)
            # A gap means that later lessons were learned on top of one that is gone.
            if match is None or int(match[1]) != place:
                raise CheckpointError(
                    "the tasks of a run are not in order",
                    where=str(root),
                    why=f"expected a folder {place:03d}_NAME, found {name}; all: {', '.join(names)}",
                    remedy="put the missing task back, or move the later folders away and use --resume",
                )
            records.append(TaskRecord(place, match[2], root / name))
        return tuple(records)

    def load(
        self, index: int, *, like: Mapping[str, Mapping[str, Any]] | None = None, cast: bool = False
    ) -> tuple[Groups, dict[str, Any]]:
        """Returns `(groups, meta)` of a committed task as numpy arrays, after checking every byte of it.

        Args:
          index: which task.
          like: `{group: {path: array or abstract array}}` that the arrays must fit exactly; None takes any.
          cast: whether dtypes may differ from `like` and are converted; shapes and paths never may.

        Raises:
          CheckpointError: no such task, a damaged one (the newest good one is named), or it does not fit.
        """
        record = self._record(index)
        with self._naming_good_task(index):
            groups, meta = read_store(record.folder)
        self._check_place(record, meta)
        if like is not None:
            groups = _fitted(groups, like, cast=cast)
        return groups, meta["facts"]

    def archive(self, count: int | None = None) -> list[Groups]:
        """The groups of the first `count` tasks (None for all), as `load` returns them.

        Raises:
          CheckpointError: as `load`.
        """
        archive = []
        for record in self.tasks()[:count]:
            groups, _ = self.load(record.index)
            archive.append(groups)
        return archive

    def load_all(self, names: Sequence[str]) -> tuple[list[Groups | None], list[dict[str, Any]], dict[str, str]]:
        """Groups and facts of the tasks that are expected, in order, None and no facts for those that cannot be loaded;
        and why, by name.

        Args:
          names: of the expected tasks.
        """
        groups: list[Groups | None] = []
        facts: list[dict[str, Any]] = []
        lost: dict[str, str] = {}
        for index, name in enumerate(names):
            folder = self.place.task(index, name)
            record = TaskRecord(index, name, folder)
            try:
                stored, meta = read_store(record.folder)
                self._check_place(record, meta)
            except CheckpointError as error:
                groups.append(None)
                facts.append({})
                lost[name] = f"{record.folder.name}: {error.why or error.what}"
            else:
                groups.append(stored)
                facts.append(meta["facts"])
        return groups, facts, lost

    def meta(self, index: int) -> dict[str, Any]:
        """Returns the facts of a committed task without its arrays; the folder is checked all the same."""
        record = self._record(index)
        with self._naming_good_task(index):
            _, meta = read_facts(record.folder)
        self._check_place(record, meta)
        return meta["facts"]

    def withdraw(self, index: int) -> Path:
        """Moves the last task to `withdrawn/`, so that it can be learned again; returns its new path.

        Raises:
          CheckpointError: the task is not the last one; later tasks build on it.
        """
        done = self.tasks()
        record = self._record(index)
        # Later lessons were trained beside the experts of this one.
        if index != len(done) - 1:
            raise CheckpointError(
                "only the last task can be taken out",
                where=record.folder.name,
                why=f"the last one is {done[-1].folder.name}",
            )
        target = self.place.next_withdrawn(record.folder.name)
        os.rename(record.folder, target)
        sync_folder(record.folder.parent)
        return target

    def clean(self) -> tuple[str, ...]:
        """Removes what a crash left half-written in `.incoming/`, under the lock; returns the names."""
        incoming = self.place.incoming
        unfinished = sorted(incoming.iterdir()) if incoming.is_dir() else []
        for path in unfinished:
            remove_inside(self.folder, path)
        return tuple(path.name for path in unfinished)

    def _record(self, index: int) -> TaskRecord:
        """The record of a committed task."""
        done = self.tasks()
        if not 0 <= index < len(done):
            known = ", ".join(record.folder.name for record in done) or "none"
            raise CheckpointError(
                "no such task in the run", where=str(self.folder), why=f"asked for {index}, has: {known}"
            )
        return done[index]

    def _same(self, record: TaskRecord, folder: Path, groups: Mapping[str, Mapping[str, Any]]) -> TaskRecord:
        """The record of a task that is committed already, if its arrays are the same."""
        with self._naming_good_task(record.index):
            old, _ = read_facts(record.folder)
        # Digests are compared, not arrays: nothing has to be loaded.
        new = describe(on_host(groups))
        is_other_task = record.folder != folder
        if is_other_task or trees.flatten(old) != trees.flatten(new):
            raise CheckpointError(
                "a finished task is never overwritten",
                where=str(record.folder),
                why="it is another task" if is_other_task else "its arrays are others than these",
                remedy="redo the last task, or start a new run with another --out",
            )
        return record

    def _check_place(self, record: TaskRecord, meta: Mapping[str, Any]) -> None:
        """Refuses a folder that was committed in another seed, or under another name."""
        # Lessons of earlier versions do not name their seed.
        seed = meta.get("seed", self.folder.name)
        if seed != self.folder.name:
            raise CheckpointError(
                "a task folder is of another seed",
                where=str(record.folder),
                why=f"it was committed in {seed}",
                remedy="put the folders of the seeds back into their places",
            )
        if (meta["index"], meta["name"]) != (record.index, record.name):
            raise CheckpointError(
                "a task folder was renamed",
                where=str(record.folder),
                why=f"it was committed as {meta['index']:03d}_{meta['name']}",
                remedy="give it its name back",
            )

    @contextlib.contextmanager
    def _naming_good_task(self, index: int) -> Iterator[None]:
        """Adds to an error about a damaged task which earlier one is intact, and how to continue from it."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(
                error.what, where=error.where, why=error.why, remedy=self._newest_good(index)
            ) from error

    def _newest_good(self, index: int) -> str:
        """How to continue from the newest intact task before a damaged one."""
        for record in reversed(self.tasks()[:index]):
            try:
                verify(record.folder)
            except CheckpointError:
                continue
            return (
                f"restore {self.tasks()[index].folder.name} from a copy; the newest good task before it is "
                f"{record.folder.name}: `hidecmoe eval {self.folder.parent} --task {record.index}` uses it, "
                "and moving the later folders out of tasks/ lets --resume learn them again"
            )
        return "restore it from a copy, or learn the run again with --overwrite; no earlier task is whole"


def _fitted(groups: Groups, like: Mapping[str, Mapping[str, Any]], *, cast: bool) -> Groups:
    """`groups` where they fit `like` in every path and shape, and in every dtype unless `cast`."""
    saved = trees.flatten(groups)
    wanted = trees.flatten({group: dict(flat) for group, flat in like.items()})
    other = []
    for path, array in wanted.items():
        # Paths that only one side has are refused at the end.
        if path in saved and array.dtype != saved[path].dtype:
            other.append(path)
    if other and not cast:
        shown = []
        for path in other[:8]:
            shown.append(f"{path}: saved {saved[path].dtype}, wanted {wanted[path].dtype}")
        raise CheckpointError(
            f"{len(other)} arrays were saved in another dtype",
            why="; ".join(shown),
            remedy="load them in the dtype they were saved in, or convert them with Ledger.load(..., cast=True)",
        )
    converted: Groups = {}
    for group, flat in groups.items():
        converted[group] = dict(flat)
        for path, array in flat.items():
            full_path = f"{group}/{path}"
            if full_path in other:
                dtype = wanted[full_path].dtype
                converted[group][path] = array.astype(dtype)
    trees.restore_into(wanted, trees.flatten(converted))  # refuses other paths and shapes
    return converted
