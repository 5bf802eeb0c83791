"""Machines that a run can be planned for: memory, rates and prices, each with its source.

Peak rates are those of the makers' data sheets for dense products in bfloat16 that are summed in float32. `sustained`
is the part of the peak that long matrix products are assumed to reach, taken from published training runs of other
projects (TPUs: MaxText; H200: MaxText and NeMo on H100 and H200) and so an assumption for this one. Prices of
one device and hour say where they are from, those of TPUs that they are assumed; `hidecmoe plan --price` replaces them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hidecmoe_jax.core.errors import ConfigError, nearest

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """Devices of one kind that train together.

    Attributes:
      name: as `--target` takes it; `title` for people.
      devices, hosts: how many.
      memory: bytes of one device that a program can use.
      peak: floating-point operations a second of one device; `sustained` the part of it that is assumed.
      bandwidth: bytes a second of one device's memory.
      link: bytes a second of collectives, per device; 0 for a single device.
      price: US dollars of one device and hour; None where nobody rents it.
      price_source, source: where price and rates are from, with the date of the price.
      topology: name of the slice as the TPU compiler takes it; empty for other devices.
    """

    name: str
    title: str
    devices: int
    hosts: int
    memory: int
    peak: float
    sustained: float
    bandwidth: float
    link: float
    price: float | None
    price_source: str
    source: str
    topology: str = ""

    @property
    def usable(self) -> int:
        """Bytes of a device that a plan may fill: nine tenths, the rest is for what no formula sees."""
        return self.memory * 9 // 10

    @property
    def dollars(self) -> float | None:
        """US dollars of the whole machine and hour."""
        return None if self.price is None else self.price * self.devices


_V5E = "cloud.google.com/tpu/docs/v5e: 197 TF/s, 16 GB of which 15.75 GiB are usable, 819 GB/s"
_V6E = "cloud.google.com/tpu/docs/v6e: 918 TF/s, 32 GB of which 31.25 GiB are assumed usable, 1638 GB/s"
_H200 = "NVIDIA H200 data sheet: 989 TF/s without sparsity, 141 GB, 4.8 TB/s; of the bandwidth 4.3 TB/s are assumed"
_RTX = "NVIDIA RTX 4090 data sheet: 165.2 TF/s, 24 GB, 1008 GB/s; other cards of 24 GB compute slower or faster"
_TPU_PRICE = "assumed, not looked up: give what your region asks with --price"
_H200_PRICE = "specialised clouds ask 3.50 to 4.50, mercatus-ai.com/blog/cloud-gpu-pricing, May 2026"

MACHINES = {
    machine.name: machine
    for machine in (
        Machine("24gb", "one card of 24 GB", 1, 1, 23 * GIB, 165.2e12, 0.5, 1.008e12, 0.0,
                0.34, "runpod.io as quoted by deploybase.ai, July 2025", _RTX),
        Machine("h200", "one NVIDIA H200", 1, 1, 139 * GIB, 989e12, 0.6, 4.3e12, 0.0, 4.0, _H200_PRICE, _H200),
        Machine("v5e-16", "TPU v5e, 4x4 chips", 16, 4, int(15.75 * GIB), 197e12, 0.75, 819e9, 9e10,
                1.2, _TPU_PRICE, _V5E, "v5e:4x4"),
        Machine("h200x8", "eight NVIDIA H200", 8, 1, 139 * GIB, 989e12, 0.6, 4.3e12, 4.5e11, 4.0, _H200_PRICE, _H200),
        Machine("v6e-64", "TPU v6e, 8x8 chips", 64, 8, int(31.25 * GIB), 918e12, 0.55, 1.638e12, 1.8e11,
                2.7, _TPU_PRICE, _V6E, "v6e:8x8"),
        Machine("v5e-256", "TPU v5e, 16x16 chips", 256, 64, int(15.75 * GIB), 197e12, 0.75, 819e9, 1.8e11,
                1.2, _TPU_PRICE, _V5E, "v5e:16x16"),
    )
}  # fmt: skip
TARGETS = ("cpu", *MACHINES)
# Measured on one core of an Intel Sapphire Rapids: 119 GF/s in products of the pocket model's size, float32.
_CORE_FLOPS = 119e9


def machine_of(target: str, *, price: float | None = None) -> Machine:
    """The machine of a name; `cpu` is this one.

    Args:
      price: US dollars of one device and hour, in place of the listed price.

    Raises:
      ConfigError: no machine has this name, or the price is negative.
    """
    if target not in TARGETS:
        raise ConfigError("unknown machine", where=f"--target {target}", remedy=nearest(target, TARGETS))
    machine = this_machine() if target == "cpu" else MACHINES[target]
    if price is None:
        return machine
    if price < 0:
        raise ConfigError("a price cannot be negative", where=f"--price {price:g}", remedy="give dollars an hour")
    fields = {"price": price, "price_source": "given by --price"}
    return Machine(**{**machine.__dict__, **fields})


def this_machine() -> Machine:
    """The processors and the memory of the machine that this runs on, as one device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        "cpu", f"this machine, {cores} cores", 1, 1, memory, cores * _CORE_FLOPS, 0.5, 1e10, 0.0, None, "",
        "119 GF/s a core, measured on Sapphire Rapids in float32; half of it assumed for a whole step",
    )  # fmt: skip
