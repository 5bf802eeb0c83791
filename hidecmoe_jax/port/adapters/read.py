"""Adapters of other tools, read into plain factors: PEFT LoRA, HiDe-LLaVA (MCITlib's too), and CoIN's MoELoRA.

All three keep A and B of every adapted linear; they differ in how many pairs there are, in what scales them, and in
what lies beside. PEFT divides alpha by the rank (or by its root, `use_rslora`). HiDe and MoELoRA split one rank over E
experts, so a pair has rank r / E, while the scale still divides by the whole r: alpha / r. HiDe brings CLIP anchors and
the projector in `non_lora_trainables` and never uses the routers that it stores; MoELoRA's routers are what it answers
with. Every tensor is consumed exactly once or named in `LEFT_OUT`; nothing pickled is opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.models.llama import SITES
from hidecmoe_jax.port.adapters.config import ONE_SCALE, above_zero, dropout, of_modules, read_config, require
from hidecmoe_jax.port.adapters.peft import BASE_KEY, CONFIG, RANK_KEY, TASK_KEY, WEIGHTS, LoraWeights, with_rank
from hidecmoe_jax.port.checkpoints import names
from hidecmoe_jax.port.checkpoints.pickled import of_trainer, refuse_pickles, safe_name
from hidecmoe_jax.port.checkpoints.source import open_source

Kind = Literal["lora", "hide", "moelora"]
_SITE = r"(?:.*\.)?layers\.(\d{1,3})\.(?:self_attn|mlp)\.(\w+)"
_FACTOR = re.compile(_SITE + r"\.lora_([AB])(?:\.default)?(?:\.lora[AB]\.(\d{1,3})(?:\.mlp)?)?\.weight")
_ROUTER = re.compile(_SITE + r"\.lora_router(?:\.default)?\.weight")
_ANCHOR = re.compile(r"(?:.*\.)?(image|text)_anchors\.(\d{1,3})")
_PROJECTOR = re.compile(r"(?:.*\.)?((?:mm|multi_modal)_projector\..+)")
LEFT_OUT = {
    r"(?:.*\.)?(image|text)_boundary\.\d+": "how many samples an anchor was made of; only its direction counts",
    r"(?:.*\.)?lora_task_embedding(\..+)?": "a table that no forward pass of HiDe or CoIN reads",
}
DEAD_ROUTER = "HiDe stores a router for every linear and never uses it"


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder holds.

    Attributes:
      kind: `lora` (one expert), `hide` (one expert a task), or `moelora` (experts that every token mixes).
      experts: in order; each with its own scale. The projector, where there is one, is that of the last one.
      routers: site -> one array [D, E] a layer, of MoELoRA.
      anchors: `image` and `text`, float32 [N, width], of HiDe.
      dropout: of the experts' input while they were trained.
      base: SHA-256 of the base it was trained on, where the adapter tells; `told`, what it calls its base.
      task: its task's name, where the adapter tells.
      notes: what was left out and why.
    """

    path: Path
    kind: Kind
    experts: tuple[LoraWeights, ...]
    routers: dict[str, list[np.ndarray]] = field(default_factory=dict)
    anchors: dict[str, np.ndarray] = field(default_factory=dict)
    dropout: float = 0.0
    base: str | None = None
    told: str | None = None
    task: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def projector(self) -> dict[str, np.ndarray]:
        """Leaves of the projector by our path; empty where it was not trained."""
        return self.experts[-1].projector


@dataclass(frozen=True)
class _Sorted:
    """Tensors of a folder by what they are: factors by (site, layer, "A" or "B", expert or -1).

    `modules` are the linears' names in the model that was trained, by (site, layer).
    """

    factors: dict[tuple[str, int, str, int], np.ndarray]
    modules: dict[tuple[str, int], str]
    routers: dict[tuple[str, int], np.ndarray]
    anchors: dict[tuple[str, int], np.ndarray]
    projector: dict[str, np.ndarray]
    notes: tuple[str, ...]


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter folder of any of the three kinds.

    Raises:
      CheckpointError: no such folder, pickled or damaged files, a tensor that nobody knows or that is missing,
        mis-shaped or not finite; names the tensor.
      ConfigError: a kind of LoRA that is no plain pair of factors (DoRA, biases, other modules).
    """
    folder = Path(folder)
    present = sorted(folder.iterdir()) if folder.is_dir() else []
    refuse_pickles([file for file in present if not (folder / safe_name(file.name)).is_file()], folder)
    source, config = open_source(folder, "adapter"), read_config(folder)
    found = _sorted(folder, source.tensors)
    left = [f"{file.name} left alone: what a trainer keeps for itself" for file in present if of_trainer(file.name)]
    found = replace(found, notes=(*found.notes, *left))
    header = _header(folder / WEIGHTS if (folder / WEIGHTS).is_file() else source.files[0])
    common: dict[str, Any] = {
        "path": folder, "told": config.get("base_model_name_or_path"), "base": header.get(BASE_KEY),
        "task": header.get(TASK_KEY), "dropout": dropout(config, folder),
    }  # fmt: skip
    if all(expert < 0 for *_, expert in found.factors):
        return Adapter(kind="lora", experts=(_plain(found, config, header, folder),), notes=found.notes, **common)
    return _split(found, config, folder, common)


def _header(file: Path) -> dict[str, str]:
    """What a file says about itself beside its tensors."""
    try:
        with safe_open(file, "np") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError("a weight file is damaged", where=str(file), why=str(error)) from error


def _sorted(folder: Path, tensors: Mapping[str, Any]) -> _Sorted:
    """Every tensor in its place; refuses what has none."""
    factors, modules, routers, anchors, projector, notes, unknown = {}, {}, {}, {}, {}, {}, []
    for key, tensor in tensors.items():
        inside = _PROJECTOR.fullmatch(_bare(key))
        place = None if inside is None else names.place(inside[1], "projector")
        left = next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, key)), None)
        if match := None if "vision" in key else _FACTOR.fullmatch(key):
            _once(factors, (match[2], int(match[1]), match[3], int(match[4] or -1)), tensor, folder)
            modules[match[2], int(match[1])] = key.rpartition(".lora_")[0].removeprefix("base_model.model.")
        elif match := _ROUTER.fullmatch(key):
            _once(routers, (match[2], int(match[1])), tensor, folder)
        elif match := _ANCHOR.fullmatch(key):
            _once(anchors, (match[1], int(match[2])), tensor, folder)
        elif place is not None:
            _once(projector, place.rule, tensor, folder)
        elif left is not None:
            notes[left] = notes.get(left, 0) + 1
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors of the adapter are unknown", where=f"{folder}: {unknown[0]}",
            why="experts stand at the decoder's linears "
            f"({', '.join(SITES)}), beside them only the projector may be trained; unknown: {', '.join(unknown[:6])}",
            remedy="merge the adapter into its base with its own tool, and convert the merged model",
        )  # fmt: skip
    told = tuple(f"{count} tensors left out: {why}" for why, count in notes.items())
    ours = {rule.leaf: names.transformed(leaf, rule.transform) for rule, leaf in projector.items()}
    return _Sorted(factors, modules, routers, anchors, ours, told)


def _bare(key: str) -> str:
    """The name without what PEFT puts into names of modules that it saves whole."""
    return re.sub(r"\.modules_to_save(\.default)?", "", key)


def _once(found: dict, place: Any, tensor: Any, folder: Path) -> None:
    array = np.asarray(tensor.read()).astype(np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(
            "a weight of the adapter is not finite", where=f"{folder}: {tensor.key}", why="it holds NaN or infinity",
            remedy="train it again, or get a whole copy",
        )  # fmt: skip
    # HiDe and CoIN register one tensor under two names, `loraA.0.weight` and `loraA.0.mlp.weight`.
    if place in found and not np.array_equal(found[place], array):
        raise CheckpointError(
            "two tensors of the adapter mean the same and differ", where=f"{folder}: {tensor.key}",
            remedy="remove the one that does not belong",
        )  # fmt: skip
    found[place] = array


def _pairs(found: _Sorted, folder: Path, expert: int) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """(a [D, R], b [R, F]) of one expert by site and layer."""
    pairs = {}
    for site, layer, _, number in sorted(found.factors):
        if number != expert or (site, layer) in pairs:
            continue
        where = f"{folder}: layer {layer}, {site}" + (f", expert {expert}" if expert >= 0 else "")
        if site not in SITES:
            raise CheckpointError("an adapter at an unknown linear", where=where, why=f"known: {', '.join(SITES)}")
        a, b = (found.factors.get((site, layer, kind, expert)) for kind in "AB")
        if a is None or b is None:
            raise CheckpointError("an adapter has one factor without the other", where=where)
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            why = f"lora_A {list(a.shape)}, lora_B {list(b.shape)}; expected [rank, in] and [out, rank]"
            raise CheckpointError("factors of an adapter do not fit each other", where=where, why=why)
        pairs[site, layer] = (a.T, b.T)
    return pairs


def _filled(pairs: Mapping, scales: Mapping, scale: float, projector: Mapping) -> LoraWeights:
    """One LoRA of one rank and scale; layers that have none are zeros, other scales are worked into b."""
    layers, rank = 1 + max(layer for _, layer in pairs), max(a.shape[1] for a, _ in pairs.values())
    a: dict[str, list[np.ndarray]] = {}
    b: dict[str, list[np.ndarray]] = {}
    for site in sorted({site for site, _ in pairs}, key=SITES.index):
        (one_a, one_b) = next(pair for (own, _), pair in pairs.items() if own == site)
        a[site] = [np.zeros((one_a.shape[0], rank), np.float32) for _ in range(layers)]
        b[site] = [np.zeros((rank, one_b.shape[1]), np.float32) for _ in range(layers)]
    for (site, layer), (a_DR, b_RF) in pairs.items():
        wide, ratio = a_DR.shape[1], np.float32(scales[site, layer] / scale)
        if a_DR.shape[0] != a[site][0].shape[0] or b_RF.shape[1] != b[site][0].shape[1]:
            why = f"layer {layer}: [{a_DR.shape[0]} -> {b_RF.shape[1]}], elsewhere {a[site][0].shape[0]} -> "
            raise CheckpointError(
                "layers of an adapter differ in width", where=site, why=why + f"{b[site][0].shape[1]}"
            )
        a[site][layer][:, :wide], b[site][layer][:wide] = a_DR, b_RF * ratio if ratio != 1 else b_RF
    return LoraWeights(a, b, scale, dict(projector))


def _plain(found: _Sorted, config: Mapping[str, Any], header: Mapping[str, str], folder: Path) -> LoraWeights:
    """PEFT's LoRA; `rank_pattern` and `alpha_pattern` give some modules numbers of their own."""
    if not found.factors:
        raise CheckpointError(
            "the adapter holds no experts", where=str(folder), why="no lora_A or lora_B among tensors"
        )
    if found.anchors or found.routers:
        _contradiction(folder, "anchors or routers, but no loraA.0, loraA.1, ...")
    pairs = _pairs(found, folder, -1)
    told = str(folder / CONFIG)
    rank, alpha = above_zero(config, "r", told), above_zero(config, "lora_alpha", told)
    ranks, alphas = (of_modules(config, f"{key}_pattern", found.modules, folder) for key in ("rank", "alpha"))
    root = math.sqrt if config.get("use_rslora") else float
    scales = {}
    for (site, layer), (a_DR, _) in pairs.items():
        wanted = ranks.get((site, layer), rank)
        if a_DR.shape[1] != wanted:
            raise CheckpointError(
                "an adapter's rank is not the one it says", where=f"{folder}: layer {layer}, {site}",
                why=f"tensors have rank {a_DR.shape[1]}, {CONFIG} says {wanted:g}, which its scale is worked out from",
                remedy="get the adapter_config.json it was saved with",
            )  # fmt: skip
        scales[site, layer] = alphas.get((site, layer), alpha) / root(wanted)
    lora = _filled(pairs, scales, alpha / root(rank), found.projector)
    return _without_filling(lora, header.get(RANK_KEY), folder)


def _without_filling(lora: LoraWeights, told: str | None, folder: Path) -> LoraWeights:
    """An adapter of ours at the rank that its header tells: the rest was filled up with zeros."""
    rank = lora.rank if told is None else int(told) if re.fullmatch("[0-9]{1,6}", told) else 0
    try:
        if not 1 <= rank <= lora.rank:
            raise ValueError(f"expected a whole number from 1 to {lora.rank}")
        return with_rank(lora, rank)
    except ValueError as error:
        raise CheckpointError(
            "the adapter's header contradicts its tensors", where=f"{folder / WEIGHTS}: {RANK_KEY}",
            why=f"found {told!r}: {error}", remedy="export it again, or get a whole copy",
        ) from error  # fmt: skip


def _split(found: _Sorted, config: Mapping[str, Any], folder: Path, common: Mapping[str, Any]) -> Adapter:
    """HiDe's and MoELoRA's: E pairs at every linear that share one rank (E = `expert_num`)."""
    if any(expert < 0 for *_, expert in found.factors):
        _contradiction(folder, "both lora_A.weight and lora_A.loraA.0.weight")
    require(config, ONE_SCALE, folder)
    loras = _parts(found, config, folder)
    current = config.get("cur_task")
    if found.anchors or current is not None:
        return _hide(found, loras, current, folder, common)
    routers: dict[str, list[np.ndarray]] = {}
    for site in loras[0].sites:
        rows = [found.routers.get((site, layer)) for layer in range(loras[0].layers)]
        shape = (len(loras), loras[0].a[site][0].shape[0])
        if any(row is None or row.shape != shape for row in rows):
            layer = next(number for number, row in enumerate(rows) if row is None or row.shape != shape)
            _missing(folder, f"layer {layer}, {site}: lora_router {list(shape)}")
        routers[site] = [row.T for row in rows]
    return Adapter(kind="moelora", experts=tuple(loras), routers=routers, notes=found.notes, **common)


def _parts(found: _Sorted, config: Mapping[str, Any], folder: Path) -> list[LoraWeights]:
    """The experts, each of rank r / E, all with the scale alpha / r."""
    experts, told = 1 + max(expert for *_, expert in found.factors), str(folder / CONFIG)
    stated, rank, alpha = (
        config.get("expert_num", experts), above_zero(config, "r", told), above_zero(config, "lora_alpha", told)
    )  # fmt: skip
    if stated != experts:
        raise CheckpointError(
            "the number of experts is not the one the adapter says", where=str(folder),
            why=f"tensors hold {experts}, {CONFIG} says expert_num {stated}", remedy="get a whole copy of both files",
        )  # fmt: skip
    loras = []
    for number in range(experts):
        pairs = _pairs(found, folder, number)
        if not pairs:
            _missing(folder, f"expert {number}: lora_A.loraA.{number}.weight, lora_B.loraB.{number}.weight")
        wrong = [key for key, (a_DR, _) in pairs.items() if a_DR.shape[1] * experts != rank]
        if wrong:
            raise CheckpointError(
                "an expert's rank is not its part of the whole", where=f"{folder}: layer {wrong[0][1]}, {wrong[0][0]}",
                why=f"{experts} experts of rank {pairs[wrong[0]][0].shape[1]}, {CONFIG} says r {rank:g} for all of "
                f"them together; the scale {alpha:g} / r hangs on it",
                remedy="get the adapter_config.json it was saved with",
            )  # fmt: skip
        loras.append(_filled(pairs, dict.fromkeys(pairs, alpha / rank), alpha / rank, found.projector))
    return loras


def _hide(found: _Sorted, loras: list, current: Any, folder: Path, common: Mapping[str, Any]) -> Adapter:
    """Experts and anchors of the tasks up to `cur_task`; later slots were never trained."""
    if not found.anchors:
        _missing(folder, "image_anchors.0, text_anchors.0, ... (they lie in non_lora_trainables)")
    if type(current) is not int or not 0 <= current < len(loras):
        raise ConfigError(
            "the adapter does not say which task was learned last", where=f"{folder / CONFIG}: cur_task",
            why=f"found {current!r}, expected 0..{len(loras) - 1}",
            remedy="get the adapter_config.json it was saved with",
        )  # fmt: skip
    tasks, anchors = current + 1, {}
    for kind in ("image", "text"):
        rows = [found.anchors.get((kind, task)) for task in range(tasks)]
        if any(row is None for row in rows):
            _missing(folder, f"{kind}_anchors.{next(n for n, row in enumerate(rows) if row is None)}")
        if len({row.size for row in rows}) > 1:
            why = f"widths {', '.join(str(row.size) for row in rows)}"
            raise CheckpointError("anchors of one kind differ in width", where=f"{folder}: {kind}_anchors", why=why)
        anchors[kind] = np.stack([row.reshape(-1) for row in rows])
    notes = list(found.notes)
    if len(loras) > tasks:
        notes.append(f"experts {tasks}..{len(loras) - 1} left out: cur_task is {current}, they were never trained")
    if found.routers:
        notes.append(f"{len(found.routers)} tensors left out: {DEAD_ROUTER}")
    return Adapter(kind="hide", experts=tuple(loras[:tasks]), anchors=anchors, notes=tuple(notes), **common)


def _missing(folder: Path, what: str) -> NoReturn:
    raise CheckpointError(
        "a tensor of the adapter is missing", where=f"{folder}: {what}", why="no tensor of that name and shape",
        remedy="copy the whole folder, non_lora_trainables included (`hidecmoe unpickle` makes safetensors of it)",
    )  # fmt: skip


def _contradiction(folder: Path, what: str) -> NoReturn:
    raise CheckpointError(
        "the folder mixes adapters of several kinds", where=str(folder), why=f"it holds {what}",
        remedy="give a folder with one adapter",
    )  # fmt: skip
