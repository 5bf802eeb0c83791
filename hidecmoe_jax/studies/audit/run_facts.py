"""Facts of finished runs that decide whether they may be compared: steps, parameters, records, replay, split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.report.page import REPORT
from hidecmoe_jax.runs.folder import RunFolder, SeedFolder, finish, no_run
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.signed import read_signed

UNEQUAL = 1.05  # largest over smallest, from which on budgets count as unequal
BUDGETS = {
    "steps": "training steps",
    "stored": "parameters stored to answer",
    "trained": "parameters trained at once",
    "seeds": "seeds",
}


@dataclass(frozen=True)
class RunFacts:
    """What an audit needs of a run.

    Attributes:
      tasks: in the order of the matrix's columns.
      lessons: tasks that were learned together, in order.
      matrix: mean scores R[k][i], row 0 zero-shot.
      settings: the resolved config as plain values.
      steps: training steps of the first seed.
      stored, trained: numbers of parameters, None where not recorded.
      seeds: number of seeds.
      answers: lines in the files of the last row, by task.
    """

    label: str
    tasks: tuple[str, ...]
    lessons: tuple[tuple[str, ...], ...]
    matrix: tuple[tuple[float | None, ...], ...]
    settings: Mapping[str, Any]
    steps: int
    stored: int | None
    trained: int | None
    seeds: int
    answers: Mapping[str, int]

    @property
    def kind(self) -> str:
        """Kind of its method."""
        return str(self.settings["method"].get("kind"))

    @property
    def is_joint(self) -> bool:
        """Whether all tasks were learned together, or all earlier ones again with each."""
        return bool(self.settings["method"].get("union")) or len(self.lessons) < len(self.tasks)

    @property
    def replayed(self) -> int:
        """Records of each earlier task that are trained on again."""
        method = self.settings["method"]
        return int(method["stored"]) if self.kind == "replay" else 0

    @property
    def split(self) -> str:
        """Split that the scores are of."""
        return str(self.settings.get("evaluate", {}).get("split", "test"))

    def mean(self, row: int) -> float | None:
        """Mean score of a row; None where a cell was not measured."""
        scores = self.matrix[row]
        return None if None in scores else sum(scores) / len(scores)


def read_runs(paths: Iterable[Path]) -> list[RunFacts]:
    """Facts of runs and of the runs of comparisons.

    Raises:
      CheckpointError: no run, or one that is not finished.
    """
    runs = []
    for path in paths:
        folder = RunFolder(path)
        if folder.comparison.is_file():
            runs += [_read(RunFolder(path / name)) for name in read_signed(folder.comparison)["runs"]]
        elif folder.identity.is_file():
            runs.append(_read(folder))
        else:
            raise no_run(path, or_else="a comparison")
    return runs


def _read(run: RunFolder) -> RunFacts:
    report = run.path / REPORT
    if not report.is_file():
        raise CheckpointError("the run is not finished", where=str(run.path), why=f"no {REPORT}", remedy=finish(run))
    document = seal.read_json(report) or {}
    tasks = tuple(document["tasks"])
    lessons = document.get("lessons") or [[task] for task in tasks]
    seed = run.seed(document["seeds"]["list"][0])
    return RunFacts(
        label=run.path.resolve().name,
        tasks=tasks,
        lessons=tuple(map(tuple, lessons)),
        matrix=tuple(map(tuple, document["matrix"])),
        settings=document["settings"],
        steps=_steps(seed),
        stored=_total(document.get("stored_parameters")),
        trained=_total(document.get("trained_parameters")),
        seeds=len(document["seeds"]["list"]),
        answers=_answers(seed, tasks, len(lessons)),
    )


def _total(counts: Mapping[str, int] | None) -> int | None:
    return None if counts is None else counts["total"]


def _steps(seed: SeedFolder) -> int:
    """Training steps in the curve; a step that was repeated after a stop counts once."""
    return len({tuple(line["at"]) for line in seal.read_lines(seed.metrics)})


def _answers(seed: SeedFolder, tasks: Sequence[str], row: int) -> dict[str, int]:
    counts = {}
    for task in tasks:
        path = seed.answers(row, task, named=False)
        if path.is_file():
            counts[task] = len(seal.read_lines(path))
    return counts


def budgets(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """What each run spent of each budget, and whether they are unequal."""
    rows = []
    for name, title in BUDGETS.items():
        values = [getattr(run, name) for run in runs]
        # A reference point without training or experts spends nothing, and is unequal by nature.
        spent = [value for value in values if value]
        ratio = max(spent) / min(spent) if spent else 1.0
        rows.append({"budget": name, "title": title, "values": values, "ratio": ratio, "unequal": ratio > UNEQUAL})
    return rows


def joint_gap(runs: Sequence[RunFacts]) -> dict[str, Any] | None:
    """Zero-shot score against that of learning all tasks together; None where no run has both rows.

    Without a joint run the best last row stands in, so the gap is a lower bound.
    """
    zeros = [run.mean(0) for run in runs if run.mean(0) is not None]
    joint = [run for run in runs if run.is_joint]
    lasts = [(run.mean(-1), run.label) for run in joint or runs if run.mean(-1) is not None]
    if not zeros or not lasts:
        return None
    last, label = max(lasts)
    return {"zero_shot": zeros[0], "joint": last, "run": label, "gap": last - zeros[0], "is_joint": bool(joint)}


def chosen_on_test(runs: Sequence[RunFacts]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Pairs of runs of one method with different settings that are both scored on the test, and these settings."""
    pairs = []
    for place, first in enumerate(runs):
        for second in runs[place + 1 :]:
            differing = _differing(first.settings, second.settings)
            is_same_method = first.kind == second.kind and first.settings["method"].get("name") == second.settings[
                "method"
            ].get("name")
            if is_same_method and differing and first.split == second.split == "test":
                pairs.append((first.label, second.label, differing))
    return pairs


def _differing(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """Dotted names of settings of method and tuning that differ."""
    names: list[str] = []
    for name in dict.fromkeys([*first, *second]):
        if not prefix and name not in ("method", "tune"):
            continue
        left = first.get(name)
        right = second.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            names += _differing(left, right, f"{prefix}{name}.")
        elif left != right:
            names.append(f"{prefix}{name}")
    return tuple(names)
