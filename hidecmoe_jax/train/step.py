"""One optimiser step, the only place where anything is trained.

Gradients are those of the summed answer loss over all micro-batches, divided once by the number of answer tokens,
so accumulation equals a big batch however the tokens are spread. Method, stage and optimiser settings are static;
everything that changes from task to task is an array, so a second task of the same kind compiles nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from hidecmoe_jax.experts.usage import Load, together
from hidecmoe_jax.methods.base import Learner, Method, Stage, trainable, with_trainable
from hidecmoe_jax.models.llava import Batch, Model
from hidecmoe_jax.train.optim import TrainConfig, descend, moments


@struct.dataclass
class State:
    """What moves during a stage; a checkpoint holds exactly this (and the step number)."""

    leaves: Any
    moments: Any


@struct.dataclass
class Metrics:
    """Of one step, float32: mean loss per answer token, norms of gradient, update and leaves; tokens int32; `load` says
    which experts tokens chose, None where none chooses."""

    loss: Array
    gradient: Array
    update: Array
    norm: Array
    tokens: Array
    load: Load | None = None


def begin(learner: Learner, tune: TrainConfig) -> State:
    """Fresh moments on what trains, and on nothing else."""
    leaves = trainable(learner)
    return State(leaves, moments(tune).init(leaves))


def _summed(method: Method, stage: Stage, model: Model, learner: Learner, leaves: Any, batches: Batch, key: Array):
    """Loss sum, token count, gradient sum and loads over the leading micro-batch axis."""

    def loss(leaves, batch, key):
        result = method.loss(model, with_trainable(learner, leaves), stage, batch, key)
        return result.total, (result.tokens, result.load)

    def add(carry, inputs):
        total, count, gradient = carry
        batch, index = inputs
        grad = jax.value_and_grad(loss, has_aux=True)
        (nll, (tokens, load)), g = grad(leaves, batch, jax.random.fold_in(key, index))
        return (total + nll, count + tokens, jax.tree.map(jnp.add, gradient, g)), load

    micro = jax.tree.leaves(batches)[0].shape[0]
    zero = (jnp.zeros(()), jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, leaves))
    (total, count, gradient), loads = jax.lax.scan(add, zero, (batches, jnp.arange(micro)))
    return total, count, gradient, None if loads is None else together(loads)


@partial(jax.jit, static_argnames=("method", "stage", "tune"))
def take_step(
    state: State,
    model: Model,
    learner: Learner,
    batches: Batch,
    rates: dict[str, Array],
    key: Array,
    *,
    method: Method,
    stage: Stage,
    tune: TrainConfig,
) -> tuple[State, Metrics]:
    """One step of AdamW on `state.leaves`.

    Args:
      learner: everything the loss hears; its trainable leaves are replaced by those of `state`.
      batches: micro-batches stacked on a leading axis.
      rates: {"experts", "shared"}: learning rates of this step.
    """
    total, count, gradient, load = _summed(method, stage, model, learner, state.leaves, batches, key)
    share = 1.0 / jnp.maximum(count, 1).astype(jnp.float32)
    gradient = jax.tree.map(lambda g: g * share.astype(g.dtype), gradient)
    direction, moved = moments(tune).update(gradient, state.moments, state.leaves)
    leaves = descend(state.leaves, direction, rates, tune.decay)
    update = jax.tree.map(lambda new, old: new - old, leaves, state.leaves)
    norm = optax.tree.norm
    metrics = Metrics(total * share, norm(gradient), norm(update), norm(leaves), count, load)
    return State(leaves, moved), metrics
