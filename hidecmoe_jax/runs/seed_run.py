"""One seed of a run: learn what is not learned, evaluate what is not evaluated.

A lesson is learned from what the ledger holds of the earlier ones and from nothing else, so going on after a crash
and going on after a finished lesson are the same path. Nothing here knows a method; everything done to experts is
done by its hooks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.core.keys import key_for
from hidecmoe_jax.data.stream import Stream
from hidecmoe_jax.methods.learner import Learner, Serving, Stage
from hidecmoe_jax.runs.cells import Curve
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.progress import Progress
from hidecmoe_jax.runs.rows import evaluate_cell
from hidecmoe_jax.runs.setting import Setting, say
from hidecmoe_jax.runs.signals import Stop
from hidecmoe_jax.runs.watching import Watching
from hidecmoe_jax.train.optim import Tune
from hidecmoe_jax.train.stage import Material, run_stage

_observe = partial(jax.jit, static_argnames=("method", "stage"))(
    lambda method, learner, stage, task, pooled, valid: method.observe(learner, stage, task, pooled, valid)
)


@dataclass(frozen=True)
class Options:
    """How a run is started, as opposed to what it is.

    Attributes:
      full_matrix: every row is measured on every task.
      allow: config fields that may differ from those the run was started with.
      on_corrupt: what to do about a damaged checkpoint within a task, `refuse` or `previous`.
    """

    resume: bool = False
    overwrite: bool = False
    full_matrix: bool = False
    allow: tuple[str, ...] = ()
    on_corrupt: str = "refuse"


def lesson_name(stream: Stream, lesson: tuple[int, ...]) -> str:
    """Name of a commit: the task's, or `joint`."""
    return stream.tasks[lesson[0]].name if len(lesson) == 1 else "joint"


def tune_of(tune: Tune, stream: Stream, lesson: tuple[int, ...]) -> Tune:
    """The tuning of a lesson: a stream entry may set its own epochs and rate (the projector's keeps its ratio)."""
    if len(lesson) > 1:
        return tune
    task = stream.tasks[lesson[0]]
    ratio = task.rate / tune.rate if task.rate is not None and tune.rate else 1.0
    epochs = task.epochs or tune.epochs
    return replace(tune, epochs=epochs, rate=tune.rate * ratio, projector_rate=tune.projector_rate * ratio)


def capacity_for(wanted: int, lessons: int) -> int:
    """The smallest doubling of `wanted` that holds `lessons`; says so when it grows."""
    capacity = wanted
    while capacity < lessons:
        capacity *= 2
    if capacity > wanted:
        say(f"capacity grows from {wanted} to {capacity} experts; programs compile once more")
    return capacity


def variant_folder(folder: Path, name: str) -> Path:
    """Where a variant's answers and scores lie."""
    return folder / "variants" / name


@dataclass(frozen=True)
class SeedRun:
    """One seed of an opened setting in its folder (which its run has locked)."""

    setting: Setting
    folder: Path
    seed: int
    options: Options
    stop: Stop

    @property
    def ledger(self) -> Ledger:
        """Finished lessons."""
        return Ledger(self.folder)

    @property
    def lessons(self) -> tuple[tuple[int, ...], ...]:
        """Tasks that are learned together, in order."""
        return self.setting.config.method.lessons(len(self.setting.stream.tasks))

    def run(self) -> None:
        """Walks the stream."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ledger.clean()
        kept = [self.ledger.load(record.index)[0] for record in self.ledger.tasks()]
        self.evaluate(0, kept)
        for number, lesson in enumerate(self.lessons):
            if number >= len(kept):
                self.learn(number, lesson, kept)
                kept.append(self.ledger.load(number)[0])
                Progress(self.folder / "progress").clear()
            self.evaluate(number + 1, kept)
        if self.setting.config.evaluate.variants and self.seed == self.setting.config.seeds[0]:
            self.evaluate_variants(kept)

    def recall(self, kept: list) -> Learner:
        """The learner after the kept lessons."""
        capacity = capacity_for(self.setting.config.capacity, len(self.lessons))
        return self.setting.config.method.recall(self.setting.model, capacity, kept)

    def learn(self, number: int, lesson: tuple[int, ...], kept: list) -> None:
        """Trains one lesson and commits it.

        Raises:
          CheckpointError: a frozen leaf changed (TR5); nothing is committed.
        """
        setting, method = self.setting, self.setting.config.method
        name, start = lesson_name(setting.stream, lesson), time.monotonic()
        learner, tune = self.recall(kept), tune_of(setting.config.tune, setting.stream, lesson)
        material = setting.material(method.records(setting.stream, lesson), lesson, name)
        for place, stage in enumerate(method.stages()):
            key = key_for(self.seed, "lesson", number, stage.kind)
            learner = method.before(setting.model, learner, stage, number, key)
            if stage.trains:
                learner = self._trained(learner, stage, material, tune, name, at=(number, place), key=key)
            else:
                learner = self._observed(learner, stage, number, material)
            learner = method.after(setting.model, learner, stage, number)
        self._verify(learner, kept, name)
        facts = {
            "tasks": [setting.stream.tasks[task].name for task in lesson],
            "method": method.name,
            "seed": self.seed,
        }
        facts |= {"base": setting.base_digest, "samples": len(material.encoded), "epochs": tune.epochs}
        facts |= {"seconds": round(time.monotonic() - start, 3)}
        self.ledger.commit(number, name, method.keep(learner, number), meta=facts)
        say(f"learned {name}: {facts['samples']} records, {tune.epochs} epochs, {facts['seconds']:.1f} s")

    def _trained(
        self, learner: Learner, stage: Stage, material: Material, tune: Tune, name: str, *, at: tuple[int, int], key
    ) -> Learner:
        progress, curve = Progress(self.folder / "progress"), Curve(self.folder / "metrics.jsonl")
        watch = Watching(progress, curve, self.stop, tune, name, at, self.options.on_corrupt)
        # A training stage must not depend on how far earlier stages of the run came, only on seed, lesson and place.
        order = int(np.random.SeedSequence([self.seed, *at]).generate_state(1)[0])
        method, model = self.setting.config.method, self.setting.model
        return run_stage(
            method, model, learner, stage, material, tune=tune, key=key, seed=order, watch=watch, task=name
        )

    def _observed(self, learner: Learner, stage: Stage, number: int, material: Material) -> Learner:
        """One pass over the features of all records, in batches of one shape."""
        size, count = self.setting.config.base.feature_batch, len(material.encoded)
        for start in range(0, count, size):
            rows = np.arange(start, start + size, dtype=np.int32)
            rows = np.where(rows < count, rows, -1)
            pooled = material.features.pooled(rows)
            learner = _observe(self.setting.config.method, learner, stage, number, pooled, rows >= 0)
        return learner

    def _verify(self, learner: Learner, kept: list, name: str) -> None:
        """The base and earlier lessons' experts must have every byte they had (TR5)."""
        setting, method, changed = self.setting, self.setting.config.method, []
        if setting.config.verify_base and trees.digest(setting.model.params) != setting.base_digest:
            changed.append("the base model")
        for task, groups in enumerate(kept if method.isolates else ()):
            now = method.keep(learner, task)
            for group in ("experts", "memory"):
                if trees.digests(now[group]) != trees.digests(groups[group]):
                    changed.append(f"{group} of lesson {task}")
        if changed:
            raise CheckpointError(
                "what is frozen changed while a task was learned", where=f"task {name}: {', '.join(changed)}",
                why="the SHA-256 of its bytes is another one than before",
                remedy="nothing was committed; mend the method",
            )  # fmt: skip

    def wanted(self, row: int) -> tuple[int, ...]:
        """Tasks a row is measured on: those seen and the next one; all in row 0, in the last, and on request."""
        tasks = tuple(range(len(self.setting.stream.tasks)))
        if row == 0:
            return tasks if self.setting.config.evaluate.zero_shot else ()
        if self.options.full_matrix or row == len(self.lessons):
            return tasks
        seen = {task for lesson in self.lessons[:row] for task in lesson}
        return tuple(task for task in tasks if task in seen or task == max(seen) + 1)

    def evaluate(self, row: int, kept: list) -> None:
        """Measures the missing cells of a row; after the last lesson also with the task named.

        Raises:
          PreemptedError: after a signal, between two cells.
        """
        method = self.setting.config.method
        serving = method.serve(self.setting.model, self.recall(kept[:row]))
        reference = 0 < row == len(self.lessons) and serving.bank is not None and not method.needs_name
        for index in self.wanted(row):
            self._cell(serving, row, index, named=method.needs_name, reference=False)
            if reference and self.setting.config.evaluate.named:
                self._cell(serving, row, index, named=True, reference=True)

    def evaluate_variants(self, kept: list) -> None:
        """Measures the last row under every variant of the method, in folders of their own."""
        config, own = self.setting.config, self.setting.config.method
        for name, method in own.variants().items():
            if method == own or not kept:
                continue
            setting = replace(self.setting, config=replace(config, method=method))
            other = replace(self, setting=setting, folder=variant_folder(self.folder, name))
            serving = method.serve(setting.model, other.recall(kept))
            for index in range(len(setting.stream.tasks)):
                other._cell(serving, len(self.lessons), index, named=method.needs_name, reference=False)

    def _cell(self, serving: Serving, row: int, index: int, *, named: bool, reference: bool) -> None:
        task = self.setting.stream.tasks[index]
        evaluate_cell(
            self.setting, serving, self.folder, row, task,
            seed=self.seed, named=named, reference=reference, stop=self.stop,
        )  # fmt: skip
        if self.stop.requested:
            self.stop.leave(f"row {row}, task {task.name}")
