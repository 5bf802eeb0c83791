"""How often does a probe ask for an expert that nobody needs? The calibration that LLaVA-CMoE lacks (CMoE-D15).

A probe that trains beside frozen experts is picked often simply because it trains, and a balancing loss evens usage
out on top. So after a task the probing of a next task is played with records of that same task: whatever expands then
expands in vain. The share of layers that do is the false-expansion rate, with the balancing loss and without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.methods.capabilities import ProbeResult, Probes
from hidecmoe_jax.runs.finished import RunWithData, open_with_data
from hidecmoe_jax.runs.session import bar, say
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.train.lesson import LessonSetup, run_lesson


@dataclass(frozen=True)
class Unwatched:
    """A `StageObserver` that saves and shows nothing: a control is played again, never resumed."""

    def resume(self, stage):
        """There is nothing to go on from."""
        return None

    def step(self, stage, step, steps, facts, state) -> None:
        """Nothing is kept."""

    def warn(self, text: str) -> None:
        """A line for the user."""
        say(f"warning: {text}")


def probe_control(run: str | Path, *, task: int = 0, repeats: int = 3) -> dict[str, Any]:
    """Writes `control.json` into the run folder and returns it: false-expansion rates after task number `task`.

    Raises:
      ConfigError: the run does not probe, or has not learned the task.
    """
    finished = open_with_data(run)
    session, method = finished.session, finished.config.method
    done = finished.ledger().tasks()
    if not isinstance(method, Probes) or not method.probes or not 0 <= task < len(done):
        raise ConfigError(
            "there is no probe to control", where=str(run),
            why=f"{method.name} has learned {len(done)} tasks, asked for number {task}",
            remedy="give a run of a mixture (or a stacked method) with `growth: probe`, and one of its tasks",
        )  # fmt: skip
    kept = finished.ledger().archive(task + 1)
    found = []
    for balance in dict.fromkeys((method.probe_settings.balance, 0.0)):
        probing = method.with_probe(replace(method.probe_settings, balance=balance))
        config = replace(session.config, method=probing)
        own = replace(finished, config=config, session=replace(session, config=config))
        plays = [_play(own, kept, task, seed) for seed in bar(f"control, balance {balance}")(range(repeats))]
        expanded = np.array([play.expands_L for play in plays])
        frequency = np.array([play.frequency_L for play in plays])
        limit = np.array([play.threshold_L for play in plays])
        found.append(
            {
                "balance": balance, "false_expansion_rate": float(expanded.mean()),
                "frequency": frequency.mean(0).tolist(), "threshold": limit.mean(0).tolist(),
            }
        )  # fmt: skip
    result = {"task": session.stream.tasks[task].name, "repeats": repeats, "controls": found}
    write_json(finished.folder.study("control"), result)
    return result


def _play(run: RunWithData, kept: list, task: int, seed: int) -> ProbeResult:
    """Probing for a next task with records of `task`: layers expanded, the probe's frequency, its threshold."""
    session, method, number = run.session, run.config.method, task + 1
    learner, spec = run.learner(kept, slots=number + 1), session.stream.tasks[task]
    setup = LessonSetup(
        number=number,
        name="control",
        data=session.material(spec.train, (task,), spec.name),
        tune=session.config.tune,
        key_parts=(seed, "control"),
        seed_at=lambda place: seed,
        features=lambda data: session.frozen_features(data, "control"),
    )
    probing = method.stages(number)[:2]  # train the probe, count how often it is chosen
    for _, _, trained in run_lesson(probing, session.model, learner, setup, observer_of=lambda *_: Unwatched()):
        learner = trained
    return method.probe_result(learner, number)
