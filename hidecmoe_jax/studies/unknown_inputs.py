"""Unknown-input study: does a run's gate recognise inputs of tasks it has never learned?

Tasks are left out one by one, and pictures are shown that belong to no task. What a locator stores of a task does not
depend on the other tasks, so a task is left out by masking it: no training is needed. Every input gets a margin, the
score of its nearest task minus that task's threshold; a negative margin means unknown. AUROC measures how well margins
separate known from unknown inputs, whatever the threshold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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
from hidecmoe_jax.runs.writing import writes_run
from hidecmoe_jax.storage.files import write_json

OUTSIDERS = ("noise", "blank", "photographs")

MarginFunction = Callable[[Memory, FrozenFeatures, Array], Array]


@writes_run
def foreign_study(run: str | Path, *, count: int = 100) -> dict[str, Any]:
    """Writes `foreign.json` into the run folder and returns it.

    Args:
      count: pictures of every kind that belongs to no task, shown with questions of the run's own tasks.

    Returns:
      `known`: percent of every task's test items that are called unknown. `left_out`: for every task, AUROC and the
      percent called unknown when the task is left out. `outsiders`: the same for noise, blank and other pictures.

    Raises:
      ConfigError: the run's gate has no thresholds, or there are fewer than two tasks.
    """
    finished = open_with_data(run)
    method = finished.config.method
    archive = finished.ledger().archive()
    learner = finished.learner(archive)
    memory = method.gate_memory(learner)
    learned = ()
    if "threshold_N" in memory:
        learned = method.learned(learner)
    _require_thresholds(run, finished.tasks, learned, memory)
    margins = _Margins(finished.session, memory, margins_of(method.gate))
    known = [margins.of_task(task, learned) for task in learned]
    called_unknown = {}
    for task, margin in zip(learned, known, strict=True):
        name = finished.tasks[task]
        called_unknown[name] = _percent_unknown(margin)
    left_out = {}
    for task in learned:
        name = finished.tasks[task]
        left_out[name] = _detection_without(task, learned, margins)
    of_outsiders = {}
    # The pictures are read inside the block, where their features are computed.
    with tempfile.TemporaryDirectory() as folder:
        for kind in OUTSIDERS:
            records = outsiders(finished.session, kind, Path(folder), count)
            inside = np.concatenate(known)
            outside = margins.of(records, kind, learned)
            of_outsiders[kind] = _detection(inside, outside)
    result: dict[str, Any] = {"known": called_unknown, "left_out": left_out, "outsiders": of_outsiders}
    write_json(finished.folder.study("foreign"), result)
    return result


def _require_thresholds(run: str | Path, names: Sequence[str], learned: tuple[int, ...], memory: Memory) -> None:
    """Refuses a run with fewer than two tasks that have thresholds."""
    without = []
    for task in learned:
        if memory["threshold_N"][task] <= LOWEST:
            without.append(names[task])
    if len(learned) >= 2 and not without:
        return
    why = f"{len(learned)} tasks have thresholds, two are needed"
    if without:
        why = f"no threshold of {', '.join(without)}"
    raise ConfigError(
        "this run cannot detect unknown inputs", where=str(run), why=why,
        remedy="learn two tasks with a locator as gate and method.gate.kept_apart above 0",
    )  # fmt: skip


@dataclass(frozen=True)
class _Margins:
    """Margins of records under a run's gate, with only some of its tasks taken for learned."""

    session: Session
    memory: Memory
    function: MarginFunction

    def of(self, records: tuple[Record, ...], label: str, tasks: Iterable[int]) -> np.ndarray:
        """Margins [M] of records; `label` names them in the feature cache."""
        slots = jnp.arange(len(self.memory["threshold_N"]))
        learned = jnp.asarray(list(tasks))
        learned_N = jnp.isin(slots, learned)
        inputs = self.session.engine.inputs(records, label)
        margin_M = self.function(self.memory, inputs.frozen(), learned_N)
        return np.asarray(margin_M)

    def of_task(self, index: int, tasks: Iterable[int]) -> np.ndarray:
        """Margins [M] of a task's test records."""
        task = self.session.stream.tasks[index]
        records = self.session.test(task)
        label = self.session.label(task)
        return self.of(records, label, tasks)


def _detection_without(task: int, learned: Sequence[int], margins: _Margins) -> dict[str, float]:
    """How well inputs of a task are detected as unknown when the gate has all other learned tasks."""
    others = [other for other in learned if other != task]
    inside = np.concatenate([margins.of_task(other, others) for other in others])
    outside = margins.of_task(task, others)
    return _detection(inside, outside)


def margins_of(gate: LocatorGate | AnchorGate) -> MarginFunction:
    """Returns a jitted function: score minus threshold of each sample's nearest task, [M]; negative means unknown.

    A gate that never answers "unknown" is taken with the threshold that loses none of the held-out records.
    """
    # A gate without `foreign` computes no thresholds when it decides.
    strict = gate
    if gate.foreign is None:
        strict = replace(gate, foreign=0.0)

    @jax.jit
    def margins(memory: Memory, features: FrozenFeatures, learned_N: Array) -> Array:
        decision = strict.decide(memory, features, learned_N)
        match = decision.match
        return match.score_B - match.threshold_B

    return margins


def _percent_unknown(margin_M: np.ndarray) -> float:
    share = float((margin_M < 0).mean())
    return round(100.0 * share, 2)


def _detection(known_M: np.ndarray, unknown_M: np.ndarray) -> dict[str, float]:
    """How well the margins of known and unknown inputs are separated."""
    return {
        "auroc": round(auroc(known_M, unknown_M), 4),
        "unknown": _percent_unknown(unknown_M),
        "false_alarms": _percent_unknown(known_M),
    }


def outsiders(session: Session, kind: str, folder: Path, count: int) -> tuple[Record, ...]:
    """Records with pictures that belong to no task, written to `folder`, under questions of the run's tasks.

    Args:
      kind: `noise` is uniform, `blank` one colour, `photographs` are crops of the two in `data/real_images.py`.
    """
    # A fixed seed for each kind: every run is shown the same pictures.
    rng = np.random.default_rng(OUTSIDERS.index(kind))
    size = session.model.config.image_size
    questions = []
    for task in session.stream.tasks:
        for record in session.test(task):
            questions.append(record.turns[0].question)
    # The permutation is drawn before any picture; the order of draws decides the pictures of a seed.
    chosen = rng.permutation(len(questions))
    records = []
    for number in range(count):
        path = folder / f"{kind}_{number}.png"
        pixels = _pixels(kind, rng, size)
        Image.fromarray(pixels).save(path)
        # There may be more pictures than questions.
        index = chosen[number % len(chosen)]
        turn = Turn(questions[index], "")
        name = f"{kind}-{number}"
        record = Record(name, (str(path),), (turn,), kind)
        records.append(record)
    return tuple(records)


def _pixels(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A picture as uint8 [height, width, 3]; photographs are not scaled to `size`."""
    if kind == "noise":
        return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    if kind == "blank":
        colour = rng.integers(0, 256, 3, dtype=np.uint8)
        return np.broadcast_to(colour, (size, size, 3)).copy()
    index = int(rng.integers(2))
    photograph = photographs()[index]
    height, width = photograph.shape[:2]
    longest = min(height, width)
    side = int(rng.integers(120, longest))
    tops = height - side + 1
    lefts = width - side + 1
    top = int(rng.integers(0, tops))
    left = int(rng.integers(0, lefts))
    bottom = top + side
    right = left + side
    return photograph[top:bottom, left:right]
