"""LoRA folders as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

A LoRA holds for every site of every decoder layer a pair of factors, here in our orientation: a [D, R] reads and
b [R, F] writes, and `scale * a b` is added to the kernel [D, F]. PEFT stores both transposed and keeps the scale as
`lora_alpha / r`. vLLM serves a fixed set of ranks only; a rank between them is filled up with zeros, and alpha grows
along, so that scale and update stay what they were. LLaVA's module names changed within transformers: the decoder was
`language_model.model` and is `model.language_model` now, so a folder is written for one of the two trees.

Every number of a LoRA is float32 in here; nothing of this module knows a run or a method.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.models.llama import SITES
from hidecmoe_jax.models.store import save_tensors
from hidecmoe_jax.port.checkpoints import names

Tree = Literal["since5", "before5"]
DECODER = {"since5": "model.language_model", "before5": "language_model.model"}
PROJECTOR = {"since5": "model.multi_modal_projector", "before5": "multi_modal_projector"}
PART = {rule.leaf.split("/")[2]: key[9:-7] for key, rule in names.DECODER.items() if rule.transform == "linear"}
"""Site -> module below `layers.#.`: q_proj -> self_attn.q_proj."""
PROJECTOR_LEAVES = {rule.leaf: key for key, rule in names.PROJECTOR.items()}
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_KEY, RANK_KEY, TASK_KEY = "hidecmoe_base", "hidecmoe_rank", "hidecmoe_task"


@dataclass(frozen=True)
class LoraWeights:
    """One LoRA on linears of the decoder.

    Attributes:
      a, b: site -> one array a layer, float32 [D, R] and [R, F]; R is the same everywhere.
      scale: what the product is multiplied by (alpha / rank; arXiv 2106.09685).
      projector: leaves of the projector by our path, where it was trained along; kernels [D, F].
    """

    a: dict[str, list[np.ndarray]]
    b: dict[str, list[np.ndarray]]
    scale: float
    projector: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites, in the decoder's order."""
        return tuple(site for site in SITES if site in self.a)

    @property
    def layers(self) -> int:
        """How many decoder layers."""
        return len(self.a[self.sites[0]])

    @property
    def rank(self) -> int:
        """R."""
        return self.a[self.sites[0]][0].shape[1]

    def delta(self, site: str, layer: int) -> np.ndarray:
        """What is added to a kernel, float64 [D, F]."""
        return self.scale * (self.a[site][layer].astype(np.float64) @ self.b[site][layer].astype(np.float64))


def served_rank(rank: int) -> int:
    """The smallest rank that vLLM serves and that holds `rank`.

    Raises:
      ConfigError: there is none.
    """
    fitting = [allowed for allowed in RANKS if allowed >= rank]
    if not fitting:
        raise ConfigError(
            "the adapter's rank is larger than any that vLLM serves", where=f"rank {rank}",
            why=f"allowed are {', '.join(map(str, RANKS))}",
            remedy="export the merged model of the task instead: --to hf --task NAME",
        )  # fmt: skip
    return fitting[0]


def with_rank(lora: LoraWeights, rank: int) -> LoraWeights:
    """The same update at a larger rank, filled up with zeros, or at a smaller one, where what is cut off is zero.

    Raises:
      ValueError: the cut would lose something.
    """
    more = rank - lora.rank
    if more < 0 and any(np.any(a[:, rank:]) or np.any(b[rank:]) for a, b in _pairs(lora)):
        raise ValueError(f"the update needs more than rank {rank}")

    def fitted(leaf: np.ndarray, axis: int) -> np.ndarray:
        if more <= 0:
            return leaf[:, :rank] if axis else leaf[:rank]
        return np.pad(leaf, ((0, 0), (0, more)) if axis else ((0, more), (0, 0)))

    a = {site: [fitted(leaf, 1) for leaf in layers] for site, layers in lora.a.items()}
    b = {site: [fitted(leaf, 0) for leaf in layers] for site, layers in lora.b.items()}
    return LoraWeights(a, b, lora.scale, lora.projector)


def _pairs(lora: LoraWeights):
    return ((a, b) for site in lora.sites for a, b in zip(lora.a[site], lora.b[site], strict=True))


def tensors_of(lora: LoraWeights, tree: Tree) -> dict[str, np.ndarray]:
    """PEFT's tensors by name: `base_model.model.<module>.lora_A.weight` [R, D] and `lora_B.weight` [F, R]."""
    found = {}
    for site in lora.sites:
        for layer, (a_DR, b_RF) in enumerate(zip(lora.a[site], lora.b[site], strict=True)):
            module = f"base_model.model.{DECODER[tree]}.layers.{layer}.{PART[site]}"
            found[f"{module}.lora_A.weight"] = np.ascontiguousarray(a_DR.T)
            found[f"{module}.lora_B.weight"] = np.ascontiguousarray(b_RF.T)
    for path, leaf in lora.projector.items():
        name = f"base_model.model.{PROJECTOR[tree]}.{PROJECTOR_LEAVES[path]}"
        found[name] = np.ascontiguousarray(leaf.T)
    return found


def alpha_of(scale: float, rank: int) -> int | float:
    """`lora_alpha` that gives `scale` at `rank`; an integer where it is one, as PEFT declares it."""
    alpha = scale * rank
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def config_of(lora: LoraWeights, base: str, *, dropout: float = 0.0) -> dict[str, Any]:
    """`adapter_config.json`. The pattern names decoder linears only: CLIP's tower has a `q_proj` as well."""
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "inference_mode": True,
        "r": lora.rank, "lora_alpha": alpha_of(lora.scale, lora.rank), "lora_dropout": dropout, "bias": "none",
        "target_modules": rf".*language_model.*\.({'|'.join(re.escape(site) for site in lora.sites)})",
        "modules_to_save": ["multi_modal_projector"] if lora.projector else None,
        "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False, "use_dora": False,
        "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None, "layers_pattern": None, "revision": None,
    }  # fmt: skip


def write_peft(
    lora: LoraWeights,
    folder: Path,
    *,
    tree: Tree,
    base: str,
    notes: Mapping[str, str],
    dropout: float = 0.0,
    pad: Literal["vllm", "fitting", "none"] = "none",
) -> dict[str, Any]:
    """Writes a LoRA folder; returns its config.

    Args:
      base: what `base_model_name_or_path` says.
      notes: goes into the header of the safetensors file: the base's SHA-256 under `BASE_KEY`, and what else is known.
      pad: `vllm` fills up to a rank that vLLM serves, `fitting` as well where there is one, `none` never.

    Raises:
      ConfigError: as `served_rank`, for `vllm` alone.
    """
    notes = {"format": "pt", RANK_KEY: str(lora.rank)} | dict(notes)
    if pad == "vllm" or (pad == "fitting" and lora.rank <= RANKS[-1]):
        lora = with_rank(lora, served_rank(lora.rank))
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(lora, base, dropout=dropout)
    save_tensors(tensors_of(lora, tree), folder / WEIGHTS, notes)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config
