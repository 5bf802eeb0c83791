"""The section `scale` of a config: on which devices a run works, and where the frozen base lies on them.

It is no part of a run's identity: a run goes on on another machine, and its numbers agree up to rounding. Without the
section all devices of the machine are used; on one device the programs are those without a layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.layout import Layout, Placement, Recompute, layout_of
from hidecmoe_jax.core.sharding import MESH_AXES, make_mesh
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import model_template

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
      answer: the same for features and answers, where `sharded` gathers weights at every token.
      mesh: devices by axis; `auto` placements follow from it where it has `fsdp` or `tensor`.
      recompute: what the backward pass computes again: all but the named activations of a layer, or everything. `auto`
        follows `base.remat`, except that a sharded base never keeps everything.
    """

    base: Literal["auto", "replicated", "sharded", "tensor"] = "auto"
    answer: Literal["auto", "replicated", "sharded", "tensor"] = "auto"
    mesh: MeshSizes = MeshSizes()
    recompute: Literal["auto", "named", "full"] = "auto"


@dataclass(frozen=True)
class Choice:
    """What `auto` came to: devices along data, fsdp and tensor, the two placements, and what is computed again."""

    mesh: tuple[int, int, int]
    base: Placement
    answer: Placement
    recompute: Recompute


def choose(scale: Scale, config: LlavaConfig, *, devices: int, memory: float = math.inf) -> Choice | None:
    """Fills in what a section leaves to choose; None where one device does everything as it always did.

    The base stays whole on every device where it fits, and is split where not.

    Args:
      memory: bytes of one device that can be planned with.

    Raises:
      ConfigError: a mesh that does not fit the devices or the model, or a base that fits no placement.
    """
    sizes = _mesh_sizes(scale, config, devices, memory)
    count = math.prod(sizes.values())
    if count == 1 and scale.recompute == "auto":
        return None
    _check_heads(config, sizes["tensor"])
    base = _base_placement(scale, config, sizes, memory)
    answer = _answer_placement(scale, config, sizes, memory)
    recompute = _recompute(scale, config, base if count > 1 else "replicated")
    return Choice(tuple(sizes.values()), base, answer, recompute)


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


def _mesh_sizes(scale: Scale, config: LlavaConfig, devices: int, memory: float) -> dict[str, int]:
    """Devices by axis, with -1 and an automatic `tensor` filled in."""
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
    is_short = scale.answer == "auto" and _while_answering(config) > memory
    wants_tensor = is_short or "tensor" in (scale.base, scale.answer)
    if wants_tensor and sizes["tensor"] == 1 and scale.mesh.data == -1:
        shared = math.gcd(sizes["data"], config.kv_heads, MOST_TENSOR)
        sizes |= {"data": sizes["data"] // shared, "tensor": shared}
    return sizes


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


def _base_bytes(config: LlavaConfig) -> int:
    leaves = jax.tree.leaves(model_template(config).params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _while_answering(config: LlavaConfig) -> int:
    """Bytes of a base that is whole while answering: its own, and those of the copy that experts are folded into."""
    return 2 * _base_bytes(config)


def _base_placement(scale: Scale, config: LlavaConfig, sizes: dict[str, int], memory: float) -> Placement:
    """Where the base lies while training."""
    if scale.base != "auto":
        return scale.base
    if scale.mesh.tensor > 1 and scale.answer != "tensor":
        return "tensor"
    if sizes["fsdp"] > 1:
        return "sharded"
    base = _base_bytes(config)
    # Half of the memory is left for activations, experts and moments, and for the folded copy while answering.
    if base <= memory / 2:
        return "replicated"
    count = math.prod(sizes.values())
    if base / count <= memory / 2:
        return "sharded"
    gib = 2**30
    raise ConfigError(
        "the base fits no placement on these devices", where="scale.base",
        why=f"{base / gib:.1f} GiB of weights, {count} devices with {memory / gib:.1f} GiB each that can be used",
        remedy=f"take at least {math.ceil(2 * base / memory)} such devices, or `base.param_dtype: bfloat16`",
    )  # fmt: skip


def _answer_placement(scale: Scale, config: LlavaConfig, sizes: dict[str, int], memory: float) -> Placement:
    """Where the base lies while answering."""
    if scale.answer != "auto":
        return scale.answer
    if _while_answering(config) <= memory:
        return "replicated"
    return "tensor" if sizes["tensor"] > 1 else "sharded"


def _recompute(scale: Scale, config: LlavaConfig, base: Placement) -> Recompute:
    """What the backward pass computes again."""
    if scale.recompute != "auto":
        return scale.recompute
    if config.remat:
        return "full"
    return "none" if base == "replicated" else "named"
