"""The programs of a run, traced on shapes: bytes that each of them needs at its peak, and operations.

They are those that a run compiles: `take_step` for every training stage, the engine's program that writes answers, and
the vision tower. Tracing needs no weights and no device, and takes seconds whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from hidecmoe_jax.core.abstract import bytes_of
from hidecmoe_jax.core.int8 import spread_axes
from hidecmoe_jax.core.layout import Layout, Recompute, layout_of, place, replicate, split_batch
from hidecmoe_jax.core.sharding import make_mesh
from hidecmoe_jax.evaluate.engine import _decide, _write
from hidecmoe_jax.methods.base import Learner, Method, Serving, with_trainable
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.generate import Sampling
from hidecmoe_jax.models.llava import Model, model_axes, model_template, vision_features
from hidecmoe_jax.models.quantised import template_of
from hidecmoe_jax.studies.planning.liveness import peak_bytes, product_flops, used_inputs, variables
from hidecmoe_jax.studies.planning.walk import (
    Shape,
    TrainingShapes,
    batch_shapes,
    fixed_settings,
    frozen_shapes,
    key_shape,
    prompt_shapes,
    rate_shapes,
)
from hidecmoe_jax.train.optim import TrainConfig
from hidecmoe_jax.train.step import take_step


@dataclass(frozen=True)
class Program:
    """A traced program.

    Attributes:
      traced: of `jax.jit(...).trace`, ready to be lowered.
      inputs, outputs: bytes of the arrays that it reads and returns.
      donated: bytes of inputs whose memory the results take over.
      temporary: most bytes alive at once beyond its inputs and outputs.
      flops: of its matrix products; a loop of unknown length counts one turn.
    """

    traced: Any
    inputs: int
    outputs: int
    donated: int
    temporary: int
    flops: int


def program_of(traced: Any) -> Program:
    """Measures a traced program."""
    jaxpr = traced.jaxpr.jaxpr
    outputs = bytes_of([var.aval for var in jaxpr.outvars])
    temporary = max(peak_bytes(jaxpr) - outputs, 0)
    inputs = bytes_of([var.aval for var in used_inputs(jaxpr)])
    arguments = jax.tree.leaves(traced.args_info)
    donated = bytes_of([argument for argument in arguments if argument.donated])
    return Program(traced, inputs, outputs, donated, temporary, product_flops(jaxpr))


def trace_step(
    model: Model, shapes: TrainingShapes, tune: TrainConfig, *, tokens: int, answers: int, pictures: int
) -> Program:
    """One optimiser step of a training stage, `tune.accumulate` micro-batches of `tune.batch` samples.

    Args:
      model: with a layout, inputs lie as a run places them, and `tune.batch` samples are those of all devices.
    """
    batches = batch_shapes(
        model.config, tokens=tokens, answers=answers, batch=tune.batch, pictures=pictures, accumulate=tune.accumulate
    )
    layout = model.layout
    traced = take_step.trace(
        replicate(layout, shapes_of(shapes.state)), placed(model), replicate(layout, shapes_of(shapes.context)),
        split_batch(layout, batches, axis=1), rate_shapes(), key_shape(),
        stage=shapes.stage.compiled_as, tune=fixed_settings(tune),
    )  # fmt: skip
    return program_of(traced)


def placed(model: Model) -> Model:
    """Shapes of a model, said to lie where its layout puts them."""
    axes = spread_axes(model_axes(model.config), model.params)
    return model.replace(params=place(model.layout, model.params, axes))


def shapes_of(tree: Any) -> Any:
    """The arrays of a tree as shapes; small ones have numbers otherwise, and those lie on a device."""
    return jax.tree.map(lambda leaf: Shape(leaf.shape, leaf.dtype), tree)


def saved_bytes(model: Model, shapes: TrainingShapes, *, tokens: int, answers: int, batch: int, pictures: int) -> int:
    """Bytes that the forward pass of one micro-batch saves for the backward pass, without the weights themselves."""
    one_batch = batch_shapes(model.config, tokens=tokens, answers=answers, batch=batch, pictures=pictures)

    def residuals(leaves: Any, params: dict, context: Learner, inputs: Any, key: Any) -> Any:
        def loss(leaves: Any) -> Any:
            learner = with_trainable(context, leaves)
            return shapes.stage.loss(model.replace(params=params), learner, inputs, key).total

        _, backward = jax.vjp(loss, leaves)
        return backward

    arguments = (shapes.state.leaves, model.params, shapes.context, one_batch, key_shape())
    jaxpr = jax.make_jaxpr(residuals)(*arguments).jaxpr
    # The weights are saved too, but they are inputs and take no memory of their own.
    saved = set(variables(jaxpr.outvars)) - set(jaxpr.invars)
    return bytes_of([var.aval for var in saved])


def trace_answers(
    method: Method, base: LlavaConfig, serving: Serving, *, tokens: int, batch: int, written: int, pictures: int,
    layout: Layout | None = None,
) -> Program:  # fmt: skip
    """The program that writes the answers of a batch of questions; its loop over tokens counts one turn.

    Args:
      layout: for answers; `batch` questions are those of all its devices.
    """
    frozen = frozen_shapes(method, base, batch)
    decision = jax.eval_shape(_decide, method, serving, frozen, None) if _routes(method) else None
    if decision is None:
        named = Shape((batch,), jnp.int32)
        decision = jax.eval_shape(_decide, method, serving, frozen, named)
    prompt = prompt_shapes(base, tokens=tokens, batch=batch, pictures=pictures)
    sampling = Sampling(written, 0.0, 1.0, 2, 0, ids=base.vocabulary)
    ids = Shape((batch,), jnp.int32)
    weights = decision.replace(match=None)
    model = placed(serving.model.replace(layout=layout))
    around = replicate(layout, shapes_of(serving.replace(model=None)))
    traced = _write.trace(
        method, around.replace(model=model), split_batch(layout, prompt), weights, key_shape(), ids, sampling=sampling
    )
    return program_of(traced)


def _routes(method: Method) -> bool:
    return not method.traits.needs_task_name


def trace_vision(base: LlavaConfig, *, batch: int) -> Program:
    """Features of a batch of pictures."""
    side = base.image_size
    pixels = Shape((batch, side, side, 3), jnp.float32)
    return program_of(jax.jit(vision_features).trace(model_template(base), pixels))


def cache_bytes(base: LlavaConfig, *, tokens: int, batch: int) -> int:
    """Keys and values of a batch of sequences in all layers."""
    decoder = base.decoder
    numbers = 2 * decoder.layers * batch * tokens * decoder.kv_heads * decoder.head_width
    return numbers * jnp.dtype(base.dtype).itemsize


def recomputing(base: LlavaConfig, recompute: Recompute, bits: int = 16) -> Model:
    """Shapes of the base, with what the backward pass computes again."""
    model = template_of(replace(base, remat=recompute == "full"), bits)
    if recompute != "named":
        return model
    # A layout of one device changes nothing but this.
    return model.replace(layout=layout_of(make_mesh(), recompute="named"))


def folded_bytes(params: dict, serving: Serving) -> int:
    """Bytes of the weights that answering holds beside the base's, because experts are folded into them."""
    of_base = {id(leaf) for leaf in jax.tree.leaves(params)}
    return bytes_of([leaf for leaf in _leaves(serving.model.params) if id(leaf) not in of_base])


def _leaves(tree: Any) -> Sequence[Any]:
    return jax.tree.leaves(tree)
