"""The walk through the stages of one lesson: prepare, choose records, train or count or read features, finish.

Runs, studies and tests share it. It writes nothing: after every stage the caller gets the learner and saves what it
likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hidecmoe_jax.core.keys import key_for
from hidecmoe_jax.data.rewording import fitted_wordings
from hidecmoe_jax.methods.base import FrozenFeatures, Learner
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.train.optim import TrainConfig
from hidecmoe_jax.train.stage import StageData, StageObserver, count_usage, run_stage, tuned_for


@dataclass(frozen=True)
class LessonSetup:
    """What a lesson is trained with, beside its stages.

    Attributes:
      number: of the lesson, from 0.
      name: for messages.
      data: all records of the lesson.
      tune: optimiser settings; a stage may override some (`tuned_for`).
      key_parts: names that random keys are made of; the stage's kind is added.
      seed_at: seed of the order of records in the stage at a place; that of place 0 also draws subsets.
      features: features of records under the frozen base, as the method's gate reads them.
    """

    number: int
    name: str
    data: StageData
    tune: TrainConfig
    key_parts: tuple[int, *tuple[int | str, ...]]
    seed_at: Callable[[int], int]
    features: Callable[[StageData], FrozenFeatures]


def run_lesson(
    stages: Sequence[Stage],
    model: Model,
    learner: Learner,
    setup: LessonSetup,
    *,
    observer_of: Callable[[int, Stage, TrainConfig], StageObserver],
    first: int = 0,
    train: Callable[..., Learner] = run_stage,
) -> Iterator[tuple[int, Stage, Learner]]:
    """Yields place, stage and the learner after it, for every stage from place `first` on.

    Args:
      learner: before the stage at place `first`.
      observer_of: the observer of a training stage, from its place, the stage and its settings.
      train: replaces `run_stage`, for tests.

    Raises:
      NumericsError: as `run_stage`.
    """
    for place, stage in enumerate(stages):
        if place < first:
            continue
        # By kind and not by place, so that a stage draws the same whichever stages run before it.
        key = key_for(*setup.key_parts, stage.kind)
        learner = stage.prepare(model, learner, setup.number, key)
        rows = stage.subset(len(setup.data.encoded), setup.seed_at(0))
        data = setup.data.only(rows)
        result = None
        if stage.trains:
            tune = tuned_for(stage, setup.tune, len(data.encoded))
            learner = train(
                model, learner, stage, data, tune=tune, key=key, seed=setup.seed_at(place),
                observer=observer_of(place, stage, tune), task=setup.name,
            )  # fmt: skip
        elif stage.source == "usage":
            pooled = data.features.pooled(np.arange(len(data.encoded)))
            usage = count_usage(model, learner, stage, data, setup.tune.batch)
            result = FrozenFeatures(pooled, usage=usage)
        else:
            read = data
            if stage.wording != "as_given":
                read = replace(data, records=fitted_wordings(data.records, stage.wording))
            result = setup.features(read)
        learner = stage.finish(model, learner, setup.number, result, key)
        yield place, stage, learner
