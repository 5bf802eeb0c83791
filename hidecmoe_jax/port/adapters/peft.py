"""LoRA folders as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

A LoRA has a pair of factors for every site of every decoder layer, here in our orientation: a [D, R] and b [R, F], and
`scale * a b` is added to the kernel [D, F]. PEFT stores both transposed and the scale as `lora_alpha / r`. vLLM serves
a fixed set of ranks; a rank between them is padded with zeros, and alpha grows with it, so that scale and update do not
change. LLaVA's module names changed within transformers: the decoder was `language_model.model` and is now
`model.language_model`, so a folder is written for one of the two trees.

Every number of a LoRA is float32 in here; this module depends on neither runs nor methods.
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


def _modules_of_sites() -> dict[str, str]:
    """Site -> module below `layers.#.`: q_proj -> self_attn.q_proj."""
    modules = {}
    for key, rule in names.DECODER.items():
        if rule.transform == "linear":
            # A key is `layers.#.MODULE.weight`, its leaf `decoder/layers/SITE/...`.
            site = rule.leaf.split("/")[2]
            modules[site] = key.removeprefix("layers.#.").removesuffix(".weight")
    return modules


PART = _modules_of_sites()
"""Site -> module below `layers.#.`: q_proj -> self_attn.q_proj."""
PROJECTOR_LEAVES = {rule.leaf: key for key, rule in names.PROJECTOR.items()}
# Ranks that vLLM serves.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Fields of our own in the header of the weights file.
BASE_KEY = "hidecmoe_base"
RANK_KEY = "hidecmoe_rank"
TASK_KEY = "hidecmoe_task"


@dataclass(frozen=True)
class LoraWeights:
    """One LoRA on linears of the decoder.

    Attributes:
      a, b: site -> one array a layer, float32 [D, R] and [R, F]; R is the same everywhere.
      scale: factor of the product (alpha / rank; arXiv 2106.09685).
      projector: leaves of the projector by path, if it was trained as well; kernels [D, F].
    """

    a: dict[str, list[np.ndarray]]
    b: dict[str, list[np.ndarray]]
    scale: float
    projector: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites, in the decoder's order."""
        return tuple(site for site in SITES if site in self.a)

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.a[self.sites[0]])

    @property
    def rank(self) -> int:
        """Rank R."""
        first_DR = self.a[self.sites[0]][0]
        return first_DR.shape[1]

    def delta(self, site: str, layer: int) -> np.ndarray:
        """The update of a kernel, float64 [D, F]."""
        a_DR = self.a[site][layer].astype(np.float64)
        b_RF = self.b[site][layer].astype(np.float64)
        return self.scale * (a_DR @ b_RF)


def served_rank(rank: int) -> int:
    """The smallest rank that vLLM serves and that is at least `rank`.

    Raises:
      ConfigError: there is none.
    """
    for served in RANKS:
        if served >= rank:
            return served
    allowed = ", ".join(map(str, RANKS))
    raise ConfigError(
        "the adapter's rank is larger than any that vLLM serves",
        where=f"rank {rank}",
        why=f"allowed are {allowed}",
        remedy="export the merged model of the task instead: --to hf --task NAME",
    )


def with_rank(lora: LoraWeights, rank: int) -> LoraWeights:
    """The same update at a larger rank, padded with zeros, or at a smaller one, if only zeros are cut off.

    Raises:
      ValueError: the cut would change the update.
    """
    a: dict[str, list[np.ndarray]] = {}
    b: dict[str, list[np.ndarray]] = {}
    for site in lora.a:
        a[site] = [_resized(a_DR, rank, 1) for a_DR in lora.a[site]]
        b[site] = [_resized(b_RF, rank, 0) for b_RF in lora.b[site]]
    return LoraWeights(a, b, lora.scale, lora.projector)


def _resized(factor: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A factor with its rank axis padded or cut."""
    more = rank - factor.shape[axis]
    if more <= 0:
        first, rest = np.split(factor, [rank], axis)
        if np.any(rest):
            raise ValueError(f"the update needs more than rank {rank}")
        return first
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, more)
    return np.pad(factor, padding)


def tensors_of(lora: LoraWeights, tree: Tree) -> dict[str, np.ndarray]:
    """PEFT's tensors by name: `base_model.model.<module>.lora_A.weight` [R, D] and `lora_B.weight` [F, R]."""
    decoder = f"base_model.model.{DECODER[tree]}"
    projector = f"base_model.model.{PROJECTOR[tree]}"
    tensors = {}
    for site in lora.sites:
        factors = zip(lora.a[site], lora.b[site], strict=True)
        for layer, (a_DR, b_RF) in enumerate(factors):
            module = f"{decoder}.layers.{layer}.{PART[site]}"
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a_DR.T)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(b_RF.T)
    for path, leaf in lora.projector.items():
        name = f"{projector}.{PROJECTOR_LEAVES[path]}"
        tensors[name] = np.ascontiguousarray(leaf.T)
    return tensors


def alpha_of(scale: float, rank: int) -> int | float:
    """`lora_alpha` that gives `scale` at `rank`; an int if it is whole, because PEFT declares it as one."""
    alpha = scale * rank
    whole = round(alpha)
    return whole if math.isclose(alpha, whole, rel_tol=1e-12) else alpha


def config_of(lora: LoraWeights, base: str, *, dropout: float = 0.0) -> dict[str, Any]:
    """Content of `adapter_config.json`."""
    # The pattern must exclude CLIP's tower, which has a `q_proj` as well.
    sites = "|".join(re.escape(site) for site in lora.sites)
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "inference_mode": True,
        "r": lora.rank, "lora_alpha": alpha_of(lora.scale, lora.rank), "lora_dropout": dropout, "bias": "none",
        "target_modules": rf".*language_model.*\.({sites})",
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
      base: value of `base_model_name_or_path`.
      notes: header fields of the safetensors file, such as the base's SHA-256 under `BASE_KEY`.
      pad: `vllm` pads to a rank that vLLM serves, `fitting` too if there is one, `none` never.

    Raises:
      ConfigError: as `served_rank`, for `vllm` only.
    """
    # The rank before padding, so that `read_adapter` can cut the zeros off again.
    notes = {"format": "pt", RANK_KEY: str(lora.rank)} | dict(notes)
    fits = pad == "fitting" and lora.rank <= RANKS[-1]
    if pad == "vllm" or fits:
        rank = served_rank(lora.rank)
        lora = with_rank(lora, rank)
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(lora, base, dropout=dropout)
    save_tensors(tensors_of(lora, tree), folder / WEIGHTS, notes)
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return config
