"""The optimiser: an optax chain built from the settings, with learning rates that are arguments of the step.

A schedule or another task's rate therefore never compiles anything. The schedule is evaluated on the host, from the
step number alone, so a resumed stage takes the very rates it would have taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from hidecmoe_jax.core.strict import YOUNGER
from hidecmoe_jax.train.skip import leaving_out


@dataclass(frozen=True)
class TrainConfig:
    """How a task is tuned. Defaults are HiDe-LLaVA's UCIT recipe where it has one.

    Attributes:
      epochs: passes over a task's records (a stream entry may set its own).
      batch: samples of one micro-batch; `accumulate` of them make a step.
      rate, projector_rate: peak learning rates of experts and of the projector (a stream entry may set its own
        `rate`; the projector's keeps its ratio).
      warmup: part of the steps in which the rate rises linearly, after which it falls as a cosine to zero.
      decay: decoupled weight decay.
      beta1, beta2, epsilon: of Adam; Lion takes the betas.
      max_length: longest sequence, image tokens included; longer records are refused, or dropped up to `max_dropped`.
      bucket: sequence lengths are rounded up to a multiple of it.
      lengths: padded lengths that a task's steps may have; each step takes the shortest that holds its records. Every
        length is a program to compile, and with dropout it draws its own masks.
      pack: several records share a row, of at most so many times the longest record's length; 0 gives each a row of its
        own. Rows have at most `lengths` lengths. A step has the same records, and the same loss but for rounding;
        dropout draws other masks.
      save_every: steps between checkpoints within a task.
      optimizer: `adamw`, `lion`, or `muon` for the experts' matrices with Adam for all else.
      clip: largest global norm of the gradient; None leaves it as it is.
      skip: bad steps in a row that are left out before training stops: a bad step has a loss, a gradient or an update
        that is not finite. 0 stops at the first.
      spikes: with `skip`, a step is bad also where its loss is so many standard deviations above the mean of the last
        128 (6 is usual); None for any loss that is finite.
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
    lengths: int = field(default=1, metadata=YOUNGER)
    pack: int = field(default=0, metadata=YOUNGER)
    save_every: int = 200
    optimizer: Literal["adamw", "lion", "muon"] = field(default="adamw", metadata=YOUNGER)
    clip: float | None = field(default=None, metadata=YOUNGER)
    skip: int = field(default=0, metadata=YOUNGER)
    spikes: float | None = field(default=None, metadata=YOUNGER)

    def __post_init__(self):
        if min(self.epochs, self.batch, self.accumulate, self.bucket, self.lengths, self.save_every) < 1:
            raise ValueError("epochs, batch, accumulate, bucket, lengths and save_every must be at least 1")
        if self.pack < 0:
            raise ValueError(f"pack {self.pack} must be at least 0, which packs nothing")
        if not 0 <= self.warmup < 1 or min(self.rate, self.projector_rate) < 0:
            raise ValueError(f"warmup {self.warmup} must be in [0, 1) and rates at least 0")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip {self.clip} must be above 0, or null")
        if self.skip < 0:
            raise ValueError(f"skip {self.skip} must be at least 0")
        if self.spikes is not None and (self.spikes <= 0 or not self.skip):
            raise ValueError(f"spikes {self.spikes} must be above 0, or null, and need skip above 0 (such as 5)")


def shape_of_rate(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak rate at `step` of `steps`: linear warm-up, then cosine to zero at the end."""
    rising = max(1, math.ceil(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    # At least 1, against a division by zero where the warm-up takes all steps.
    falling = max(1, steps - rising)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / falling))


def optimizer(tune: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The transformation from gradients to updates: clipping, direction, weight decay, learning rates.

    Its `update` takes `rates`, one learning rate for each top-level group of the leaves, and where bad steps are left
    out the `loss`.
    """
    steps = [] if tune.clip is None else [optax.clip_by_global_norm(tune.clip)]
    steps += [_direction(tune), optax.add_decayed_weights(tune.decay), scale_by_group_rates()]
    chain = optax.chain(*steps)
    return leaving_out(chain, tune.spikes) if tune.skip else chain


def scale_by_group_rates() -> optax.GradientTransformationExtraArgs:
    """Multiplies every top-level group of the updates by minus its learning rate, given as `rates` at each update."""

    def update(updates: Any, state: Any, params: Any = None, *, rates: dict[str, Array], **_: Any) -> tuple[Any, Any]:
        del params
        scaled = {}
        for group, leaves in updates.items():
            rate = rates[group]
            scaled[group] = jax.tree.map(lambda leaf, rate=rate: -(rate * leaf.astype(jnp.float32)), leaves)
        return scaled, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _direction(tune: TrainConfig) -> optax.GradientTransformation:
    """The direction of a step, without a rate."""
    adam = optax.scale_by_adam(b1=tune.beta1, b2=tune.beta2, eps=tune.epsilon)
    match tune.optimizer:
        case "adamw":
            return adam
        case "lion":
            return optax.scale_by_lion(b1=tune.beta1, b2=tune.beta2)
        case "muon":
            muon = scale_by_muon(weight_dimension_numbers=_matrix_axes)
            # Muon needs matrices; routers and the projector's biases are left to Adam.
            labels = {"experts": "muon", "routers": "adam", "shared": "adam"}
            return optax.partition({"muon": muon, "adam": adam}, labels)


def _matrix_axes(experts: Any) -> Any:
    """Axes of the matrices in factors a [L, D, S, R] and b [L, S, R, F]: every layer and slot has one of its own."""

    def axes(path: tuple, leaf: Array) -> MuonDimensionNumbers:
        factor = path[-2].key
        return MuonDimensionNumbers(reduction_axis=1 if factor == "a" else 2, output_axis=3)

    return jax.tree_util.tree_map_with_path(axes, experts)
