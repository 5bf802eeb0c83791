"""Layouts that a plan tries: where the base lies while training, what is recomputed, how records are divided."""

from __future__ import annotations

from dataclasses import dataclass

from hidecmoe_jax.core.layout import Recompute
from hidecmoe_jax.studies.planning.machines import Machine
from hidecmoe_jax.train.optim import TrainConfig

LAYOUTS = (
    ("replicated", "none"), ("replicated", "named"), ("replicated", "full"), ("sharded", "named"), ("sharded", "full"),
)  # fmt: skip
"""(where the base lies while training, what is recomputed), the fastest first."""


@dataclass(frozen=True)
class Layout:
    """Where the base lies while training, what is recomputed, and how a step's records are divided.

    Attributes:
      batch: records of a micro-batch over all devices, `accumulate` of them a step.
      per_device: records of a micro-batch on one device.
    """

    base: str
    recompute: Recompute
    batch: int
    accumulate: int
    per_device: int


def layouts_of(machine: Machine) -> list[tuple[str, str]]:
    """Layouts that a machine can have; one device has nothing to divide the base over."""
    return [name for name in LAYOUTS if machine.devices > 1 or name[0] == "replicated"]


def ways_to_divide(tune: TrainConfig, machine: Machine, where: str, recompute: str) -> list[Layout]:
    """Ways to divide a step's records over the devices, large micro-batches first, none larger than the config's."""
    # The step grows or shrinks to what the devices can divide.
    share = max(1, round(tune.batch * tune.accumulate / machine.devices))
    ways = []
    for size in range(min(share, tune.batch), 0, -1):
        if share % size == 0:
            ways.append(Layout(where, recompute, size * machine.devices, share // size, size))
    return ways
