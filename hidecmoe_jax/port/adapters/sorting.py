"""Tensors of an adapter folder, sorted by what they are: factors, routers, anchors, projector.

Every tensor is used exactly once or counted under a pattern of `LEFT_OUT`; unknown ones are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.models.llama import SITES
from hidecmoe_jax.port.checkpoints import names
from hidecmoe_jax.port.checkpoints.source import Tensor

_SITE = r"(?:.*\.)?layers\.(\d{1,3})\.(?:self_attn|mlp)\.(\w+)"
# base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight, or with numbered experts
# model.layers.3.mlp.up_proj.lora_A.default.loraA.2.mlp.weight
_FACTOR = re.compile(_SITE + r"\.lora_([AB])(?:\.default)?(?:\.lora[AB]\.(\d{1,3})(?:\.mlp)?)?\.weight")
# model.layers.3.mlp.up_proj.lora_router.default.weight
_ROUTER = re.compile(_SITE + r"\.lora_router(?:\.default)?\.weight")
# base_model.model.image_anchors.2
_ANCHOR = re.compile(r"(?:.*\.)?(image|text)_anchors\.(\d{1,3})")
# base_model.model.model.mm_projector.0.weight
_PROJECTOR = re.compile(r"(?:.*\.)?((?:mm|multi_modal)_projector\..+)")
LEFT_OUT = {
    r"(?:.*\.)?(image|text)_boundary\.\d+": "how many samples an anchor was made of; only its direction counts",
    r"(?:.*\.)?lora_task_embedding(\..+)?": "a table that no forward pass of HiDe or CoIN reads",
}
"""Pattern -> the reason why such tensors are not needed."""

SiteLayer = tuple[str, int]
"""An adapted linear: its site and the number of its layer."""

Pair = tuple[np.ndarray, np.ndarray]
"""Factors a [D, R] and b [R, F] of one linear."""

SINGLE = -1
"""Expert number of factors that are not numbered (PEFT's LoRA)."""


@dataclass(frozen=True)
class AdapterTensors:
    """Float32 arrays of a folder.

    Attributes:
      factors: by (site, layer, "A" or "B", expert number or `SINGLE`), as in the file: A [R, D], B [F, R].
      modules: names of the linears in the model that was trained, by (site, layer).
      routers: by (site, layer), float32 [E, D].
      anchors: mean CLIP features [E], by ("image" or "text", task).
      projector: leaves by path, in our orientation.
      notes: what was left out.
    """

    factors: dict[tuple[str, int, str, int], np.ndarray] = field(default_factory=dict)
    modules: dict[SiteLayer, str] = field(default_factory=dict)
    routers: dict[SiteLayer, np.ndarray] = field(default_factory=dict)
    anchors: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    projector: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def experts(self) -> set[int]:
        """Numbers of the experts that have factors."""
        return {expert for *_, expert in self.factors}

    def pairs(self, expert: int, folder: Path) -> dict[SiteLayer, Pair]:
        """Factors (a [D, R], b [R, F]) of one expert by (site, layer); raises CheckpointError if they do not match."""
        pairs: dict[SiteLayer, Pair] = {}
        for site, layer, _, number in sorted(self.factors):
            if number != expert or (site, layer) in pairs:
                continue
            where = f"{folder}: layer {layer}, {site}"
            if expert != SINGLE:
                where += f", expert {expert}"
            if site not in SITES:
                known = ", ".join(SITES)
                raise CheckpointError("an adapter at an unknown linear", where=where, why=f"known: {known}")
            a = self.factors.get((site, layer, "A", expert))
            b = self.factors.get((site, layer, "B", expert))
            if a is None or b is None:
                raise CheckpointError("an adapter has one factor without the other", where=where)
            # Still in the file's orientation: a [R, D], b [F, R].
            are_matrices = a.ndim == 2 and b.ndim == 2
            if not are_matrices or a.shape[0] != b.shape[1]:
                shape_a = list(a.shape)
                shape_b = list(b.shape)
                why = f"lora_A {shape_a}, lora_B {shape_b}; expected [rank, in] and [out, rank]"
                raise CheckpointError("factors of an adapter do not fit each other", where=where, why=why)
            pairs[site, layer] = (a.T, b.T)
        return pairs


def sort_tensors(folder: Path, tensors: Mapping[str, Tensor], notes: tuple[str, ...]) -> AdapterTensors:
    """Reads and sorts all tensors of a folder; `notes` are put behind those on tensors left out.

    Raises:
      CheckpointError: an unknown tensor, one that is not finite, or two with one meaning that differ.
    """
    tables = AdapterTensors()
    left_out: Counter[str] = Counter()
    unknown: list[str] = []
    for key, tensor in tensors.items():
        if _sort_one(folder, key, tensor, tables):
            continue
        reason = _reason_left_out(key)
        if reason is None:
            unknown.append(key)
        else:
            left_out[reason] += 1
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors of the adapter are unknown",
            where=f"{folder}: {unknown[0]}",
            why="experts are at the decoder's linears "
            f"({', '.join(SITES)}), beside them only the projector may be trained; unknown: {', '.join(unknown[:6])}",
            remedy="merge the adapter into its base with its own tool, and convert the merged model",
        )
    counts = []
    for reason, count in left_out.items():
        counts.append(f"{count} tensors left out: {reason}")
    return replace(tables, notes=(*counts, *notes))


def _sort_one(folder: Path, key: str, tensor: Tensor, tables: AdapterTensors) -> bool:
    """Puts a tensor into the table that its name belongs to; False where it belongs to none."""
    # Adapters of the vision tower have the same module names, and are not supported.
    factor = None if "vision" in key else _FACTOR.fullmatch(key)
    if factor:
        layer, site, kind, expert = factor.groups()
        layer_number = int(layer)
        expert_number = SINGLE if expert is None else int(expert)
        _store(tables.factors, (site, layer_number, kind, expert_number), tensor, folder)
        module, _, _ = key.rpartition(".lora_")
        tables.modules[site, layer_number] = module.removeprefix("base_model.model.")
        return True
    if router := _ROUTER.fullmatch(key):
        layer, site = router.groups()
        _store(tables.routers, (site, int(layer)), tensor, folder)
        return True
    if anchor := _ANCHOR.fullmatch(key):
        kind, task = anchor.groups()
        _store(tables.anchors, (kind, int(task)), tensor, folder)
        return True
    projector = _PROJECTOR.fullmatch(_plain_name(key))
    if projector is None:
        return False
    target = names.place(projector[1], "projector")
    if target is None:
        return False
    rule = target.rule
    _store(tables.projector, rule.leaf, tensor, folder, rule.transform)
    return True


def _reason_left_out(key: str) -> str | None:
    """Why a tensor of this name is not needed; None where it is unknown."""
    for pattern, reason in LEFT_OUT.items():
        if re.fullmatch(pattern, key):
            return reason
    return None


def _plain_name(key: str) -> str:
    """The name without the infix of modules that PEFT saves whole."""
    return re.sub(r"\.modules_to_save(\.default)?", "", key)


def _store(table: dict, key: Any, tensor: Tensor, folder: Path, transform: names.Transform = "same") -> None:
    """Reads a tensor into a table; a second one under the same key must be equal."""
    array = np.asarray(tensor.read()).astype(np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(
            "a weight of the adapter is not finite",
            where=f"{folder}: {tensor.key}",
            why="it holds NaN or infinity",
            remedy="train it again, or get a whole copy",
        )
    array = names.transformed(array, transform)
    # HiDe and CoIN register one tensor under two names, `loraA.0.weight` and `loraA.0.mlp.weight`.
    if key in table and not np.array_equal(table[key], array):
        raise CheckpointError(
            "two tensors of the adapter mean the same and differ",
            where=f"{folder}: {tensor.key}",
            remedy="remove the one that does not belong",
        )
    table[key] = array
