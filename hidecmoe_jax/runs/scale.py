"""The section `scale` of a config: on which devices a run works, and where the frozen base lies on them.

It is no part of a run's identity, but for the bits of the base: a run goes on on another machine, and its numbers agree
up to rounding. Without the section all devices of the machine are used; on one device the programs are those without a
layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.layout import Layout, Placement, Recompute, layout_of
from hidecmoe_jax.core.sharding import MESH_AXES, make_mesh
from hidecmoe_jax.core.strict import YOUNGER
from hidecmoe_jax.data.pictures import HELD_GIB
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.execution import Attention
from hidecmoe_jax.models.quantised import template_of

# Part of a device's memory that is planned with; the rest is for what the compiler and the runtime need.
USABLE = 0.9
# Most devices that share the work of one sample: more exchange longer than they compute.
MOST_TENSOR = 8


@dataclass(frozen=True)
class MeshSizes:
    """Devices along every axis of the mesh; one of them may be -1, for what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if sizes.count(-1) > 1:
            raise ValueError(f"only one of data, fsdp and tensor may be -1, got {sizes}")
        wrong = [size for size in sizes if size < 1 and size != -1]
        if wrong:
            raise ValueError(f"sizes must be 1 or more, or -1 for what is left, got {sizes}")


@dataclass(frozen=True)
class Scale:
    """Devices of a run.

    Attributes:
      base: where the frozen weights lie while training: on every device (`replicated`), split over all and gathered
        layer by layer (`sharded`), or split by heads and hidden units (`tensor`).
      answer: the same for features and answers; `sharded`, which would gather all weights for every new token, is
        taken as `auto`, and a run says so.
      mesh: devices by axis; `auto` placements follow from it where it has `fsdp` or `tensor`.
      recompute: what the backward pass computes again: all but the named activations of a layer, or everything. `auto`
        follows `base.remat`, except that a sharded base never keeps everything.
      bits: 8 for linears of the decoder in int8, a scale for every output channel, which changes what is learned; 16
        for weights as `base.param_dtype` has them.
      attention: the kernel of the decoder's attention: cuDNN's on NVIDIA GPUs, one in Pallas on TPUs, none (`xla`), or
        what the processor has for the base's dtype (`auto`).
      workers: pictures that are read at once; None for one on every core, at most 16.
      picture_gib: memory for pixels that the check has decoded and the vision tower will read; 0 holds none.
    """

    base: Literal["auto", "replicated", "sharded", "tensor"] = "auto"
    answer: Literal["auto", "replicated", "sharded", "tensor"] = "auto"
    mesh: MeshSizes = MeshSizes()
    recompute: Literal["auto", "named", "full"] = "auto"
    bits: Literal[16, 8] = 16
    attention: Attention = "auto"
    workers: int | None = field(default=None, metadata=YOUNGER)
    picture_gib: float = field(default=HELD_GIB, metadata=YOUNGER)

    def __post_init__(self):
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers {self.workers} must be at least 1, or null for one on every core")
        if not 0 <= self.picture_gib < math.inf:
            raise ValueError(f"picture_gib {self.picture_gib} must be at least 0 and finite")


@dataclass(frozen=True)
class Choice:
    """What `auto` came to: devices along data, fsdp and tensor, the two placements, and what is computed again."""

    mesh: tuple[int, int, int]
    base: Placement
    answer: Placement
    recompute: Recompute


@dataclass(frozen=True)
class Fits:
    """What fits into a device, as whoever chooses a layout counts it.

    Attributes:
      training: whether the base fits that lies so while training, with these activations computed again.
      answering: whether it fits while answering, each layer split over so many devices.
    """

    training: Callable[[Placement, Recompute], bool]
    answering: Callable[[int], bool]


def first_fitting(scale: Scale, config: LlavaConfig, *, devices: int, fits: Fits) -> Choice | None:
    """The first layout of a section's that fits, in one order for runs and for plans: the fastest first.

    Answering is chosen first, because its devices along `tensor` are a part of the mesh: the base whole on every
    device, then split over 2, 4 or 8. Training: whole, then divided over all; of each, nothing computed again, then all
    but the named activations, then everything. None where nothing fits.

    Raises:
      ConfigError: a mesh that does not fit the devices or the model.
    """
    sizes = mesh_sizes(scale, config, devices)
    tensor = next((size for size in tensor_sizes(scale, config, sizes) if fits.answering(size)), None)
    if tensor is None:
        return None
    answer: Placement = "tensor" if tensor > 1 else "replicated"
    if tensor > sizes["tensor"]:
        sizes |= {"data": sizes["data"] * sizes["tensor"] // tensor, "tensor": tensor}
    for base, recompute in _trainings(scale, config, sizes):
        if fits.training(base, recompute):
            return Choice(tuple(sizes.values()), base, answer, recompute)
    return None


def choose(scale: Scale, config: LlavaConfig, *, devices: int, memory: float = math.inf) -> Choice | None:
    """Fills in what a section leaves to choose (`first_fitting`); None for one device, where nothing has a place.

    Args:
      memory: bytes of one device that can be planned with. Weights may take half of it; the rest is for activations,
        experts and moments, for keys and values.

    Raises:
      ConfigError: a mesh that does not fit the devices or the model, or a base that fits no placement.
    """
    sizes = mesh_sizes(scale, config, devices)
    count = math.prod(sizes.values())
    if count == 1 and scale.recompute == "auto":
        return None
    base = _base_bytes(config, scale.bits)
    # Experts are folded into a second copy of the weights, but never into int8.
    copies = 1 if scale.bits == 8 else 2
    room = memory / 2
    # What a section says is taken at its word.
    fits = Fits(
        training=lambda where, _: scale.base != "auto" or (base if where == "replicated" else base / count) <= room,
        answering=lambda tensor: scale.answer == "replicated" or copies * base / tensor <= room,
    )
    choice = first_fitting(scale, config, devices=devices, fits=fits)
    if choice is not None:
        return choice
    gib = 2**30
    narrower = "`base.param_dtype: bfloat16`" if scale.bits == 8 else "`base.param_dtype: bfloat16`, or `scale.bits: 8`"
    raise ConfigError(
        "the base fits no placement on these devices", where="scale.base",
        why=f"{base / gib:.1f} GiB of weights, {count} devices with {memory / gib:.1f} GiB each that can be used",
        remedy=f"take at least {math.ceil(2 * base / memory)} such devices, or {narrower}",
    )  # fmt: skip


def layout_for(scale: Scale, config: LlavaConfig) -> Layout | None:
    """The layout of a model on the devices of all processes; errors as `choose`."""
    choice = choose(scale, config, devices=len(jax.devices()), memory=_memory())
    if choice is None:
        return None
    mesh = make_mesh(**dict(zip(MESH_AXES, choice.mesh, strict=True)))
    return layout_of(mesh, choice.base, choice.answer, recompute=choice.recompute)


def check_batch(layout: Layout | None, *, batch: int, accumulate: int) -> None:
    """Refuses a batch that the devices cannot share evenly.

    Raises:
      ConfigError: names the two nearest sizes, with the accumulation that keeps the records of a step.
    """
    if layout is None or batch % layout.batch_shards == 0:
        return
    shards = layout.batch_shards
    lower = batch // shards * shards
    choices = []
    for size in (lower, lower + shards):
        if size == 0:
            continue
        choice = f"--set tune.batch={size}"
        records = batch * accumulate
        if records % size == 0:
            choice += f" --set tune.accumulate={records // size} (the same {records} records a step)"
        choices.append(choice)
    fitting = max(size for size in range(1, shards + 1) if batch % size == 0)
    choices.append(f"--set scale.mesh.data={fitting} --set scale.mesh.fsdp=1 --set scale.mesh.tensor=1")
    raise ConfigError(
        "a batch cannot be shared evenly by the devices",
        where="tune.batch",
        why=f"{batch} records on {shards} devices",
        remedy=", or ".join(choices),
    )


def facts_of(layout: Layout | None) -> dict[str, Any]:
    """The layout as plain values, for the record of a session."""
    if layout is None:
        return {}
    sizes = {axis: int(layout.mesh.shape[axis]) for axis in MESH_AXES}
    width = dict(layout.train_rules)["width"]
    return {"scale": {"mesh": sizes, "recompute": layout.recompute, "gathers": width is not None}}


def mesh_sizes(scale: Scale, config: LlavaConfig, devices: int) -> dict[str, int]:
    """Devices by axis, with -1 filled in, and what `scale.base: tensor` needs."""
    sizes = {axis: getattr(scale.mesh, axis) for axis in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size > 0)
    where = "scale.mesh: " + ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    if fixed > devices:
        raise ConfigError(
            "the mesh does not fit the devices", where=where, why=f"it needs {fixed} devices, there are {devices}",
            remedy=f"choose sizes whose product is at most {devices}, or leave scale.mesh out",
        )  # fmt: skip
    if -1 in sizes.values() and devices % fixed:
        raise ConfigError(
            "the mesh does not fit the devices", where=where, why=f"{fixed} does not divide the {devices} devices",
            remedy="give every axis of scale.mesh a number, or sizes that divide the devices",
        )  # fmt: skip
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = devices // fixed
    if scale.base == "tensor" and sizes["tensor"] == 1 and scale.mesh.data == -1:
        shared = math.gcd(sizes["data"], config.kv_heads, MOST_TENSOR)
        sizes |= {"data": sizes["data"] // shared, "tensor": shared}
    _check_heads(config, sizes["tensor"])
    return sizes


def tensor_sizes(scale: Scale, config: LlavaConfig, sizes: dict[str, int]) -> list[int]:
    """Numbers of devices that may share every layer while answering, the fewest first."""
    if scale.answer == "replicated":
        return [1]
    if sizes["tensor"] > 1:
        return [sizes["tensor"]] if scale.answer == "tensor" else [1, sizes["tensor"]]
    if scale.mesh.data != -1:
        return [1]
    shared = math.gcd(sizes["data"], config.kv_heads, MOST_TENSOR)
    powers = [size for size in (1, 2, 4, 8) if shared % size == 0]
    return powers[1:] or [1] if scale.answer == "tensor" else powers


def _trainings(scale: Scale, config: LlavaConfig, sizes: dict[str, int]) -> list[tuple[Placement, Recompute]]:
    """Where the base may lie while training and what may be computed again, in the order that they are tried."""
    bases: tuple[Placement, ...] = (scale.base,)
    if scale.base == "auto":
        if scale.mesh.tensor > 1 and scale.answer != "tensor":
            bases = ("tensor",)
        elif sizes["fsdp"] > 1:
            bases = ("sharded",)
        else:
            bases = ("replicated",) if math.prod(sizes.values()) == 1 else ("replicated", "sharded")
    ways = []
    for base in bases:
        # Kept activations would keep the gathered weights of all layers.
        recomputes = ("none", "named", "full") if base == "replicated" else ("named", "full")
        if scale.recompute != "auto":
            recomputes = (scale.recompute,)
        elif config.remat:
            recomputes = ("full",)
        ways += [(base, recompute) for recompute in recomputes]
    return ways


def _check_heads(config: LlavaConfig, tensor: int) -> None:
    """Refuses heads that cannot be split."""
    heads = config.kv_heads
    if heads % tensor == 0:
        return
    fitting = [str(size) for size in range(1, heads + 1) if heads % size == 0]
    raise ConfigError(
        "the model's heads cannot be split", where=f"scale.mesh: tensor {tensor}",
        why=f"it does not divide the {heads} key and value heads",
        remedy=f"--set scale.mesh.tensor={fitting[-1]}" if len(fitting) == 1 else f"choose one of {', '.join(fitting)}",
    )  # fmt: skip


def _memory() -> float:
    """Bytes of a device that can be planned with; infinite where it does not say, as a CPU does not."""
    # Devices of other processes do not say either.
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    return USABLE * stats.get("bytes_limit", math.inf)


def _base_bytes(config: LlavaConfig, bits: int) -> int:
    leaves = jax.tree.leaves(template_of(config, bits).params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
