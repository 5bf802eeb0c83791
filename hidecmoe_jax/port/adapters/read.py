"""Adapters of other tools, read into plain factors: PEFT LoRA, HiDe-LLaVA (also MCITlib's), and CoIN's MoELoRA.

All three store A and B of every adapted linear; they differ in the number of pairs, in their scale, and in what else
they store. PEFT divides alpha by the rank (or by its root, `use_rslora`). HiDe and MoELoRA split one rank over E
experts, so a pair has rank r / E, while the scale still divides by the whole r: alpha / r. HiDe adds CLIP anchors and
the projector in `non_lora_trainables` and never uses the routers that it stores; MoELoRA answers with its routers.
Every tensor is used exactly once or left out under a named pattern (`sorting.py`); nothing pickled is opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.models.llama import SITES
from hidecmoe_jax.port.adapters.config import (
    OF_EXPERTS,
    ONE_EXPERT,
    ONE_SCALE,
    above_zero,
    dropout,
    of_modules,
    read_config,
    require,
    require_saved_modules,
)
from hidecmoe_jax.port.adapters.peft import BASE_KEY, CONFIG, RANK_KEY, TASK_KEY, WEIGHTS, LoraWeights, with_rank
from hidecmoe_jax.port.adapters.sorting import SINGLE, AdapterTensors, Pair, SiteLayer, sort_tensors
from hidecmoe_jax.port.checkpoints.pickled import of_trainer, refuse_pickles, safe_name
from hidecmoe_jax.port.checkpoints.source import open_source
from hidecmoe_jax.storage.manifest import FREE, verify
from hidecmoe_jax.storage.manifest import NAME as MANIFEST
from hidecmoe_jax.storage.tensor_files import header_size

Kind = Literal["lora", "hide", "moelora"]
Pairs = Mapping[SiteLayer, Pair]
DEAD_ROUTER = "HiDe stores a router for every linear and never uses it"


@dataclass(frozen=True)
class Adapter:
    """Content of an adapter folder.

    Attributes:
      kind: `lora` (one expert), `hide` (one expert a task), or `moelora` (experts that every token mixes).
      experts: in order; each with its own scale. The projector, if there is one, is that of the last one.
      routers: site -> one array [D, E] a layer, of MoELoRA.
      anchors: `image` and `text`, float32 [N, width], of HiDe.
      dropout: of the experts' input during training.
      base: SHA-256 of the base it was trained on, if recorded.
      base_name: the adapter's name of its base, if recorded.
      task: its task's name, if recorded.
      notes: what was left out, with the reason.
    """

    path: Path
    kind: Kind
    experts: tuple[LoraWeights, ...]
    routers: dict[str, list[np.ndarray]] = field(default_factory=dict)
    anchors: dict[str, np.ndarray] = field(default_factory=dict)
    dropout: float = 0.0
    base: str | None = None
    base_name: str | None = None
    task: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def projector(self) -> dict[str, np.ndarray]:
        """Leaves of the projector by path; empty if it was not trained."""
        return self.experts[-1].projector


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter folder of any of the three kinds.

    Raises:
      CheckpointError: no such folder, pickled or damaged files, a tensor that is unknown, missing, mis-shaped or not
        finite; names the tensor.
      ConfigError: an adapter that is more than a pair of factors (DoRA, other modules), or a setting that is unknown.
    """
    folder = Path(folder)
    # Adapters of other tools have none.
    if (folder / MANIFEST).is_file():
        verify(folder, remedy="export it again, or copy its folder anew; nothing of it was loaded", exempt=FREE)
    present = sorted(folder.iterdir()) if folder.is_dir() else []
    # A pickle is ignored if the folder also has the safetensors file of the same weights.
    unconverted = []
    for file in present:
        converted = folder / safe_name(file.name)
        if not converted.is_file():
            unconverted.append(file)
    refuse_pickles(unconverted, folder)
    source = open_source(folder, "adapter")
    config = read_config(folder)
    ignored = []
    for file in present:
        if of_trainer(file.name):
            ignored.append(f"{file.name} left alone: what a trainer keeps for itself")
    tensors = sort_tensors(folder, source.tensors, tuple(ignored))
    require_saved_modules(config, has_projector=bool(tensors.projector), folder=folder)
    # Other tools may give the file another name.
    weights = folder / WEIGHTS
    if not weights.is_file():
        weights = source.files[0]
    header = _header(weights)
    common: dict[str, Any] = {
        "path": folder,
        "base_name": config.get("base_model_name_or_path"),
        "base": header.get(BASE_KEY),
        "task": header.get(TASK_KEY),
        "dropout": dropout(config, folder),
    }
    if tensors.experts <= {SINGLE}:
        lora = _read_peft(tensors, config, header.get(RANK_KEY), folder)
        return Adapter(kind="lora", experts=(lora,), notes=tensors.notes, **common)
    return _read_split(tensors, config, folder, common)


def _header(file: Path) -> dict[str, str]:
    """Metadata in the header of a safetensors file."""
    header_size(file)
    try:
        with safe_open(file, "np") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError("a weight file is damaged", where=str(file), why=str(error)) from error


def _assemble(
    pairs: Pairs, scales: Mapping[SiteLayer, float], scale: float, projector: Mapping[str, np.ndarray]
) -> LoraWeights:
    """One LoRA of one rank and scale; absent layers become zeros, other scales are multiplied into b."""
    # Layers without tensors were not adapted (PEFT's layers_to_transform).
    layers = 0
    rank = 0
    for (_, layer), (a_DR, _) in pairs.items():
        layers = max(layers, layer + 1)
        rank = max(rank, a_DR.shape[1])
    a: dict[str, list[np.ndarray]] = {}
    b: dict[str, list[np.ndarray]] = {}
    for site, (width, out) in _widths(pairs).items():
        a[site] = [np.zeros((width, rank), np.float32) for _ in range(layers)]
        b[site] = [np.zeros((rank, out), np.float32) for _ in range(layers)]
    for (site, layer), (a_DR, b_RF) in pairs.items():
        pair_rank = a_DR.shape[1]
        # One LoRA has one scale, so that of a single module goes into its b.
        ratio = np.float32(scales[site, layer] / scale)
        if ratio != 1:
            b_RF = b_RF * ratio
        a[site][layer][:, :pair_rank] = a_DR
        b[site][layer][:pair_rank] = b_RF
    return LoraWeights(a, b, scale, dict(projector))


def _widths(pairs: Pairs) -> dict[str, tuple[int, int]]:
    """Input and output width of every site, in the decoder's order; raises CheckpointError if layers differ."""
    widths: dict[str, tuple[int, int]] = {}
    for (site, layer), (a_DR, b_RF) in pairs.items():
        width = a_DR.shape[0]
        out = b_RF.shape[1]
        first_width, first_out = widths.setdefault(site, (width, out))
        if (width, out) != (first_width, first_out):
            why = f"layer {layer}: [{width} -> {out}], elsewhere {first_width} -> {first_out}"
            raise CheckpointError("layers of an adapter differ in width", where=site, why=why)
    ordered = sorted(widths, key=SITES.index)
    return {site: widths[site] for site in ordered}


def _read_peft(
    tensors: AdapterTensors, config: Mapping[str, Any], header_rank: str | None, folder: Path
) -> LoraWeights:
    """PEFT's LoRA; `rank_pattern` and `alpha_pattern` give some modules numbers of their own."""
    if not tensors.factors:
        raise CheckpointError(
            "the adapter holds no experts", where=str(folder), why="no lora_A or lora_B among tensors"
        )
    if tensors.anchors or tensors.routers:
        _contradiction(folder, "anchors or routers, but no loraA.0, loraA.1, ...")
    if str(config.get("peft_type")).startswith(OF_EXPERTS):
        _contradiction(folder, f"peft_type {config['peft_type']!r}, but no loraA.0, loraA.1, ...")
    require(config, ONE_EXPERT, folder)
    pairs = tensors.pairs(SINGLE, folder)
    where = str(folder / CONFIG)
    rank = above_zero(config, "r", where)
    alpha = above_zero(config, "lora_alpha", where)
    ranks = of_modules(config, "rank_pattern", tensors.modules, folder)
    alphas = of_modules(config, "alpha_pattern", tensors.modules, folder)
    # Rank-stabilised LoRA divides by the root of the rank (arXiv 2312.03732).
    divisor = math.sqrt if config.get("use_rslora") else float
    scales = {}
    for (site, layer), (a_DR, _) in pairs.items():
        expected = ranks.get((site, layer), rank)
        actual = a_DR.shape[1]
        if actual != expected:
            raise CheckpointError(
                "an adapter's rank is not the one it says",
                where=f"{folder}: layer {layer}, {site}",
                why=f"tensors have rank {actual}, {CONFIG} says {expected:g}, which its scale is computed from",
                remedy="get the adapter_config.json it was saved with",
            )
        module_alpha = alphas.get((site, layer), alpha)
        scales[site, layer] = module_alpha / divisor(expected)
    scale = alpha / divisor(rank)
    lora = _assemble(pairs, scales, scale, tensors.projector)
    return _without_padding(lora, header_rank, folder)


def _without_padding(lora: LoraWeights, header_rank: str | None, folder: Path) -> LoraWeights:
    """An adapter of ours at the rank in its header, without the zeros that padded it for vLLM."""
    if header_rank is None:
        return lora
    rank = 0
    if re.fullmatch("[0-9]{1,6}", header_rank):
        rank = int(header_rank)
    try:
        if not 1 <= rank <= lora.rank:
            raise ValueError(f"expected a whole number from 1 to {lora.rank}")
        return with_rank(lora, rank)
    except ValueError as error:
        raise CheckpointError(
            "the adapter's header contradicts its tensors",
            where=f"{folder / WEIGHTS}: {RANK_KEY}",
            why=f"found {header_rank!r}: {error}",
            remedy="export it again, or get a whole copy",
        ) from error


def _read_split(tensors: AdapterTensors, config: Mapping[str, Any], folder: Path, common: Mapping[str, Any]) -> Adapter:
    """HiDe's and MoELoRA's: E pairs at every linear that share one rank (E = `expert_num`)."""
    if SINGLE in tensors.experts:
        _contradiction(folder, "both lora_A.weight and lora_A.loraA.0.weight")
    require(config, ONE_SCALE, folder)
    loras = _split_experts(tensors, config, folder)
    current = config.get("cur_task")
    # Both tools write the same factors; only HiDe counts tasks and stores anchors.
    if tensors.anchors or current is not None:
        return _read_hide(tensors, loras, current, folder, common)
    routers = {}
    for site in loras[0].sites:
        routers[site] = _routers_of(tensors, site, loras, folder)
    return Adapter(kind="moelora", experts=tuple(loras), routers=routers, notes=tensors.notes, **common)


def _routers_of(tensors: AdapterTensors, site: str, loras: list[LoraWeights], folder: Path) -> list[np.ndarray]:
    """Routers of a site, one [D, E] a layer; raises CheckpointError if one is missing or mis-shaped."""
    first = loras[0]
    width = first.a[site][0].shape[0]
    shape = (len(loras), width)
    routers = []
    for layer in range(first.layers):
        router_ED = tensors.routers.get((site, layer))
        if router_ED is None or router_ED.shape != shape:
            _missing(folder, f"layer {layer}, {site}: lora_router {list(shape)}")
        routers.append(router_ED.T)
    return routers


def _split_experts(tensors: AdapterTensors, config: Mapping[str, Any], folder: Path) -> list[LoraWeights]:
    """The experts, each of rank r / E, all with the scale alpha / r."""
    count = 1 + max(tensors.experts)  # a missing number in between is an error below
    where = str(folder / CONFIG)
    stated = config.get("expert_num", count)
    rank = above_zero(config, "r", where)
    alpha = above_zero(config, "lora_alpha", where)
    if stated != count:
        raise CheckpointError(
            "the number of experts is not the one the adapter says",
            where=str(folder),
            why=f"tensors hold {count}, {CONFIG} says expert_num {stated}",
            remedy="get a whole copy of both files",
        )
    # The tool divides one rank among its experts, while the scale divides by the whole rank.
    scale = alpha / rank
    loras = []
    for number in range(count):
        pairs = tensors.pairs(number, folder)
        if not pairs:
            _missing(folder, f"expert {number}: lora_A.loraA.{number}.weight, lora_B.loraB.{number}.weight")
        for (site, layer), (a_DR, _) in pairs.items():
            expert_rank = a_DR.shape[1]
            if expert_rank * count != rank:
                raise CheckpointError(
                    "an expert's rank is not its part of the whole",
                    where=f"{folder}: layer {layer}, {site}",
                    why=f"{count} experts of rank {expert_rank}, {CONFIG} says r {rank:g} for all of them together; "
                    f"the scale {alpha:g} / r depends on it",
                    remedy="get the adapter_config.json it was saved with",
                )
        scales = dict.fromkeys(pairs, scale)
        loras.append(_assemble(pairs, scales, scale, tensors.projector))
    return loras


def _read_hide(
    tensors: AdapterTensors, loras: list[LoraWeights], current: Any, folder: Path, common: Mapping[str, Any]
) -> Adapter:
    """Experts and anchors of the tasks up to `cur_task`; later slots were never trained."""
    if not tensors.anchors:
        _missing(folder, "image_anchors.0, text_anchors.0, ... (they are in non_lora_trainables)")
    if type(current) is not int or not 0 <= current < len(loras):
        raise ConfigError(
            "the adapter does not say which task was learned last",
            where=f"{folder / CONFIG}: cur_task",
            why=f"found {current!r}, expected 0..{len(loras) - 1}",
            remedy="get the adapter_config.json it was saved with",
        )
    tasks = current + 1
    anchors = {}
    for kind in ("image", "text"):
        anchors[kind] = _anchors_of(tensors, kind, tasks, folder)
    notes = list(tensors.notes)
    if len(loras) > tasks:
        last = len(loras) - 1
        notes.append(f"experts {tasks}..{last} left out: cur_task is {current}, they were never trained")
    if tensors.routers:
        count = len(tensors.routers)
        notes.append(f"{count} tensors left out: {DEAD_ROUTER}")
    experts = tuple(loras[:tasks])
    return Adapter(kind="hide", experts=experts, anchors=anchors, notes=tuple(notes), **common)


def _anchors_of(tensors: AdapterTensors, kind: str, tasks: int, folder: Path) -> np.ndarray:
    """Anchors of one kind, float32 [N, width]."""
    rows = []
    for task in range(tasks):
        anchor = tensors.anchors.get((kind, task))
        if anchor is None:
            _missing(folder, f"{kind}_anchors.{task}")
        rows.append(anchor.reshape(-1))
    widths = [row.size for row in rows]
    if len(set(widths)) > 1:
        listed = ", ".join(map(str, widths))
        why = f"widths {listed}"
        raise CheckpointError("anchors of one kind differ in width", where=f"{folder}: {kind}_anchors", why=why)
    return np.stack(rows)


def _missing(folder: Path, what: str) -> NoReturn:
    raise CheckpointError(
        "a tensor of the adapter is missing",
        where=f"{folder}: {what}",
        why="no tensor of that name and shape",
        remedy="copy the whole folder, non_lora_trainables included (`hidecmoe unpickle` makes safetensors of it)",
    )


def _contradiction(folder: Path, what: str) -> NoReturn:
    raise CheckpointError(
        "the folder mixes adapters of several kinds",
        where=str(folder),
        why=f"it holds {what}",
        remedy="give a folder with one adapter",
    )
