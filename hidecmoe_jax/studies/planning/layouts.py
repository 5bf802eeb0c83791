"""How a plan divides the records of a step over devices."""

from __future__ import annotations

from dataclasses import dataclass

from hidecmoe_jax.core.layout import Placement, Recompute
from hidecmoe_jax.studies.planning.machines import Machine
from hidecmoe_jax.train.optim import TrainConfig


@dataclass(frozen=True)
class Division:
    """Where the base lies while training, what is computed again, and how a step's records are divided.

    Attributes:
      batch: records of a micro-batch over all devices, `accumulate` of them a step.
      per_device: records of a micro-batch on one device.
    """

    base: Placement
    recompute: Recompute
    batch: int
    accumulate: int
    per_device: int


def divisions(tune: TrainConfig, machine: Machine, base: Placement, recompute: Recompute) -> list[Division]:
    """Ways to divide a step's records over the devices, large micro-batches first, none larger than the config's."""
    # The step grows or shrinks to what the devices can divide.
    share = max(1, round(tune.batch * tune.accumulate / machine.devices))
    ways = []
    for size in range(min(share, tune.batch), 0, -1):
        if share % size == 0:
            ways.append(Division(base, recompute, size * machine.devices, share // size, size))
    return ways
