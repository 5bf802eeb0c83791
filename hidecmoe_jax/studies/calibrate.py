"""Thresholds of unknown inputs, set on a trained run: from validation records or from a user's own folders.

Nothing is trained. Every setting is shown with what it loses (own records that it calls unknown) and what it catches
(records of a task that is left out once). The chosen one is recorded beside the edits of the run, so `restore` takes it
back, and the last row is measured again. Lost and caught shares come from thresholds that the other half of the records
set, so that no record is judged by a threshold that it set itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.data.prepared import prepared
from hidecmoe_jax.data.records import POLICY, Record
from hidecmoe_jax.data.task_source import NAMES, open_source
from hidecmoe_jax.locators.calibrate import carried, threshold
from hidecmoe_jax.methods.base import FrozenFeatures
from hidecmoe_jax.methods.gates.unknown import BOTH, RETIRED, calibrated, modality_masks
from hidecmoe_jax.operate.corrections import corrections
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.edits import Calibration, Committed
from hidecmoe_jax.runs.finished import RunWithData, open_with_data
from hidecmoe_jax.runs.trained_lines import TrainedLines
from hidecmoe_jax.runs.writing import gone_on, writing
from hidecmoe_jax.storage.signals import graceful_stop
from hidecmoe_jax.studies.edit_trial import commit_edits, measure_again, require_finished

SETTINGS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
DEFAULT = 0.01
VALIDATION = "validation"
Masks = dict[str, np.ndarray]


def calibrate(
    run: str | Path,
    *,
    data: Sequence[str | Path] = (),
    log: str | Path | None = None,
    false_alarms: float | None = None,
) -> dict[str, Any]:
    """Sets the thresholds of a run's gate anew and measures its last row again.

    Args:
      data: task folders, each named as the task whose inputs it holds; by default the validation records of all tasks.
      log: a decision log, of which the reviewed questions with their right tasks are taken, instead of folders.
      false_alarms: part of a task's own inputs that may be called unknown; by default what the gate was trained with,
        or 0.01.

    Returns:
      `settings`: a list of {false_alarms, lost, caught} in percent, `caught` None with one task; `tasks`: for every
      calibrated task its `records`, what they carry in words, and its `threshold`, of the first seed; `false_alarms`,
      `source`.

    Raises:
      ConfigError: the gate has no thresholds, the run is not finished, or a folder is of no task.
      DataError: there are no records, or a folder cannot be read.
    """
    folder = Path(run)
    places = [str(Path(place).resolve()) for place in data]
    if data and log is not None:
        raise ConfigError("thresholds are set from folders or from a log", why="both are named", remedy="name one")
    call = {"command": "calibrate", "data": places, "false_alarms": false_alarms}
    if log is not None:
        call["log"] = str(Path(log).resolve())
    with writing(folder), graceful_stop() as stop:
        begun = gone_on(folder, call)
        require_finished(folder)
        finished = open_with_data(folder)
        finished.require_same_data()
        if begun is not None:
            measure_again(finished.session, folder, stop)
            return begun.result
        share = _share(finished, false_alarms)
        records = _records(finished, data) if log is None else _reviewed(finished, Path(log))
        source = ", ".join(str(Path(place)) for place in data) or VALIDATION
        if log is not None:
            source = f"reviews in {log}"
        seeds = {}
        for seed in finished.config.seeds:
            seeds[seed] = _Scores.of(finished, seed, records)
        first = seeds[finished.first]
        settings = [first.effect(setting) for setting in sorted({*SETTINGS, share})]
        limits = {str(seed): scores.limits(share) for seed, scores in seeds.items()}
        counts = {str(task): len(of_task) for task, of_task in records.items()}
        tasks = {}
        for task, of_task in records.items():
            promise = carried(len(of_task), share)
            limit = limits[str(finished.first)][str(task)].get(BOTH)
            name = finished.tasks[task]
            tasks[name] = {"records": len(of_task), "carries": str(promise), "threshold": limit}
        result = {"false_alarms": share, "source": source, "settings": settings, "tasks": tasks}
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        what = f"set thresholds of unknown inputs to lose {100 * share:g} % of a task's own ({source})"
        calibration = Calibration(share, source, counts, limits)
        committed = Committed(None, len(finished.tasks), what, now, result, calibration)
        all_edits = (*edits.read(folder), committed)
        commit_edits(finished.session, folder, all_edits, list(finished.config.seeds), stop, call, result)
    return result


def _share(run: RunWithData, false_alarms: float | None) -> float:
    """The share of a task's own inputs that may be lost.

    Raises:
      ConfigError: it is no share, or the gate compares nothing with a threshold.
    """
    method = run.config.method
    if not method.gated or method.traits.needs_task_name:
        raise ConfigError(
            "this run has no thresholds to set", where=str(run.folder.path),
            why=f"{method.name} does not compare an input with its tasks",
            remedy="`hidecmoe ask` answers every question of such a run",
        )  # fmt: skip
    share = method.gate.foreign if false_alarms is None else false_alarms
    share = DEFAULT if share is None else share
    if not 0 <= share < 1:
        raise ConfigError(
            "false alarms are a share", where="--false-alarms", why=f"got {share:g}, allowed 0 <= x < 1",
            remedy="--false-alarms 0.01 loses one in a hundred of a task's own inputs",
        )  # fmt: skip
    return share


def _records(run: RunWithData, data: Sequence[str | Path]) -> dict[int, tuple[Record, ...]]:
    """Records that set thresholds, by the number of their task; of retired tasks none."""
    archive = run.ledger().archive()
    learned = run.config.method.learned(run.learner(archive))
    records = {}
    if data:
        for place in data:
            task = _task_of(Path(place), run.tasks)
            records[task] = records.get(task, ()) + _read(Path(place))
    else:
        for task in run.session.stream.tasks:
            if task.index in learned and task.val:
                records[task.index] = task.val
    if not records:
        raise DataError(
            "there are no validation records", where=str(run.folder.path), why="its tasks have none",
            remedy="give folders of your own with --data, each named as its task",
        )  # fmt: skip
    return records


def _reviewed(run: RunWithData, log: Path) -> dict[int, tuple[Record, ...]]:
    """Reviewed questions of a log by the number of their right task, worded as they are when they are routed."""
    archive = run.ledger().archive()
    learned = run.config.method.learned(run.learner(archive))
    records: dict[int, tuple[Record, ...]] = {}
    for correction in corrections(log).usable:
        if correction.task in run.tasks and run.tasks.index(correction.task) in learned:
            number = run.tasks.index(correction.task)
            records[number] = (*records.get(number, ()), correction.record())
    if not records:
        raise DataError(
            "no reviewed question is of a task of the run", where=str(log),
            why="none has a kept picture and a right task that is learned",
            remedy="serve with --log DIR --keep-pictures DAYS, and review what waits: hidecmoe review DIR",
        )  # fmt: skip
    lines = TrainedLines(run.lines())
    return {number: lines.before_routing(of_task)[0] for number, of_task in records.items()}


def _task_of(place: Path, tasks: Sequence[str]) -> int:
    data_set = prepared(place)
    name = place.resolve().name if data_set is None else data_set.about["name"]
    if name not in tasks:
        raise ConfigError(
            "a folder of no task of the run", where=str(place), why=f"it is called {name!r}",
            remedy=f"{nearest(name, tasks)}; name the folder as the task whose inputs it holds",
        )  # fmt: skip
    return list(tasks).index(name)


def _read(place: Path) -> tuple[Record, ...]:
    """The records of a folder: of its test file, or else of its training file."""
    source = open_source(place, dict.fromkeys(NAMES), None)
    return source.read("test" if "test" in source.files else "train", POLICY).records


@dataclass(frozen=True)
class _Scores:
    """Scores of the records that calibrate one seed.

    Attributes:
      tasks: their numbers, in order.
      own: for every task how typical its records are of it, float [M].
      masks: for every task which of its records have both modalities, a picture alone, or a text alone.
      nearest, typical: for every set of learned tasks (all, then without each) and every task, the nearest task of its
        records and how typical of it they are.
    """

    tasks: tuple[int, ...]
    own: dict[int, np.ndarray]
    masks: dict[int, Masks]
    nearest: dict[int | None, dict[int, np.ndarray]]
    typical: dict[int | None, dict[int, np.ndarray]]

    @classmethod
    def of(cls, run: RunWithData, seed: int, records: dict[int, tuple[Record, ...]]) -> _Scores:
        """Scores under the gate of a seed."""
        method = run.config.method
        learner = run.learner(run.ledger(seed).archive(), seed=seed)
        memory = calibrated(method.gate_memory(learner), {})
        # Scores are among the tasks that are named, and a retired one would be among them always.
        memory.pop(RETIRED, None)
        learned = set(method.learned(learner))

        @jax.jit
        def matched(frozen: FrozenFeatures, learned_N: jax.Array):
            match = method.gate.decide(memory, frozen, learned_N).match
            return match.nearest_B, match.score_B

        frozen = {}
        for task, of_task in records.items():
            inputs = run.session.engine.inputs(of_task, f"{run.tasks[task]} calibration")
            frozen[task] = inputs.frozen()
        numbers = np.arange(len(memory[BOTH]))
        own = {}
        masks = {}
        for task in records:
            own[task] = np.asarray(matched(frozen[task], jnp.asarray(numbers == task))[1])
            masks[task] = modality_masks(frozen[task].pooled)
        nearest_tasks: dict[int | None, dict[int, np.ndarray]] = {}
        typical: dict[int | None, dict[int, np.ndarray]] = {}
        left_out = [None, *sorted(records)] if len(learned) > 1 else [None]
        for left in left_out:
            learned_N = jnp.asarray(np.isin(numbers, sorted(learned - {left})))
            matches = {task: matched(frozen[task], learned_N) for task in records}
            nearest_tasks[left] = {task: np.asarray(match[0]) for task, match in matches.items()}
            typical[left] = {task: np.asarray(match[1]) for task, match in matches.items()}
        return cls(tuple(records), own, masks, nearest_tasks, typical)

    def limits(self, share: float) -> dict[str, dict[str, float]]:
        """Thresholds of every task; a kind of input that no record is of keeps its own."""
        limits = {}
        for task in self.tasks:
            of_task = {}
            for name, mask in self.masks[task].items():
                if mask.any():
                    of_task[name] = threshold(self.own[task][mask], share)
            limits[str(task)] = of_task
        return limits

    def effect(self, share: float) -> dict[str, float | None]:
        """Percent of own records that are lost, and of a left-out task's records that are caught; means over tasks."""
        lost = [self._unknown(None, task, share) for task in self.tasks]
        caught = [self._unknown(task, task, share) for task in self.tasks if task in self.nearest]
        return {
            "false_alarms": share,
            "lost": round(float(np.mean(lost)), 2),
            "caught": round(float(np.mean(caught)), 2) if caught else None,
        }

    def _unknown(self, left: int | None, task: int, share: float) -> float:
        """Percent of a task's records that are unknown, each judged by thresholds of the other half of the records."""
        nearest_M = self.nearest[left][task]
        typical_M = self.typical[left][task]
        half_M = np.arange(len(nearest_M)) % 2
        unknown_M = np.zeros(len(nearest_M), bool)
        for half in (0, 1):
            limits = {}
            for other in self.tasks:
                scores = self.own[other]
                rest = scores[np.arange(len(scores)) % 2 != half]
                limits[other] = threshold(rest, share) if len(rest) else -np.inf
            limit_M = np.array([limits.get(int(number), -np.inf) for number in nearest_M])
            unknown_M |= (half_M == half) & (typical_M < limit_M)
        return 100.0 * float(unknown_M.mean())
