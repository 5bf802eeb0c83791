"""AdamW whose learning rates are arrays, so that a schedule or another task's rate never compiles anything.

The moments come from optax; the schedule is worked out on the host from the step number, which makes it a pure
function of what is saved in a checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array


@dataclass(frozen=True)
class TrainConfig:
    """How a task is tuned. Defaults are HiDe-LLaVA's UCIT recipe where it has one.

    Attributes:
      epochs: passes over a task's records (a stream entry may set its own).
      batch: samples of one micro-batch; `accumulate` of them make a step.
      rate, projector_rate: peak learning rates of experts and of the projector (a stream entry may set its own
        `rate`; the projector's keeps its ratio).
      warmup: part of the steps in which the rate rises linearly, after which it falls as a cosine to zero.
      decay: AdamW's decoupled weight decay.
      max_length: longest sequence, image tokens included; longer records are refused, or dropped up to `max_dropped`.
      bucket: sequence lengths are rounded up to a multiple of it.
      save_every: steps between checkpoints within a task.
    """

    epochs: int = 1
    batch: int = 16
    accumulate: int = 1
    rate: float = 2e-4
    projector_rate: float = 2e-5
    warmup: float = 0.03
    decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_length: int = 2048
    max_dropped: float = 0.0
    bucket: int = 32
    save_every: int = 200

    def __post_init__(self):
        if min(self.epochs, self.batch, self.accumulate, self.bucket, self.save_every) < 1:
            raise ValueError("epochs, batch, accumulate, bucket and save_every must be at least 1")
        if not 0 <= self.warmup < 1 or min(self.rate, self.projector_rate) < 0:
            raise ValueError(f"warmup {self.warmup} must be in [0, 1) and rates at least 0")


def shape_of_rate(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak rate at `step` of `steps`: linear warm-up, then cosine to zero at the end."""
    rising = max(1, math.ceil(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def moments(tune: TrainConfig) -> optax.GradientTransformation:
    """Adam's direction, without a rate."""
    return optax.scale_by_adam(b1=tune.beta1, b2=tune.beta2, eps=tune.epsilon)


def descend(leaves: Any, direction: Any, rates: dict[str, Array], decay: float) -> Any:
    """`leaf - rate * (direction + decay * leaf)`, with one rate for each top-level group of `leaves`."""

    def moved(rate: Array, group: Any, towards: Any) -> Any:
        def one(leaf: Array, d: Array) -> Array:
            return leaf - (rate * (d.astype(jnp.float32) + decay * leaf.astype(jnp.float32))).astype(leaf.dtype)

        return jax.tree.map(one, group, towards)

    return {name: moved(rates[name], leaves[name], direction[name]) for name in leaves}
