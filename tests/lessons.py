"""Learns a tiny stream through a method's hooks alone: no folders, no ledger, every learner on the way kept."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core.keys import key_for
from hidecmoe_jax.methods.learner import Learner, Method
from hidecmoe_jax.runs.setting import Setting
from hidecmoe_jax.train.stage import run_stage
from hidecmoe_jax.train.step import take_step


@dataclass
class Silent:
    """A `Watch` that keeps every step's facts and saves nothing."""

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
    many programs each lesson compiled."""

    method: Method
    setting: Setting
    learners: list[Learner]
    trained: list[Learner]
    kept: list[dict]
    compiled: list[int]


def teach(setting: Setting, *, seed: int = 0, like: Taught | None = None) -> Taught:
    """Learns every lesson of the setting's stream, carrying the learner on from task to task.

    Args:
      like: takes over what this method has trained, for methods that differ only in what they do with it.
    """
    method, model = setting.config.method, setting.model
    learner = method.birth(model, setting.config.capacity)
    learners, trained, kept, compiled = [learner], [], [], []
    for number, lesson in enumerate(method.lessons(len(setting.stream.tasks))):
        material, before = (
            setting.material(method.records(setting.stream, lesson), lesson, str(lesson)),
            take_step._cache_size(),
        )
        for stage in method.stages():
            key = key_for(seed, "lesson", number, stage.kind)
            learner = method.before(model, learner, stage, number, key)
            if stage.trains and like is not None:
                learner = learner.replace(live=like.trained[number].live, tuned=like.trained[number].tuned)
            elif stage.trains:
                learner = run_stage(
                    method, model, learner, stage, material,
                    tune=setting.config.tune, key=key, seed=seed, watch=Silent(), task=str(lesson),
                )  # fmt: skip
            if stage.trains:
                trained.append(learner)
            else:
                rows = np.arange(len(material.encoded), dtype=np.int32)
                learner = method.observe(learner, stage, number, material.features.pooled(rows), rows >= 0)
            learner = method.after(model, learner, stage, number)
        learners.append(learner)
        kept.append(jax.device_get(method.keep(learner, number)))
        compiled.append(take_step._cache_size() - before)
    return Taught(method, setting, learners, trained, kept, compiled)
