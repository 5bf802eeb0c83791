"""Loading a run of which some lessons are missing or damaged.

run.json names the tasks, and cells.json shows how many lessons were learned and measured; together with the folders on
disk they define which lessons must exist. If one is missing or damaged, the run is not served, unless the user asks to
leave its task out (`--skip-missing`). Then its experts contribute nothing, the gate cannot choose it, and every answer
names it.

That is not the run as if the task had never been learned. Where experts are fused, the task is not in the fusion. In a
pool, routers of later tasks lose the columns of its experts and distribute a token over the others, so their answers
may change too. The projector is as the last remaining task tuned it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.seed_run import lesson_name
from hidecmoe_jax.storage.arrays import Groups

_NUMBERED = re.compile(r"(\d{3,})_.+")


@dataclass(frozen=True)
class LoadedArchive:
    """Lessons of a seed, as far as they could be loaded.

    Attributes:
      names: of the expected lessons.
      archive: their groups; None where a lesson is lost.
      facts: what the ledger says of them; nothing where a lesson is lost.
      lost: why each lost lesson could not be loaded, by name.
    """

    folder: SeedFolder
    names: tuple[str, ...]
    archive: list[Groups | None]
    facts: list[dict[str, Any]]
    lost: dict[str, str]

    def first(self, count: int | None) -> LoadedArchive:
        """The same for the first lessons; None for all."""
        names = self.names[:count]
        archive = self.archive[:count]
        facts = self.facts[:count]
        lost = {name: why for name, why in self.lost.items() if name in names}
        return LoadedArchive(self.folder, names, archive, facts, lost)

    def require(self, method: Method, *, skip_missing: bool) -> None:
        """Refuses an archive with lost lessons, unless asked to skip them and the method keeps its lessons apart.

        Raises:
          CheckpointError: names every lesson that is missing or damaged.
        """
        apart = method.traits.keeps_old_experts
        if not self.lost or (skip_missing and apart):
            return
        whole = self.archive.index(None)  # lessons before the first lost one
        choice = "or leave them out of every answer with --skip-missing" if apart else "one expert serves all"
        raise CheckpointError(
            f"{len(self.lost)} of {len(self.names)} tasks cannot be loaded", where=str(self.folder.tasks),
            why="\n         ".join(self.lost.values()),
            remedy=f"restore these folders from a copy; --task {whole} goes back to before them; {choice}",
        )  # fmt: skip


def expected(folder: SeedFolder, names: Sequence[str]) -> tuple[str, ...]:
    """The lessons that a seed must hold: up to the last one that has a folder or was measured."""
    counts = [0, *Cells(folder.cells).read()]
    if folder.tasks.is_dir():
        for path in folder.tasks.iterdir():
            match = _NUMBERED.fullmatch(path.name)
            if match is not None:
                lesson = int(match[1])
                counts.append(lesson + 1)
    return tuple(names[: max(counts)])


def load_archive(
    folder: SeedFolder, method: Method, tasks: Sequence[str], *, count: int | None = None
) -> LoadedArchive:
    """Loads the lessons of a seed, or the first `count` of them, as far as they can be loaded.

    Args:
      tasks: names of the run's tasks.

    Raises:
      CheckpointError: there are fewer lessons, or a folder among them is not one of a lesson.
    """
    lessons = method.lessons(len(tasks))
    names = expected(folder, [lesson_name(tasks, lesson) for lesson in lessons])
    if count is not None and not 0 <= count <= len(names):
        raise CheckpointError(
            "the run has not learned so many tasks", where=str(folder.run.path),
            why=f"asked for its state after {count}, learned are {len(names)}: {', '.join(names) or 'none'}",
            remedy=f"choose a state from 1 to {len(names)}; 0 is the base model",
        )  # fmt: skip
    ledger = Ledger(folder.path)
    wanted = names[:count]
    archive, facts, lost = ledger.load_all(wanted)
    if not lost and count is None:
        ledger.tasks()  # refuses folders that do not belong there
    return LoadedArchive(folder, wanted, archive, facts, lost)
