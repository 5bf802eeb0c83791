"""A method's own code run on shapes: what trains in every stage, what answers, and their compiled programs' inputs.

Nothing here knows a method. The hooks that learn a stream are called as `train/lesson.py` calls them, on a base of
which only the shapes are known, so a new method is planned as soon as it can learn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.abstract import call_on_shapes
from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.methods.base import FrozenFeatures, Learner, Method, Serving
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Batch, Model, Prompt
from hidecmoe_jax.models.quantised import template_of
from hidecmoe_jax.train.optim import TrainConfig
from hidecmoe_jax.train.step import State, begin

Shape = jax.ShapeDtypeStruct
GROUPS = ("experts", "routers", "shared")


@dataclass(frozen=True)
class TrainingShapes:
    """Inputs of one training stage's program.

    Attributes:
      lesson, stage: the lesson and its stage.
      state: what changes in a step.
      context: the learner as the loss reads it.
      resident: the whole learner, which stays in memory meanwhile.
    """

    lesson: int
    stage: Stage
    state: State
    context: Learner
    resident: Learner


@dataclass(frozen=True)
class Walk:
    """A stream learned on shapes.

    Attributes:
      training: the training stages of all lessons, in order.
      learner: after the last lesson; `serving`, what answers then.
    """

    training: tuple[TrainingShapes, ...]
    learner: Learner
    serving: Serving


def walk_stream(
    method: Method, base: LlavaConfig, tune: TrainConfig, *, capacity: int, lessons: int, bits: int = 16
) -> Walk:
    """Learns `lessons` lessons on shapes.

    Args:
      capacity: task slots, as `RunConfig.slots_for` gives them.
      bits: 8 for a base in int8.

    Raises:
      ConfigError: the method does not fit the base, as in a run.
    """
    params = template_of(base, bits).params
    batch = batch_shapes(base, tokens=2 * base.patches, answers=2, batch=1)

    def learn(params: dict, batch: Batch) -> tuple[list[TrainingShapes], Learner, Serving]:
        model = Model(params, base)
        learner = method.init(model, capacity)
        training = []
        for lesson in range(lessons):
            for stage in method.stages(lesson):
                learner = _stage(model, learner, stage, lesson, batch, tune, training)
        return [_leaves(shapes) for shapes in training], learner, method.serve(model, learner)

    # Stages are no arrays: they are put back beside the arrays that come out.
    stages = [(lesson, stage) for lesson in range(lessons) for stage in method.stages(lesson) if stage.trains]
    arrays, learner, serving = call_on_shapes(learn, params, batch)
    training = [TrainingShapes(*place, *leaves) for place, leaves in zip(stages, arrays, strict=True)]
    return Walk(tuple(training), learner, serving)


def _leaves(shapes: TrainingShapes) -> tuple[State, Learner, Learner]:
    return shapes.state, shapes.context, shapes.resident


def _stage(
    model: Model, learner: Learner, stage: Stage, lesson: int, batch: Batch, tune: TrainConfig, training: list
) -> Learner:
    """The learner after a stage, as `run_lesson` has it; a training stage is added to `training`."""
    key = jax.random.key(0)
    learner = stage.prepare(model, learner, lesson, key)
    result = None
    if stage.trains:
        shared = {path: leaf for path, leaf in learner.shared.items() if path not in learner.tuned}
        context = learner.replace(shared=shared)
        if not stage.uses_past:
            context = context.replace(past={}, memory=None)
        training.append(TrainingShapes(lesson, stage, begin(learner, tune), context, learner))
    elif stage.source == "usage":
        counts = stage.usage(model, learner, batch)
        # Which layers grow does not change a shape; with counts of 0 the decision is a valid one.
        result = FrozenFeatures(None, usage=jax.tree.map(_no_count, counts))
    else:
        # Fitting a gate changes the numbers in its memory and no shape.
        return learner
    return stage.finish(model, learner, lesson, result, key)


def _no_count(leaf: Any) -> np.ndarray:
    dtype = np.int64 if leaf.dtype == np.int32 else np.float64
    return np.zeros(leaf.shape, dtype)


def batch_shapes(
    base: LlavaConfig, *, tokens: int, answers: int, batch: int, pictures: int = 1, accumulate: int | None = None
) -> Batch:
    """A batch of training records; with `accumulate`, so many of them on a leading axis."""
    lead = (batch,) if accumulate is None else (accumulate, batch)

    def ids(*shape: int) -> Shape:
        return Shape((*lead, *shape), jnp.int32)

    def flags(*shape: int) -> Shape:
        return Shape((*lead, *shape), jnp.bool_)

    prompt = Prompt(ids(tokens), flags(tokens), _patches(base, lead, pictures))
    return Batch(prompt, ids(answers), ids(answers), flags(answers))


def _patches(base: LlavaConfig, lead: tuple[int, ...], pictures: int) -> Shape | None:
    if pictures == 0:
        return None
    return Shape((*lead, pictures, base.patches, base.patch_width), jnp.dtype(base.dtype))


def prompt_shapes(base: LlavaConfig, *, tokens: int, batch: int, pictures: int = 1) -> Prompt:
    """The prompts of a batch of questions."""
    lead = (batch, tokens)
    return Prompt(Shape(lead, jnp.int32), Shape(lead, jnp.bool_), _patches(base, (batch,), pictures))


def frozen_shapes(method: Method, base: LlavaConfig, batch: int) -> FrozenFeatures:
    """Features of a batch of questions, as the method's gate reads them."""
    image_width, text_width = base.pooled_widths
    is_there = Shape((batch,), jnp.bool_)
    pooled = Pooled(Shape((batch, image_width), jnp.float32), is_there,
                    Shape((batch, text_width), jnp.float32), is_there)  # fmt: skip
    state = None
    reading = method.traits.reads
    if reading is not None:
        width = reading.width(base.width)
        state = Shape((batch, width), jnp.float32)
    return FrozenFeatures(pooled, state)


def rate_shapes() -> dict[str, Shape]:
    """Learning rates of a step, by group of leaves."""
    return dict.fromkeys(GROUPS, Shape((), jnp.float32))


def key_shape() -> Shape:
    """A random key."""
    return jax.eval_shape(lambda: jax.random.key(0))


def fixed_settings(tune: TrainConfig) -> TrainConfig:
    """The settings with those that no program depends on set to constants, as the training loop sets them."""
    return replace(tune, epochs=1, rate=0.0, projector_rate=0.0, save_every=1)
