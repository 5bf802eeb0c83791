"""Learns a tiny stream through a method's hooks alone: no folders, no ledger, every learner on the way kept."""

from dataclasses import dataclass, field
from typing import Any

import jax

from hidecmoe_jax.core.keys import key_for
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.train.stage import run_stage, tuned_for
from hidecmoe_jax.train.step import take_step


@dataclass
class Silent:
    """A `StageObserver` that keeps every step's facts and saves nothing."""

    facts: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def resume(self, stage):
        return None

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
        material = session.material(method.records(session.stream, lesson), lesson, str(lesson))
        before = take_step._cache_size()
        for place, stage in enumerate(method.stages(number)):
            key = key_for(seed, "lesson", number, stage.kind)
            learner = method.before(model, learner, stage, number, key)
            part = material.only(method.part(stage, len(material.encoded), seed))
            if stage.trains:
                watch = Silent()
                learner = _trained(session, learner, stage, part, key, seed, like and like.trained[number], watch)
                trained.append(learner)
                at = [{"at": [number, place, step], "stage": stage.kind} for step in range(len(watch.facts))]
                curve += [one | facts for one, facts in zip(at, watch.facts, strict=True)]
            else:
                seen = session.seen(learner, stage, part, f"{lesson} train")
                learner = method.fit(model, learner, stage, number, seen, key)
            learner = method.after(model, learner, stage, number)
        learners.append(learner)
        kept.append(jax.device_get(method.to_archive(learner, number)))
        compiled.append(take_step._cache_size() - before)
    return Taught(method, session, learners, trained, kept, compiled, curve)


def _trained(session: Session, learner: Learner, stage, part, key, seed: int, like: Learner | None, watch) -> Learner:
    if like is not None:
        return learner.replace(live=like.live, tuned=like.tuned)
    tune = tuned_for(stage, session.config.tune, len(part.encoded))
    return run_stage(
        session.config.method, session.model, learner, stage, part,
        tune=tune, key=key, seed=seed, watch=watch, task="a lesson",
    )  # fmt: skip
