"""Layout of a run folder: the one place that defines its file and folder names.

```
RUN/
  config.yaml  run.json      resolved configuration; identity of the run, allowed changes, processes that wrote it
  edits.json                 edits committed after learning
  journal.json               the command that is changing the run, until its process exits
  facts.json                 what the report needs of the opened run: sizes, lessons, sample questions
  seal.json                  what every file that is rewritten or grows may hold; archives have manifests of their own
  data_errors.jsonl          bad records that kept the run from starting
  report.json report.html figures/ tables/
  foreign.json control.json overlap.json retire.json merge.json cka.json cka_legacy.json      results of studies
  gates.json                 decisions of gates about new tasks
  kpi.json kpi.html kpi.csv  key figures of the run in service
  replaced_000/              the run that an overwrite moved aside
  seed_0/
    tasks/000_birds/         archive of one lesson, sealed        .incoming/ the same while it is written
    withdrawn/               lessons and answers that were taken out, never deleted
    answers/row_001/         birds.jsonl, birds.named.jsonl after the first lesson; row_000 is the base model
    cells.json               scores by row and task               metrics.jsonl the training curve
    wording.json             routing of reworded questions, with `evaluate.wording`
    progress/ between/       checkpoints within a stage and between two stages of the lesson that is being learned
    variants/NAME/           answers and cells.json of the last row under another fusion rule
    without/NAMES/           answers and cells.json of a row measured without lessons that could not be loaded
COMPARISON/
  comparison.json            names of its runs, each a folder of its own beside it
```
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.storage.places import COMPARISON_MARK, RUN_MARK
from hidecmoe_jax.storage.seal import NAME as SEAL

SHOWN_RUNS = 5  # runs that a message names
CONFIG = "config.yaml"
IDENTITY = RUN_MARK
EDITS = "edits.json"
JOURNAL = "journal.json"
FACTS = "facts.json"
REPORT = "report.json"
ERRORS = "data_errors.jsonl"
COMPARISON = COMPARISON_MARK

_WRITTEN_BY_A_RUN = re.compile(
    r"seed_\d+|config\.yaml|report\.(json|html)|kpi\.(json|html|csv)|figures|tables|facts\.json|edits\.json|journal\.json|data_errors\.jsonl"
    r"|(foreign|control|overlap|retire|merge|cka|cka_legacy|gates)\.json"
)


@dataclass(frozen=True)
class RunFolder:
    """Paths inside the folder of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    @property
    def identity(self) -> Path:
        """What the run is; a folder with this file holds a run."""
        return self.path / IDENTITY

    @property
    def edits(self) -> Path:
        """Committed edits; absent without any."""
        return self.path / EDITS

    @property
    def journal(self) -> Path:
        """The command that is changing the run; absent without one."""
        return self.path / JOURNAL

    @property
    def facts(self) -> Path:
        """What the report needs of the opened run; a finished run has it."""
        return self.path / FACTS

    @property
    def errors(self) -> Path:
        """All bad records, should the data be refused."""
        return self.path / ERRORS

    @property
    def comparison(self) -> Path:
        """Names of the compared runs; only in the folder of a comparison."""
        return self.path / COMPARISON

    @property
    def figures(self) -> Path:
        """Pictures of the report and of studies."""
        return self.path / "figures"

    def study(self, name: str) -> Path:
        """Result of the study `name`, such as `control`."""
        return self.path / f"{name}.json"

    def seed(self, seed: int) -> SeedFolder:
        """Folder of one seed."""
        return SeedFolder(self.path / f"seed_{seed}")

    def seeds(self) -> list[SeedFolder]:
        """Folders of all seeds that are there, by name."""
        return [SeedFolder(path) for path in sorted(self.path.glob("seed_*"))]

    def written(self) -> list[Path]:
        """What a run has written here, the identity last: moved aside in this order, the rest remains a run."""
        names = sorted(path.name for path in self.path.iterdir() if _WRITTEN_BY_A_RUN.fullmatch(path.name))
        last = [SEAL, IDENTITY] if (self.path / SEAL).is_file() else [IDENTITY]
        return [self.path / name for name in [*names, *last]]

    def rewritten(self) -> list[Path]:
        """Files that a run rewrites or appends to and reads again, as far as they are there."""
        paths = [self.config, self.edits, self.facts, self.path / REPORT]
        for seed in self.seeds():
            for cells in (seed.path, *seed.path.glob("variants/*"), *seed.path.glob("without/*")):
                folder = CellsFolder(cells)
                paths += [folder.cells, *sorted(folder.answers_folder.glob("row_*/*.jsonl"))]
            paths += [seed.metrics, seed.wording]
        return [path for path in paths if path.is_file()]

    def next_replaced(self) -> Path:
        """A free name for the run that an overwrite moves aside."""
        count = sum(1 for path in self.path.iterdir() if path.name.startswith("replaced_"))
        return self.path / f"replaced_{count:03d}"


def runs_near(path: Path) -> list[Path]:
    """Folders of runs in, above and beside a path, and in `runs/`; those whose names are most like the path's first."""
    places = [path, *path.parents[:2], path.parent / "runs", Path("runs")]
    near: dict[Path, None] = {}
    for place in places:
        # A path inside a run means that run.
        if RunFolder(place).identity.is_file():
            return [place]
        if place.is_dir():
            near |= dict.fromkeys(file.parent for file in sorted(place.glob(f"*/{IDENTITY}")))
    return sorted(near, key=lambda run: -difflib.SequenceMatcher(None, run.name, path.name).ratio())


def finish(run: RunFolder) -> str:
    """The remedy for a run that has not learned all of its tasks: the command that goes on."""
    config, folder = (shlex.quote(str(path)) for path in (run.config, run.path))
    return f"finish it first: hidecmoe run {config} --out {folder} --resume"


def no_run(path: str | Path, *, or_else: str = "") -> CheckpointError:
    """The error for a path that is no run; names what is there and the runs near by.

    Args:
      or_else: what else the command would have taken.
    """
    folder = Path(path)
    why = f"the folder holds no {IDENTITY}"
    if RunFolder(folder).comparison.is_file():
        why = "it is a comparison, which holds several runs"
    elif folder.is_file():
        why = "it is a file"
    elif not folder.exists():
        why = "there is no such folder"
    near = [str(run) for run in runs_near(folder)]
    remedy = "give a folder made by `hidecmoe run`"
    if near:
        others = f" and {len(near) - SHOWN_RUNS} more" if len(near) > SHOWN_RUNS else ""
        remedy = f"runs near by: {', '.join(near[:SHOWN_RUNS])}{others}"
    what = f"this is neither a run nor {or_else}" if or_else else "this is no run"
    return CheckpointError(what, where=str(path), why=why, remedy=remedy)


@dataclass(frozen=True)
class CellsFolder:
    """Paths of answers and scores: of a seed, of a variant, or of a row measured without some lessons."""

    path: Path

    @property
    def cells(self) -> Path:
        """Scores by row and task."""
        return self.path / "cells.json"

    @property
    def answers_folder(self) -> Path:
        """Folders of all rows."""
        return self.path / "answers"

    def row(self, row: int) -> Path:
        """Folder of the answers of a row; row 0 is the base model, row k the run after k lessons."""
        return self.answers_folder / f"row_{row:03d}"

    def answers(self, row: int, task: str, *, named: bool) -> Path:
        """Answers of one cell; `named` for those that were given with the task named."""
        return self.row(row) / (f"{task}.named.jsonl" if named else f"{task}.jsonl")


@dataclass(frozen=True)
class SeedFolder(CellsFolder):
    """Paths inside the folder of one seed of a run."""

    @property
    def run(self) -> RunFolder:
        """The run that the seed belongs to."""
        return RunFolder(self.path.parent)

    @property
    def number(self) -> int:
        """The seed."""
        return int(self.path.name.removeprefix("seed_"))

    @property
    def tasks(self) -> Path:
        """Archives of finished lessons."""
        return self.path / "tasks"

    def task(self, index: int, name: str) -> Path:
        """Archive of one finished lesson."""
        return self.tasks / f"{index:03d}_{name}"

    @property
    def incoming(self) -> Path:
        """Archives that are still being written."""
        return self.path / ".incoming"

    @property
    def withdrawn(self) -> Path:
        """Lessons and answers that were taken out."""
        return self.path / "withdrawn"

    def next_withdrawn(self, name: str) -> Path:
        """A free name in `withdrawn`, whose folder is made where it is missing."""
        self.withdrawn.mkdir(exist_ok=True)
        count = sum(1 for _ in self.withdrawn.iterdir())
        return self.withdrawn / f"{name}.{count}"

    @property
    def metrics(self) -> Path:
        """The training curve, one line a step."""
        return self.path / "metrics.jsonl"

    @property
    def trackers(self) -> Path:
        """What trackers besides the training curve have written."""
        return self.path / "trackers"

    @property
    def wording(self) -> Path:
        """Routing of test questions in other wordings."""
        return self.path / "wording.json"

    @property
    def step_checkpoints(self) -> Path:
        """Checkpoints within the training stage at hand."""
        return self.path / "progress"

    @property
    def stage_checkpoints(self) -> Path:
        """Checkpoint between two stages of the lesson at hand."""
        return self.path / "between"

    @property
    def variants(self) -> Path:
        """Folders of all variants."""
        return self.path / "variants"

    def variant(self, name: str) -> CellsFolder:
        """Answers and scores of the last row under a variant of the method."""
        return CellsFolder(self.variants / name)

    def without(self, names: Iterable[str]) -> CellsFolder:
        """Answers and scores of a row without these lessons."""
        return CellsFolder(self.path / "without" / "_".join(names))

    def columns(self, task: str) -> list[Path]:
        """Answers to a task's questions in all rows."""
        paths = []
        for label in (task, f"{task}.named"):
            paths += sorted(self.path.glob(f"answers/row_*/{label}.jsonl"))
        return paths
