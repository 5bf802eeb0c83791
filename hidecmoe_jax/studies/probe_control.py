"""False-expansion rate of probing: probe again with the task just learned, and count the layers that expand.

Each of them is a false positive, since the task's experts are already there.
LLaVA-CMoE has no such calibration (CMoE-D15). A probe that trains beside frozen experts is picked often simply because
it trains, and a balancing loss evens usage out on top. So the control repeats, after a task, the probing of a next task
with records of that same task. The share of layers that expand is the false-expansion rate; it is measured with the
configured balancing loss and without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.methods.capabilities import ProbeResult, Probes
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.runs.finished import RunWithData, open_with_data
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.runs.writing import writes_run
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.train.lesson import LessonSetup, run_lesson


@dataclass(frozen=True)
class Unwatched:
    """A `StageObserver` without checkpoints or progress: an interrupted control starts again."""

    def resume(self, stage: Stage) -> None:
        """No checkpoint."""
        return None

    def saves(self, step: int, steps: int) -> bool:
        """Reads no state."""
        return False

    def step(self, stage: Stage, step: int, steps: int, facts: dict[str, Any], state: Callable[[], dict]) -> None:
        """Records nothing."""

    def warn(self, text: str) -> None:
        """Prints a line."""
        say(f"warning: {text}")


@writes_run
def probe_control(run: str | Path, *, task: int = 0, repeats: int = 3) -> dict[str, Any]:
    """Writes `control.json` into the run folder and returns it: false-expansion rates after task number `task`.

    Args:
      repeats: number of probings, each with random keys of its own.

    Raises:
      ConfigError: the run does not probe, or has not learned the task.
    """
    finished = open_with_data(run)
    method = finished.config.method
    learned = len(finished.ledger().tasks())
    if not isinstance(method, Probes) or not method.probes or not 0 <= task < learned:
        raise ConfigError(
            "there is no probe to control", where=str(run),
            why=f"{method.name} has learned {learned} tasks, counted from 0; asked for number {task}",
            remedy="give a run of a mixture (or a stacked method) with `growth: probe`, and one of its tasks",
        )  # fmt: skip
    archive = finished.ledger().archive(task + 1)
    controls = []
    # A dict keeps the order and drops the second 0 of a run without balancing.
    for balance in dict.fromkeys((method.probe_settings.balance, 0.0)):
        probing = method.with_probe(replace(method.probe_settings, balance=balance))
        results = []
        for repeat in finished.session.status.bar(f"control, balance {balance}")(range(repeats)):
            probing_run = _with_method(finished, probing)
            results.append(_probe_again(probing_run, archive, task, repeat))
        controls.append({"balance": balance, **_averages(results)})
    control = {"task": finished.tasks[task], "repeats": repeats, "controls": controls}
    write_json(finished.folder.study("control"), control)
    return control


def _with_method(run: RunWithData, method: Probes) -> RunWithData:
    """The run with another method in its config; features that were computed stay."""
    config = replace(run.config, method=method)
    return replace(run, config=config, session=replace(run.session, config=config))


def _averages(results: list[ProbeResult]) -> dict[str, Any]:
    """Share of layers that expanded, and the mean frequency and threshold of each layer; with the rule `gain` the mean
    gain and the control that it was compared with."""
    expands_RL = np.array([result.expands_L for result in results])
    frequency_RL = np.array([result.frequency_L for result in results])
    threshold_RL = np.array([result.threshold_L for result in results])
    averages = {
        "false_expansion_rate": float(expands_RL.mean()),
        "frequency": frequency_RL.mean(0).tolist(),
        "threshold": threshold_RL.mean(0).tolist(),
    }
    if results[0].gain_L is None:
        return averages
    gain_RL = np.array([result.gain_L for result in results])
    control_RL = np.array([result.control_L for result in results])
    return averages | {"gain": gain_RL.mean(0).tolist(), "control": control_RL.mean(0).tolist()}


def _probe_again(run: RunWithData, archive: list[Groups], task: int, seed: int) -> ProbeResult:
    """Probes for a next lesson with records of `task`, the last one in the archive."""
    session = run.session
    method = run.config.method
    lesson = task + 1
    learner = run.learner(archive, slots=lesson + 1)
    stream_task = session.stream.tasks[task]
    setup = LessonSetup(
        number=lesson,
        name="control",
        data=session.material(stream_task.train, (task,), stream_task.name),
        tune=session.config.tune,
        key_parts=(seed, "control"),
        seed_at=lambda place: seed,
        features=lambda data: session.frozen_features(data, "control"),
    )
    # The first two stages of a lesson train the probes and measure how often they are picked.
    stages = method.stages(lesson)[:2]
    for _, _, trained in run_lesson(stages, run.model, learner, setup, observer_of=lambda *_: Unwatched()):
        learner = trained
    return method.probe_result(learner, lesson)
