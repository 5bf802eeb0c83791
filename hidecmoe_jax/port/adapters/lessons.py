"""Adapters as the archived lessons of a run: the method that answers as they did, and its experts on a base of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.methods.gates.anchors import NamedGate, clip_widths
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.moelora import MoeLora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.llava import Model, model_sites, projector_leaves
from hidecmoe_jax.port.adapters.peft import LoraWeights, with_rank
from hidecmoe_jax.port.adapters.read import Adapter
from hidecmoe_jax.storage.arrays import Groups

Leaves = dict[str, np.ndarray]


def check_base(adapter: Adapter, digest: str, model: Model) -> None:
    """Refuses an adapter of another base: by the SHA-256 that it records, and by every shape.

    Raises:
      CheckpointError: names the number that differs and the config field behind it.
    """
    # Adapters of other tools record no SHA-256, so only their shapes can be compared.
    if adapter.base not in (None, digest):
        refuse_base(adapter.path, adapter.base, digest)
    config = model.config
    sites = model_sites(config)
    for lora in adapter.experts:
        if lora.layers > config.layers:
            _misfit(adapter, "layers", f"{lora.layers} decoder layers", f"{config.layers} (num_hidden_layers)")
        for site in lora.sites:
            width = lora.a[site][0].shape[0]
            out = lora.b[site][0].shape[1]
            base_width, base_out = sites[site]
            if (width, out) != (base_width, base_out):
                _misfit(adapter, site, f"[{width} -> {out}]", f"{base_width} -> {base_out}")
    _check_projector(adapter, projector_leaves(model))
    if not adapter.anchors:
        return
    widths = clip_widths(model)
    for kind, width in zip(("image", "text"), widths, strict=True):
        anchor_width = adapter.anchors[kind].shape[1]
        if anchor_width != width:
            field = "projection_dim" if kind == "image" else "text hidden_size"
            _misfit(adapter, f"{kind} anchors", f"width {anchor_width}", f"{width} (CLIP's {field})")


def _check_projector(adapter: Adapter, base_leaves: Mapping[str, Any]) -> None:
    """An adapter has the whole projector, in the base's shapes, or none of it."""
    for path, leaf in adapter.projector.items():
        expected = base_leaves[path].shape
        if leaf.shape != expected:
            _misfit(adapter, path, str(list(leaf.shape)), str(list(expected)))
    if adapter.projector and set(adapter.projector) != set(base_leaves):
        count = len(adapter.projector)
        base_count = len(base_leaves)
        _misfit(adapter, "projector", f"{count} of its leaves", f"all {base_count}")


def refuse_base(where: Any, recorded: str, digest: str) -> NoReturn:
    """Raises CheckpointError: the SHA-256 of the base is not the recorded one."""
    raise CheckpointError(
        "the adapter was trained on another base model",
        where=str(where),
        why=f"the SHA-256 of its base is {recorded[:12]}..., this base has {digest[:12]}...",
        remedy="give the base model it was trained on, in the same dtype",
    )


def _misfit(adapter: Adapter, what: str, actual: str, expected: str) -> NoReturn:
    raise CheckpointError(
        "the adapter does not fit the base model",
        where=f"{adapter.path}: {what}",
        why=f"found {actual}, the base has {expected}",
        remedy="give the base model it was trained on",
    )


def lessons_of(adapters: list[Adapter], model: Model) -> tuple[Method, list[Groups]]:
    """The method that answers as the adapters did, and the archive of every lesson.

    Raises:
      ConfigError: adapters that cannot be in one run.
    """
    names = [adapter.kind for adapter in adapters]
    kinds = set(names)
    # Only plain LoRAs can be several: a HiDe or MoELoRA adapter is a whole run.
    several_others = len(adapters) > 1 and kinds != {"lora"}
    if len(kinds) > 1 or several_others:
        folders = [str(adapter.path) for adapter in adapters]
        listed = ", ".join(names)
        raise ConfigError(
            "these adapters cannot stand in one run",
            where=", ".join(folders),
            why=f"kinds: {listed}; several LoRAs can, or one HiDe adapter, which holds all its tasks",
            remedy="adopt them one by one; of HiDe give the folder of the last task",
        )
    first = adapters[0]
    loras: list[LoraWeights] = []
    for adapter in adapters:
        loras += adapter.experts
    projector = _common_projector(adapters)
    shape = lora_shape(loras, adapters[-1].dropout)
    experts = [bank_leaves(lora, shape, model) for lora in loras]
    memory: list[Leaves] = [{}] * len(experts)  # plain LoRA has neither gate nor routers
    tuned: dict[str, Any] = {"lora": shape, "train_projector": bool(projector)}
    if kinds == {"moelora"}:
        method: Method = MoeLora(experts=len(experts), **tuned)
        # All its experts and its routers are one lesson.
        experts = [_pool(experts)]
        memory = [_router_leaves(first, model)]
    elif kinds == {"hide"}:
        method = Routed(name="hide", **tuned)
        # HiDe's adapter has one expert a task, so experts are counted as tasks.
        tasks = range(len(experts))
        memory = [_anchor_leaves(first.anchors, task) for task in tasks]
    elif len(adapters) > 1:
        method = Routed(name="lora", growth="per_task", expand="all", gate=NamedGate(), **tuned)
    else:
        method = Routed(name="lora", growth="shared", **tuned)
    archive: list[Groups] = []
    for expert_leaves, memory_leaves in zip(experts, memory, strict=True):
        archive.append({"experts": expert_leaves, "shared": projector, "memory": memory_leaves})
    return method, archive


def _common_projector(adapters: list[Adapter]) -> Leaves:
    """The projector of all adapters; raises ConfigError if they differ, because a run has one."""
    first = adapters[0]
    expected = trees.digests(first.projector)
    for adapter in adapters[1:]:
        if trees.digests(adapter.projector) != expected:
            raise ConfigError(
                "these adapters come with different projectors",
                where=f"{first.path} and {adapter.path}",
                why="a run has one projector, which all its tasks share",
                remedy="adopt them as runs of their own",
            )
    projector = {}
    for path, leaf in first.projector.items():
        # A kernel here is a transposed view of the adapter's tensor.
        projector[path] = np.ascontiguousarray(leaf)
    return projector


def lora_shape(loras: Sequence[LoraWeights], dropout: float) -> Lora:
    """The largest rank and all sites of the adapters, with the first one's scale."""
    rank = 0
    sites: set[str] = set()
    for lora in loras:
        rank = max(rank, lora.rank)
        sites |= set(lora.sites)
    # A bank has one rank and one set of sites; what an adapter lacks of them becomes zeros.
    ordered = tuple(site for site in Lora.sites if site in sites)
    # The scale of a Lora is alpha / rank.
    alpha = loras[0].scale * rank
    return Lora(rank, alpha, dropout, ordered)


def bank_leaves(lora: LoraWeights, shape: Lora, model: Model) -> Leaves:
    """An expert as the ledger archives it: a/SITE [L, D, 1, R] and b/SITE [L, 1, R, F], float32.

    Ranks are padded with zeros; a scale other than the bank's is multiplied into b.
    """
    lora = with_rank(lora, shape.rank)
    layers = model.config.layers
    bank_scale = shape.alpha / shape.rank
    ratio = np.float32(lora.scale / bank_scale)
    leaves: Leaves = {}
    for site, (width, out) in shape.shapes(model).items():
        a_LDSR = np.zeros((layers, width, 1, shape.rank), np.float32)
        b_LSRF = np.zeros((layers, 1, shape.rank, out), np.float32)
        # An adapter may end before the last layer; b stays zero above, so nothing is added.
        adapted_layers = lora.layers if site in lora.a else 0
        for layer in range(adapted_layers):
            a_DR = lora.a[site][layer]
            b_RF = lora.b[site][layer]
            if ratio != 1:
                b_RF = b_RF * ratio
            a_LDSR[layer, :, 0] = a_DR
            b_LSRF[layer, 0] = b_RF
        leaves[f"a/{site}"] = a_LDSR
        leaves[f"b/{site}"] = b_LSRF
    return dict(sorted(leaves.items()))  # in the ledger's order


def _pool(experts: list[Leaves]) -> Leaves:
    """Experts side by side in the slot axis, which is axis 2 of a and axis 1 of b."""
    slot_axis = {"a": 2, "b": 1}
    pool = {}
    for path in experts[0]:
        leaves = [expert[path] for expert in experts]
        factor = path[0]  # the a or b of a/SITE, b/SITE
        pool[path] = np.concatenate(leaves, slot_axis[factor])
    return pool


def _router_leaves(adapter: Adapter, model: Model) -> Leaves:
    """MoELoRA's routers as its ledger has them: router/SITE [L, D, E]; layers without experts are zeros."""
    leaves = {}
    for site, layers in adapter.routers.items():
        shape_DE = layers[0].shape
        router_LDE = np.zeros((model.config.layers, *shape_DE), np.float32)
        router_LDE[: len(layers)] = np.stack(layers)
        leaves[f"router/{site}"] = router_LDE
    return leaves


def _anchor_leaves(anchors: Mapping[str, np.ndarray], task: int) -> Leaves:
    """One task's anchors as sums over one sample; the gate only uses their direction."""
    count = np.asarray(1, np.int32)
    return {
        "image_NE": anchors["image"][task],
        "image_count_N": count,
        "text_ND": anchors["text"][task],
        "text_count_N": count,
    }
