"""Leaving out bad steps: those that are not finite, and on request those whose loss is far above that of the last ones.

The rule is part of the optimiser: what it remembers of the last losses is saved with the moments, so a stage that goes
on from a checkpoint leaves out the same steps. A step that is left out changes neither leaves nor moments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

# Losses that a spike is measured against, as in MaxText; fewer say little about their spread.
WINDOW = 128
LEAST = 16


class Skipping(NamedTuple):
    """What is remembered: the state inside, the last losses of good steps and their number, bad steps in a row."""

    inner: Any
    loss_W: Array
    seen: Array
    in_a_row: Array


def leaving_out(
    inner: optax.GradientTransformationExtraArgs, spikes: float | None
) -> optax.GradientTransformationExtraArgs:
    """The transformation `inner`, which a bad step passes by; its `update` also takes the step's `loss`, float32 [].

    Args:
      spikes: standard deviations above the mean of the last losses from which on a loss is a spike; None for none.
    """

    def init(params: Any) -> Skipping:
        loss_W = jnp.zeros(WINDOW, jnp.float32)
        # Two arrays: a step is given the memory of both.
        return Skipping(inner.init(params), loss_W, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(gradient: Any, state: Skipping, params: Any = None, *, loss: Array, **rest: Any) -> tuple[Any, Skipping]:
        updates, moved = inner.update(gradient, state.inner, params, **rest)
        norm = optax.tree.norm
        is_good = jnp.isfinite(loss) & jnp.isfinite(norm(gradient)) & jnp.isfinite(norm(updates))
        if spikes is not None:
            is_good &= loss <= _highest(state, spikes)
        updates = jax.tree.map(lambda leaf: jnp.where(is_good, leaf, jnp.zeros_like(leaf)), updates)
        moved = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), moved, state.inner)
        place = state.seen % WINDOW
        loss_W = jnp.where(is_good, state.loss_W.at[place].set(loss), state.loss_W)
        seen = state.seen + is_good.astype(jnp.int32)
        in_a_row = jnp.where(is_good, 0, state.in_a_row + 1)
        return updates, Skipping(moved, loss_W, seen, in_a_row)

    return optax.GradientTransformationExtraArgs(init, update)


def _highest(state: Skipping, spikes: float) -> Array:
    """The loss from which on a step is a spike, float32 []; infinite while there are few losses."""
    count = jnp.minimum(state.seen, WINDOW)
    is_known_W = jnp.arange(WINDOW) < count
    divisor = jnp.maximum(count, 1).astype(jnp.float32)
    mean = jnp.where(is_known_W, state.loss_W, 0.0).sum() / divisor
    variance = jnp.where(is_known_W, (state.loss_W - mean) ** 2, 0.0).sum() / divisor
    limit = mean + spikes * jnp.sqrt(variance)
    return jnp.where(count < LEAST, jnp.float32(jnp.inf), limit)
