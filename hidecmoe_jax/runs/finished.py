"""Opening a finished run: the one way from a folder to its config, its archive and the learner it holds.

`open_with_data` opens a run together with its stream, for studies and edits; `open_finished` does without the stream.
`load_run` also builds the learner and can leave out lessons that cannot be loaded: that is what answers questions and
what is exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.methods.base import Learner
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.models.quantised import quantise_model
from hidecmoe_jax.runs.base_files import require_base_files
from hidecmoe_jax.runs.config import Base, RunConfig, config_of
from hidecmoe_jax.runs.edits import learner_after
from hidecmoe_jax.runs.folder import RunFolder, SeedFolder
from hidecmoe_jax.runs.identity import BASE_FILES, UNDO, changes_of, read_run, task_names
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.missing import load_archive
from hidecmoe_jax.runs.older import say_of_older
from hidecmoe_jax.runs.scale import Scale
from hidecmoe_jax.runs.session import Session, open_base, open_session
from hidecmoe_jax.runs.start import evaluating, require_folders
from hidecmoe_jax.storage.arrays import Groups


@dataclass(frozen=True)
class FinishedRun:
    """A run with its base model in memory; archives and learners are read on request.

    Attributes:
      model: the base model, nothing of the run in it.
      tasks: names of all tasks of the run.
    """

    folder: RunFolder
    config: RunConfig
    model: Model
    tokenizer: Tokenizer
    tasks: tuple[str, ...]

    @property
    def first(self) -> int:
        """The seed that studies, `ask` and exports use."""
        return self.config.seeds[0]

    def seed(self, seed: int | None = None) -> SeedFolder:
        """Folder of a seed; of the first one by default."""
        return self.folder.seed(self.first if seed is None else seed)

    def ledger(self, seed: int | None = None) -> Ledger:
        """Finished lessons of a seed; of the first one by default."""
        return Ledger(self.seed(seed).path)

    def learner(
        self, archive: Sequence[Groups | None], *, edits: bool = True, slots: int = 0, seed: int | None = None
    ) -> Learner:
        """The learner after the archived lessons.

        Args:
          edits: apply the run's edits; without them it is the learner as it was trained.
          slots: task slots that are needed, where these are more than the run has tasks.
          seed: whose lessons these are; the first by default.
        """
        run = self.folder.path if edits else None
        # The number of task slots is a shape, so it stays the same for every length of the archive.
        tasks = max(len(self.tasks), slots)
        return learner_after(archive, run, self.config, self.model, tasks=tasks, seed=seed)


@dataclass(frozen=True)
class RunWithData(FinishedRun):
    """A finished run whose stream is open too."""

    session: Session

    def lines(self) -> dict[str, str | None]:
        """Instruction lines that the tasks of the first seed were trained with, by task; None for one without."""
        ledger = self.ledger()
        return _lines_of([ledger.meta(record.index) for record in ledger.tasks()])

    def require_same_data(self) -> None:
        """Refuses a run whose base, config, tasks or data are not those it was learned with.

        Raises:
          CheckpointError: names every field that differs.
        """
        changes_of(self.folder.path, self.session.identity(), remedy=UNDO)


def open_finished(run: str | Path) -> FinishedRun:
    """Opens the config and the base model of a run.

    Raises:
      CheckpointError: the folder holds no run.
    """
    folder = RunFolder(Path(run))
    config = config_of(run)
    model, tokenizer = open_base(config)
    tasks = tuple(task_names(folder.path))
    return FinishedRun(folder, config, model, tokenizer, tasks)


def open_with_data(run: str | Path) -> RunWithData:
    """Opens config, base model and stream of a run; that the data is unchanged is checked by `require_same_data`.

    Raises:
      CheckpointError: the folder holds no run.
      DataError, ConfigError: the data cannot be read.
    """
    folder = RunFolder(Path(run))
    config = config_of(run)
    tasks = tuple(task_names(folder.path))
    require_folders(config, tasks, evaluating(folder.path))
    session = open_session(config)
    say_of_older(config, session.stream.tasks)
    return RunWithData(folder, config, session.model, session.tokenizer, tasks, session)


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory, as answers need it (in int8 where `scale` says so).

    Attributes:
      digest: SHA-256 of its leaves as its folder has them.
      base, scale: settings that it was loaded with.
    """

    model: Model
    tokenizer: Tokenizer
    digest: str
    base: Base
    scale: Scale


@dataclass(frozen=True)
class LoadedRun:
    """The learner of a run's first seed in memory, with everything it takes to serve or export it.

    Attributes:
      model: the base model, nothing of the run in it.
      archive: groups of every lesson in the ledger; None for those in `missing`, which could not be loaded.
      tasks: names of the lessons.
      base: SHA-256 of the base's leaves, as run.json has it.
      lines: instruction lines that its tasks were trained with, by task; None for a task without one.
    """

    folder: RunFolder
    config: RunConfig
    model: Model
    tokenizer: Tokenizer
    learner: Learner
    archive: list[Groups | None]
    tasks: tuple[str, ...]
    missing: tuple[str, ...]
    base: str
    lines: dict[str, str | None] = field(default_factory=dict)

    @property
    def loaded_base(self) -> LoadedBase:
        """The base, for another run that was learned on it."""
        return LoadedBase(self.model, self.tokenizer, self.base, self.config.base, self.config.scale)


def load_run(
    run: str | Path,
    *,
    task: int | None = None,
    skip_missing: bool = False,
    quantised: bool = False,
    base: LoadedBase | None = None,
) -> LoadedRun:
    """Loads a run without its data, optionally as it was after its first `task` lessons.

    Args:
      skip_missing: leave out lessons that cannot be loaded.
      quantised: the base in int8 where the run was learned over it, as answers need it; else as its folder has it.
      base: used instead of a second copy where the run was learned on the same one with the same settings; it must be
        `quantised`.

    Raises:
      CheckpointError: no run, damaged (every lesson that cannot be loaded is named), another base model than the run
        was learned on, or no such task.
    """
    finished = _on_base(run, base) if quantised else None
    if finished is None:
        finished = open_finished(run)
        _require_base(finished)
        if quantised and finished.config.scale.bits == 8:
            finished = replace(finished, model=quantise_model(finished.model, consume=True))
    config = finished.config
    loaded = load_archive(finished.seed(), config.method, finished.tasks, count=task)
    loaded.require(config.method, skip_missing=skip_missing)
    learner = finished.learner(loaded.archive)
    lines = _lines_of(loaded.facts)
    digest = read_run(finished.folder.path)["identity"]["base"]
    return LoadedRun(
        finished.folder, config, finished.model, finished.tokenizer, learner, loaded.archive,
        loaded.names, tuple(loaded.lost), digest, lines,
    )  # fmt: skip


def _on_base(run: str | Path, base: LoadedBase | None) -> FinishedRun | None:
    """The run on a base that is in memory; None where it was learned on another one, or there is none."""
    if base is None:
        return None
    folder = RunFolder(Path(run))
    config = config_of(run)
    digest = read_run(folder.path)["identity"]["base"]
    if (digest, config.base, config.scale) != (base.digest, base.base, base.scale):
        return None
    return FinishedRun(folder, config, base.model, base.tokenizer, tuple(task_names(folder.path)))


def _require_base(finished: FinishedRun) -> None:
    """Refuses a base model that the run was not learned on."""
    identity = read_run(finished.folder.path)["identity"]
    require_base_files(finished.config.base, identity.get(BASE_FILES), finished.folder.path)
    # Experts are corrections of one base: on another one they would give wrong answers without any error.
    if trees.digest(finished.model.params) != identity["base"]:
        raise CheckpointError(
            "the run was learned on another base model", where=str(finished.folder.path),
            why=f"the SHA-256 of {finished.config.base.path} is not the one in run.json",
            remedy="put the original base model back",
        )  # fmt: skip


def _lines_of(lessons: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Instruction lines of the tasks of lessons, from what the ledger says of them."""
    lines: dict[str, str | None] = {}
    for facts in lessons:
        # Archives of older versions have no lines, and adopted ones no tasks.
        stored = facts.get("lines", {})
        for task in facts.get("tasks", ()):
            lines[task] = stored.get(task)
    return lines
