"""Does a run notice what it has never learned? Tasks left out one by one, and pictures that belong to no task.

A locator's memory of a task does not depend on the other tasks, so leaving a task out is taking it for not learned: no
training is needed. Every input gets a margin, its score less the threshold of the task it would go to; below zero it is
called unknown. AUROC says how well margins part known from foreign inputs whatever the threshold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.real_images import photographs
from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.locators.calibrate import auroc
from hidecmoe_jax.locators.standard import LOWEST
from hidecmoe_jax.methods.base import FrozenFeatures
from hidecmoe_jax.methods.gates.anchors import AnchorGate, Memory
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.runs.finished import open_with_data
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.storage.files import write_json

OUTSIDERS = ("noise", "blank", "photographs")


def foreign_study(run: str | Path, *, count: int = 100) -> dict[str, Any]:
    """Writes `foreign.json` into the run folder and returns it.

    Args:
      count: pictures of every foreign kind, shown with questions of the run's own tasks.

    Returns:
      `known`: percent of every task's test items that are called unknown. `left_out`: for every task, AUROC and the
      percent called unknown when the run does not know it. `outsiders`: the same for noise, blank and foreign pictures.

    Raises:
      ConfigError: the run's gate has no thresholds, or there are fewer than two tasks.
    """
    finished = open_with_data(run)
    session, method = finished.session, finished.config.method
    learner = finished.learner(finished.ledger().archive())
    memory = method.gate_memory(learner)
    everyone = method.learned(learner) if "threshold_N" in memory else ()
    blind = [session.stream.tasks[task].name for task in everyone if memory["threshold_N"][task] <= LOWEST]
    if len(everyone) < 2 or blind:
        why = f"no threshold of {', '.join(blind)}" if blind else f"{len(everyone)} tasks have thresholds, it takes two"
        raise ConfigError(
            "this run cannot say what is foreign", where=str(run), why=why,
            remedy="learn two tasks with a locator as gate and method.gate.kept_apart above 0",
        )  # fmt: skip
    tasks = session.stream.tasks
    judge = margins_of(method.gate)

    def margins(records: tuple[Record, ...], label: str, known: Iterable[int]) -> np.ndarray:
        learned = jnp.isin(jnp.arange(len(memory["threshold_N"])), jnp.asarray(list(known)))
        return np.asarray(judge(memory, session.engine.inputs(records, label).frozen(), learned))

    def own(index: int, known: Iterable[int] = everyone) -> np.ndarray:
        return margins(session.test(tasks[index]), f"{tasks[index].name} {session.config.evaluate.split}", known)

    table = [own(index) for index in everyone]
    found: dict[str, Any] = {
        "known": {tasks[index].name: _below(line) for index, line in zip(everyone, table, strict=True)},
        "left_out": {},
        "outsiders": {},
    }
    for out in everyone:
        rest = [index for index in everyone if index != out]
        inside = np.concatenate([own(index, rest) for index in rest])
        found["left_out"][tasks[out].name] = _told(inside, own(out, rest))
    with tempfile.TemporaryDirectory() as aside:
        for kind in OUTSIDERS:
            records = outsiders(session, kind, Path(aside), count)
            found["outsiders"][kind] = _told(np.concatenate(table), margins(records, kind, everyone))
    write_json(finished.folder.study("foreign"), found)
    return found


def margins_of(gate: LocatorGate | AnchorGate) -> Callable[[Memory, FrozenFeatures, Array], Array]:
    """A program that says how far above the threshold of the task it would go to every sample is, [M].

    A gate that calls nothing unknown is taken as one that loses none of the records which were kept apart.
    """
    strict = gate if gate.foreign is not None else replace(gate, foreign=0.0)

    @jax.jit
    def margins(memory: Memory, seen: FrozenFeatures, learned_N: Array) -> Array:
        sure = strict.decide(memory, seen, learned_N).match
        return sure.score_B - sure.threshold_B

    return margins


def _below(margin: np.ndarray) -> float:
    return round(100.0 * float((margin < 0).mean()), 2)


def _told(known: np.ndarray, foreign: np.ndarray) -> dict[str, float]:
    return {"auroc": round(auroc(known, foreign), 4), "unknown": _below(foreign), "false_alarms": _below(known)}


def outsiders(session: Session, kind: str, folder: Path, count: int) -> tuple[Record, ...]:
    """Records with pictures that belong to no task, under the questions of the tasks in turn.

    `noise` is uniform, `blank` one colour, `photographs` are cuts of the two in `data/real_images.py`.
    """
    rng, size = np.random.default_rng(OUTSIDERS.index(kind)), session.model.config.image_size
    questions = [record.turns[0].question for task in session.stream.tasks for record in session.test(task)]
    chosen = rng.permutation(len(questions))
    records = []
    for number in range(count):
        path = folder / f"{kind}_{number}.png"
        Image.fromarray(_pixels(kind, rng, size)).save(path)
        question = questions[chosen[number % len(chosen)]]
        records.append(Record(f"{kind}-{number}", (str(path),), (Turn(question, ""),), kind))
    return tuple(records)


def _pixels(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    if kind == "noise":
        return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    if kind == "blank":
        return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (size, size, 3)).copy()
    photograph = photographs()[int(rng.integers(2))]
    side = int(rng.integers(120, min(photograph.shape[:2])))
    top, left = (int(rng.integers(0, edge - side + 1)) for edge in photograph.shape[:2])
    return photograph[top : top + side, left : left + side]
