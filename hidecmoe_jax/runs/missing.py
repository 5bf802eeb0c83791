"""What of a run can be loaded: experts that should be there and are not, and how to answer without them (CK24).

A run names its tasks in run.json, and cells.json tells how many of them were learned and measured; together with the
folders that are there they say which folders must be. If one is gone or damaged, nothing is served, unless the user
asks to leave its task out. Then its experts are heard by nobody, the gate cannot choose it, and every answer names it.

That is not the run as if the task had never been learned. Where experts are fused, the task is not in the fusion. In a
pool, routers of later tasks lose those of its experts that they saw, and share a token among the others: their answers
may change too. The projector is as the last task that is left has tuned it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.seed_run import lesson_name
from hidecmoe_jax.storage.arrays import Groups

_PLACE = re.compile(r"(\d{3,})_.+")


@dataclass(frozen=True)
class LoadedArchive:
    """What could be loaded of a seed: its folder, the expected lessons, their groups (None: lost), and why by name."""

    folder: SeedFolder
    names: tuple[str, ...]
    kept: list[Groups | None]
    lost: dict[str, str]

    def first(self, count: int | None) -> LoadedArchive:
        """The same for the first lessons; None for all."""
        names = self.names[:count]
        return LoadedArchive(self.folder, names, self.kept[:count], {n: self.lost[n] for n in names if n in self.lost})

    def require(self, method: Method, *, skip_missing: bool) -> None:
        """Refuses to go on without a lesson, unless asked to and the method keeps its lessons apart.

        Raises:
          CheckpointError: names every lesson that is missing or damaged.
        """
        if not self.lost or (skip_missing and method.traits.keeps_old_experts):
            return
        whole = self.kept.index(None)
        apart = (
            "or leave them out of every answer with --skip-missing"
            if method.traits.keeps_old_experts
            else "one expert serves all"
        )
        raise CheckpointError(
            f"{len(self.lost)} of {len(self.names)} tasks cannot be loaded", where=str(self.folder.tasks),
            why="\n         ".join(self.lost.values()),
            remedy=f"restore these folders from a copy; --task {whole} goes back to before them; {apart}",
        )  # fmt: skip


def expected(folder: SeedFolder, names: Sequence[str]) -> tuple[str, ...]:
    """The lessons that a seed must hold: up to the last one that has a folder or was measured."""
    root = folder.tasks
    found = [_PLACE.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    places = [int(match[1]) + 1 for match in found if match is not None]
    return tuple(names[: max([0, *places, *Cells(folder.cells).read()])])


def gather(folder: SeedFolder, method: Method, tasks: Sequence[str], *, count: int | None = None) -> LoadedArchive:
    """Loads the lessons of a seed, or the first `count` of them, as far as they can be loaded.

    Args:
      tasks: names of the run's tasks.

    Raises:
      CheckpointError: there are fewer lessons, or a folder among them is none of ours.
    """
    names = expected(folder, [lesson_name(tasks, lesson) for lesson in method.lessons(len(tasks))])
    if count is not None and not 0 <= count <= len(names):
        raise CheckpointError(
            "no such task in the run", where=str(folder.path), why=f"asked for {count}, learned are {len(names)}"
        )
    ledger = Ledger(folder.path)
    kept, lost = ledger.gather(names[:count])
    if not lost and count is None:
        ledger.tasks()
    return LoadedArchive(folder, names[:count], kept, lost)
