"""One seed of a run: learn the lessons that are missing in the ledger, measure the rows that are missing.

A lesson starts from what the ledger holds of the earlier ones and from nothing else, so resuming after a crash and
continuing after a finished lesson are one path. Everything that happens to experts is done by hooks of the method.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.checksum import checksums
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.data.loader import Plan
from hidecmoe_jax.data.rewording import common_line
from hidecmoe_jax.data.stream import Stream
from hidecmoe_jax.locators.calibrate import carried
from hidecmoe_jax.methods.base import Learner
from hidecmoe_jax.methods.gates.unknown import threshold_records
from hidecmoe_jax.runs.dead_experts import cut_sentence, experts_of, sentence
from hidecmoe_jax.runs.edits import read
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.progress import clear_checkpoints, stage_checkpoints, step_checkpoints
from hidecmoe_jax.runs.rows import Rows
from hidecmoe_jax.runs.scores import Cells, Curve
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.runs.status import MINUTES, say
from hidecmoe_jax.runs.trackers import require_trackers, trackers_of
from hidecmoe_jax.runs.watching import StageMonitor
from hidecmoe_jax.runs.worded import write_wordings
from hidecmoe_jax.storage.signals import Stop
from hidecmoe_jax.train.lesson import LessonSetup, run_lesson
from hidecmoe_jax.train.optim import TrainConfig
from hidecmoe_jax.train.stage import tuned_for

JOINT = "joint"


@dataclass(frozen=True)
class Options:
    """How a run is started, as opposed to what it is.

    Attributes:
      full_matrix: every row is measured on every task.
      allow: config fields that may differ from those the run was started with.
      on_corrupt: what to do about a damaged checkpoint within a task, `refuse` or `previous`.
      status_minutes: between two lines about the progress, where standard error is no terminal; 0 for none.
      track: trackers that get the training curve besides `metrics.jsonl`.
    """

    resume: bool = False
    overwrite: bool = False
    full_matrix: bool = False
    allow: tuple[str, ...] = ()
    on_corrupt: str = "refuse"
    status_minutes: float = MINUTES
    track: tuple[str, ...] = ()

    def __post_init__(self):
        require_trackers(self.track)
        if not 0 <= self.status_minutes < math.inf:
            raise ConfigError(
                "minutes between two lines cannot be negative", where="--status-minutes",
                why=f"got {self.status_minutes:g}", remedy="give a number above 0, or 0 for no lines",
            )  # fmt: skip


def lesson_name(tasks: Sequence[str], lesson: tuple[int, ...]) -> str:
    """Name of a commit of a run with these tasks: the task's, or `joint`."""
    if len(lesson) != 1:
        return JOINT
    return tasks[lesson[0]]


def data_of(stream: Stream, lesson: tuple[int, ...]) -> list[list[str]]:
    """Names and fingerprints of the tasks up to a lesson; checkpoints of the lesson are valid for these alone."""
    last = max(lesson)
    return [[task.name, task.fingerprint] for task in stream.tasks[: last + 1]]


def tune_of(tune: TrainConfig, stream: Stream, lesson: tuple[int, ...]) -> TrainConfig:
    """The tuning of a lesson: a stream entry may set its own epochs and rate (the projector's keeps its ratio)."""
    if len(lesson) > 1:
        return tune
    task = stream.tasks[lesson[0]]
    ratio = 1.0
    if task.rate is not None and tune.rate:
        ratio = task.rate / tune.rate
    epochs = task.epochs or tune.epochs
    rate = tune.rate * ratio
    projector_rate = tune.projector_rate * ratio
    return replace(tune, epochs=epochs, rate=rate, projector_rate=projector_rate)


@dataclass(frozen=True)
class SeedRun:
    """One seed of an opened run; its folder is locked by the run."""

    session: Session
    folder: SeedFolder
    seed: int
    options: Options
    stop: Stop

    @functools.cached_property
    def curve(self) -> Curve:
        """The training curve, with its trackers."""
        return Curve(self.folder.metrics, trackers_of(self.options.track, self.folder))

    @property
    def ledger(self) -> Ledger:
        """Finished lessons."""
        return Ledger(self.folder.path)

    @property
    def lessons(self) -> tuple[tuple[int, ...], ...]:
        """Tasks that are learned together, in order."""
        return self.session.lessons

    def run(self) -> None:
        """Walks the stream."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        config = self.session.config
        tasks = len(self.session.stream.tasks)
        slots = config.slots_for(tasks)
        if slots > config.capacity:
            say(f"capacity grows from {config.capacity} to {slots} experts; programs compile once more")
        self.ledger.clean()
        archive = self.ledger.archive()
        self.curve.begin()
        self.session.status.place = self._place("before the first task")
        self.rows.evaluate(0, archive)
        for number, lesson in enumerate(self.lessons):
            if number >= len(archive):
                self.learn(number, lesson, archive)
                # Read back from disk, so that a run in one go and a resumed one go on from the same bytes.
                groups, _ = self.ledger.load(number)
                archive.append(groups)
                clear_checkpoints(self.folder)
            self.rows.evaluate(number + 1, archive)
        self._finish_trackers()
        is_first_seed = self.seed == config.seeds[0]
        # The report shows the variants of the first seed alone.
        if config.evaluate.variants and is_first_seed:
            self.rows.evaluate_variants(archive)
        if config.evaluate.wording:
            write_wordings(self.session, self.folder, archive, self.seed)

    def _finish_trackers(self) -> None:
        """Gives the scores of all rows to the trackers."""
        scores = {}
        for row, cells in Cells(self.folder.cells).read().items():
            measured = {task: cell.get("score") for task, cell in cells.items()}
            scores[row] = {task: score for task, score in measured.items() if score is not None}
        for tracker in self.curve.trackers:
            tracker.finish(scores)

    def _place(self, text: str) -> str:
        """Where the run is, for the user; seeds are counted where there are several."""
        seeds = self.session.config.seeds
        if len(seeds) == 1:
            return text
        return f"seed {seeds.index(self.seed) + 1} of {len(seeds)}, {text}"

    def open_work(self) -> tuple[int, int]:
        """Optimiser steps and questions that are left to this seed, without work that an interrupted lesson saves."""
        learned = 0 if self.options.overwrite else len(self.ledger.tasks())
        steps = 0
        for number in range(learned, len(self.lessons)):
            steps += sum(self._stage_steps(number))
        # An overwritten run begins without cells.
        cells = {} if self.options.overwrite else Cells(self.folder.cells).read()
        questions = 0
        for row in range(len(self.lessons) + 1):
            questions += self.rows.open_questions(row, cells.get(row, {}))
        return steps, questions

    def _stage_steps(self, number: int) -> list[int]:
        """Optimiser steps of every stage of a lesson; 0 for those that do not train."""
        session = self.session
        method = session.config.method
        lesson = self.lessons[number]
        records = len(method.records(session.stream, lesson))
        lesson_tune = tune_of(session.config.tune, session.stream, lesson)
        steps = []
        for stage in method.stages(number):
            if not stage.trains:
                steps.append(0)
                continue
            rows = stage.subset(records, self._order(number, 0))
            count = records if rows is None else len(rows)
            tune = tuned_for(stage, lesson_tune, count)
            plan = Plan(count, tune.batch * tune.accumulate, tune.epochs, 0)
            steps.append(plan.steps)
        return steps

    @property
    def rows(self) -> Rows:
        """Measures rows of this seed."""
        return Rows(self.session, self.folder, self.seed, self.stop, self.options.full_matrix)

    def learn(self, number: int, lesson: tuple[int, ...], kept: list) -> None:
        """Trains one lesson and commits it.

        Raises:
          CheckpointError: a frozen leaf changed; nothing is committed.
        """
        session = self.session
        method = session.config.method
        tasks = session.stream.tasks
        name = lesson_name([task.name for task in tasks], lesson)
        start = time.monotonic()
        status = session.status
        status.place = self._place(f"task {number + 1} of {len(self.lessons)} {name}")
        learner = self.rows.learner_after(kept)
        held = kept
        if session.config.verify_base:
            # Before anything is learned; afterwards they are compared.
            _ = session.base_checksums
        # An edit changes what was archived: the bytes to keep are then those of the edited learner.
        if read(self.folder.run.path):
            held = [method.to_archive(learner, task) for task in range(len(kept))]
        setup = self._setup(number, lesson, name)
        data = data_of(session.stream, lesson)
        stages = method.stages(number)
        learner, done, took = self._entered(learner, number, name, data)
        steps = self._stage_steps(number)
        status.lesson_left = sum(steps)
        # What an earlier process has finished.
        status.skip_steps(sum(steps[:done]))
        walk = run_lesson(
            stages, session.model, learner, setup, first=done,
            observer_of=lambda place, stage, tune: self._monitor(setup, data, place, tune),
        )  # fmt: skip
        since = time.monotonic()
        for place, stage, trained in walk:
            learner = jax.block_until_ready(trained)
            took[stage.kind] = round(time.monotonic() - since, 3)
            later_stages = stages[place + 1 :]
            # After the last training stage a lesson is nearly over: what is saved next is the commit.
            if any(later.trains for later in later_stages):
                about = {"lesson": number, "data": data, "stages": took}
                stage_checkpoints(self.folder).save(place, trees.flatten(learner), meta=about)
            since = time.monotonic()
        self._verify(learner, held, name)
        curve = self.curve.read()
        facts = self._facts(lesson, setup) | {
            "seconds": round(time.monotonic() - start, 3),
            "stages": took,
            "experts": experts_of(method, learner, number, curve),
        }
        self.ledger.commit(number, name, method.to_archive(learner, number), meta=facts)
        self._say_learned(name, facts)

    def _facts(self, lesson: tuple[int, ...], setup: LessonSetup) -> dict[str, Any]:
        """What the ledger says of a lesson, but for how it went."""
        session = self.session
        tasks = [session.stream.tasks[task] for task in lesson]
        facts: dict[str, Any] = {
            "tasks": [task.name for task in tasks],
            "method": session.config.method.name,
            "seed": self.seed,
            "base": session.base_digest,
            "samples": len(setup.data.encoded),
            "epochs": setup.tune.epochs,
        }
        # Left out where none was cut, as in archives of older versions.
        cut = setup.data.features.truncated
        method = session.config.method
        if cut and method.gated and method.traits.reads is None:
            facts["routing_texts_cut"] = cut
        lines = {task.name: common_line(task.train) for task in tasks if task.train}
        # Left out where no task of the lesson has one, as in archives of older versions.
        if any(lines.values()):
            facts["lines"] = {task: line for task, line in lines.items() if line is not None}
        return facts

    def _say_learned(self, name: str, facts: dict[str, Any]) -> None:
        """Prints how a lesson went, what its threshold of unknown inputs can promise, and experts without use."""
        method = self.session.config.method
        records = facts["samples"]
        say(f"trained on {name}: {records} records, {facts['epochs']} epochs, {facts['seconds']:.1f} s")
        if method.gated and method.gate.foreign is not None:
            held_out = threshold_records(method.gate, records)
            if held_out:
                say(f"unknown inputs of {name}: {carried(held_out, method.gate.foreign)}")
        if "routing_texts_cut" in facts:
            say(f"note: {name}: {cut_sentence(facts)}, {self.session.model.config.text_context} tokens")
        idle = sentence(facts["experts"])
        if idle:
            say(f"warning: {name} has {idle}")

    def _setup(self, number: int, lesson: tuple[int, ...], name: str) -> LessonSetup:
        """What a lesson is trained with."""
        session = self.session
        method = session.config.method
        records = method.records(session.stream, lesson)
        return LessonSetup(
            number=number,
            name=name,
            data=session.material(records, method.sources(lesson), name),
            tune=tune_of(session.config.tune, session.stream, lesson),
            key_parts=(self.seed, "lesson", number),
            seed_at=lambda place: self._order(number, place),
            features=lambda data: session.frozen_features(data, f"{name} train"),
        )

    def _monitor(self, setup: LessonSetup, data: list[list[str]], place: int, tune: TrainConfig) -> StageMonitor:
        """The observer of the training stage at a place of a lesson."""
        progress = step_checkpoints(self.folder)
        at = (setup.number, place)
        status = self.session.status
        return StageMonitor(
            progress, self.curve, self.stop, tune, setup.name, at, data, self.options.on_corrupt, status
        )

    def _order(self, number: int, place: int) -> int:
        """Seed of the draws of a stage: a function of the run's seed, the lesson and the place alone."""
        sequence = np.random.SeedSequence([self.seed, number, place])
        return int(sequence.generate_state(1)[0])

    def _entered(
        self, learner: Learner, number: int, name: str, data: list[list[str]]
    ) -> tuple[Learner, int, dict[str, float]]:
        """The learner after the finished stages of a lesson, their number, and the seconds that each one took."""
        checkpoints = stage_checkpoints(self.folder)
        checkpoint = checkpoints.latest(on_corrupt=self.options.on_corrupt)
        if checkpoint is None:
            return learner, 0, {}
        place, flat, facts = checkpoint
        if facts["lesson"] != number:
            return learner, 0, {}
        if facts.get("data") != data:
            say(f"warning: {name}: the checkpoint between its stages is of other data; left out")
            return learner, 0, {}
        restored = trees.restore_into(learner, flat)
        learner = jax.device_put(restored)
        took = dict(facts.get("stages", {}))
        return learner, place + 1, took

    def _verify(self, learner: Learner, held: list, name: str) -> None:
        """Refuses a learner in which the base or an earlier lesson's experts lack a byte that `held` has."""
        session = self.session
        method = session.config.method
        changed = []
        if session.config.verify_base:
            now = checksums(session.model.params)
            if not np.array_equal(now, session.base_checksums):
                changed.append("the base model")
        # A method that trains its old experts further changes them by design.
        frozen = held if method.traits.keeps_old_experts else ()
        for task, groups in enumerate(frozen):
            now = method.to_archive(learner, task)
            for group in ("experts", "memory"):
                digests = trees.digests(now[group])
                if digests != trees.digests(groups[group]):
                    changed.append(f"{group} of lesson {task}")
        if changed:
            raise CheckpointError(
                "what is frozen changed while a task was learned", where=f"task {name}: {', '.join(changed)}",
                why="a checksum of its bytes is another one than before",
                remedy="nothing was committed; mend the method",
            )  # fmt: skip
