"""One optimiser step, the only place where anything is trained.

Gradients are those of the summed answer loss over all micro-batches, divided once by the number of answer tokens,
so accumulation equals a big batch however the tokens are spread. Stage and optimiser settings are static;
everything that changes from task to task is an array, so a second task of the same kind compiles nothing.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.layout import keep_replicated
from hidecmoe_jax.experts.usage import Load, sum_loads
from hidecmoe_jax.methods.base import Learner, trainable, with_trainable
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Batch, Model
from hidecmoe_jax.train.optim import TrainConfig, optimizer


class State(struct.PyTreeNode):
    """What changes during a stage: trainable leaves, and the optimiser's state (`moments`). A checkpoint holds exactly
    this and the step number."""

    leaves: Any
    moments: Any


class Metrics(struct.PyTreeNode):
    """Of one step, float32: mean loss per answer token, norms of gradient, update and leaves; `tokens` int32; `load` is
    which experts the tokens chose, None where no token chooses; `skipped` int32: bad steps in a row that were left out,
    this one the last, 0 for a good one, None where none is left out."""

    loss: Array
    gradient: Array
    update: Array
    norm: Array
    tokens: Array
    load: Load | None = None
    skipped: Array | None = None


@jax.jit
def copied(tree: Any) -> Any:
    """The same numbers in memory of their own."""
    return jax.tree.map(jnp.copy, tree)


def begin(learner: Learner, tune: TrainConfig) -> State:
    """A fresh optimiser state for what trains, and for nothing else.

    A step overwrites the state that it gets, so the state shares no memory with the learner.
    """
    return _first_state(trainable(learner), tune)


@partial(jax.jit, static_argnames="tune")
def _first_state(leaves: Any, tune: TrainConfig) -> State:
    # One program: an optimiser makes every array of its state by a program of its own.
    return State(copied(leaves), optimizer(tune).init(leaves))


def to_checkpoint(state: State) -> dict[str, Any]:
    """The state as flat arrays. Paths leave out the place of a transformation in the chain (`moments/mu/...`), so a
    checkpoint does not depend on whether gradients are clipped."""
    return {_checkpoint_path(path): leaf for path, leaf in trees.flatten(state).items()}


def from_checkpoint(template: State, flat: dict[str, Any]) -> State:
    """The inverse of `to_checkpoint`.

    Raises:
      CheckpointError: the paths, shapes or dtypes are not those of the template.
    """
    chain_paths = {_checkpoint_path(path): path for path in trees.flatten(template)}
    renamed = {}
    for path, leaf in flat.items():
        chain_path = chain_paths.get(path, path)
        renamed[chain_path] = leaf
    restored = trees.restore_into(template, renamed)
    return copied(restored)


def _checkpoint_path(path: str) -> str:
    return re.sub(r"^moments/\d+/", "moments/", path)


def _summed(
    stage: Stage, model: Model, learner: Learner, leaves: Any, batches: Batch, key: Array
) -> tuple[Array, Array, Any, Load | None]:
    """Loss sum, token count, gradient sum and loads over the leading micro-batch axis."""

    def loss(leaves: Any, batch: Batch, key: Array) -> tuple[Array, tuple[Array, Load | None]]:
        training = with_trainable(learner, leaves)
        result = stage.loss(model, training, batch, key)
        return result.total, (result.tokens, result.load)

    def add(carry: tuple, inputs: tuple) -> tuple[tuple, Load | None]:
        total, tokens, gradient = carry
        batch, index = inputs
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        micro_key = jax.random.fold_in(key, index)
        (micro_total, (micro_tokens, load)), micro_gradient = value_and_grad(leaves, batch, micro_key)
        total = total + micro_total
        tokens = tokens + micro_tokens
        gradient = jax.tree.map(jnp.add, gradient, micro_gradient)
        return (total, tokens, gradient), load

    first_leaf = jax.tree.leaves(batches)[0]
    micro_batches = first_leaf.shape[0]
    no_gradient = jax.tree.map(jnp.zeros_like, leaves)
    zero = (jnp.zeros(()), jnp.zeros((), jnp.int32), no_gradient)
    numbered = (batches, jnp.arange(micro_batches))
    (total, tokens, gradient), loads = jax.lax.scan(add, zero, numbered)
    load = None if loads is None else sum_loads(loads)
    return total, tokens, gradient, load


@partial(jax.jit, static_argnames=("stage", "tune"), donate_argnames=("state",))
def take_step(
    state: State,
    model: Model,
    learner: Learner,
    batches: Batch,
    rates: dict[str, Array],
    key: Array,
    *,
    stage: Stage,
    tune: TrainConfig,
) -> tuple[State, Metrics]:
    """One optimiser step on `state.leaves`.

    Args:
      state: its memory is used for the new state, so its arrays cannot be read afterwards.
      learner: everything the loss reads; its trainable leaves are replaced by those of `state`.
      batches: micro-batches stacked on a leading axis.
      rates: learning rates of this step, by group of the leaves: experts, routers, shared.
    """
    total, tokens, gradient, load = _summed(stage, model, learner, state.leaves, batches, key)
    divisor = jnp.maximum(tokens, 1).astype(jnp.float32)
    # Divided once, after the sum: micro-batches with more answer tokens count for more.
    share = 1.0 / divisor
    gradient = jax.tree.map(lambda g: g * share.astype(g.dtype), gradient)
    transformation = optimizer(tune)
    loss = total * share
    extra: dict[str, Any] = {"rates": rates}
    if tune.skip:
        extra["loss"] = loss
    updates, moments = transformation.update(gradient, state.moments, state.leaves, **extra)
    leaves = optax.apply_updates(state.leaves, updates)
    # The update as it was rounded into the leaves: too small a rate shows as 0.
    update = jax.tree.map(lambda new, old: new - old, leaves, state.leaves)
    norm = optax.tree.norm
    skipped = moments.in_a_row if tune.skip else None
    metrics = Metrics(loss, norm(gradient), norm(update), norm(leaves), tokens, load, skipped)
    # Returned as it came in, or the next step would be another program.
    return keep_replicated(model.layout, (State(leaves, moments), metrics))
