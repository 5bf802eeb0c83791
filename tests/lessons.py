"""Learns a tiny stream through a method's hooks alone: no folders, no ledger, every learner on the way kept."""

from dataclasses import dataclass, field
from typing import Any

import jax

from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.train.lesson import LessonSetup, run_lesson
from hidecmoe_jax.train.stage import run_stage
from hidecmoe_jax.train.step import take_step


@dataclass
class Silent:
    """A `StageObserver` that keeps every step's facts and saves nothing."""

    facts: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def resume(self, stage):
        return None

    def saves(self, step, steps):
        return True

    def step(self, stage, step, steps, facts, state):
        self.facts.append(facts)

    def warn(self, text):
        self.warnings.append(text)


@dataclass(frozen=True)
class Taught:
    """A method after a stream: learners (entry 0 before the first lesson), what each lesson trained, archives, and how
    many programs each lesson compiled; `curve` are the facts of every training step, as lines of a run's metrics."""

    method: Method
    session: Session
    learners: list[Learner]
    trained: list[Learner]
    kept: list[dict]
    compiled: list[int]
    curve: list[dict[str, Any]]


def teach(session: Session, *, seed: int = 0, like: Taught | None = None) -> Taught:
    """Learns every lesson of the setting's stream, carrying the learner on from task to task.

    Args:
      like: takes over what this method has trained, for methods that differ only in what they do with it.
    """
    method, model = session.config.method, session.model
    learner = method.init(model, session.config.capacity)
    learners, trained, kept, compiled, curve = [learner], [], [], [], []
    for number, lesson in enumerate(method.lessons(len(session.stream.tasks))):
        watches: dict[int, Silent] = {}
        programs = take_step._cache_size()
        setup = LessonSetup(
            number=number,
            name="a lesson",
            data=session.material(method.records(session.stream, lesson), method.sources(lesson), str(lesson)),
            tune=session.config.tune,
            key_parts=(seed, "lesson", number),
            seed_at=lambda place: seed,
            features=lambda data, lesson=lesson: session.frozen_features(data, f"{lesson} train"),
        )

        def train(model, learner, stage, data, *, number=number, **settings) -> Learner:
            if like is None:
                learner = run_stage(model, learner, stage, data, **settings)
            else:
                done = like.trained[number]
                learner = learner.replace(live=done.live, tuned=done.tuned, routers=done.routers)
            trained.append(learner)
            return learner

        def observer_of(place, stage, tune, watches=watches) -> Silent:
            watches[place] = Silent()
            return watches[place]

        stages = method.stages(number)
        for place, stage, after in run_lesson(stages, model, learner, setup, observer_of=observer_of, train=train):
            learner = after
            for step, facts in enumerate(watches[place].facts if place in watches else ()):
                curve.append({"at": [number, place, step], "stage": stage.kind} | facts)
        learners.append(learner)
        kept.append(jax.device_get(method.to_archive(learner, number)))
        compiled.append(take_step._cache_size() - programs)
    return Taught(method, session, learners, trained, kept, compiled, curve)
