"""Tensor names and axis orders of foreign checkpoints: one table a part of the model, one prefix list a layout.

The same four parts (decoder, projector, vision tower, text tower) appear under different prefixes in every layout that
is in circulation, so a layout is a list of (prefix, part). A linear's weight is [out, in] in checkpoints and [in, out]
here, a patch convolution is [D, 3, p, p] there and [p * p * 3, D] here. Nothing else changes; rotary pairing is half
split on both sides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Transform = Literal["same", "linear", "patch"]


@dataclass(frozen=True)
class Rule:
    """One tensor: the leaf it becomes, the change of axes, and the config fields that its source axes come from."""

    leaf: str
    transform: Transform
    fields: str


@dataclass(frozen=True)
class Place:
    """Destination of a source tensor: `rule.leaf`, at `layer` of its leading axis if the leaf is a stack of layers."""

    rule: Rule
    layer: int | None


def _block(root: str, table: Mapping[str, tuple[str, Transform, str]], stack: str) -> dict[str, Rule]:
    """Rules of one decoder or encoder block; `#` stands for the layer's number."""
    rules = {}
    for key, (leaf, transform, fields) in table.items():
        rules[f"{stack}.#.{key}"] = Rule(f"{root}/layers/{leaf}", transform, fields)
    return rules


def _tower(root: str) -> dict[str, Rule]:
    """Rules of the blocks of a CLIP tower."""
    width = "hidden_size"
    hidden = "intermediate_size"
    block: dict[str, tuple[str, Transform, str]] = {}
    for leaf, key in (("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
        block[f"{key}.weight"] = (f"{leaf}/scale", "same", width)
        block[f"{key}.bias"] = (f"{leaf}/bias", "same", width)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        block[f"self_attn.{name}.weight"] = (f"{name}/kernel", "linear", f"{width}, {width}")
        block[f"self_attn.{name}.bias"] = (f"{name}/bias", "same", width)
    for name, out_size, in_size in (("fc1", hidden, width), ("fc2", width, hidden)):
        block[f"mlp.{name}.weight"] = (f"{name}/kernel", "linear", f"{out_size}, {in_size}")
        block[f"mlp.{name}.bias"] = (f"{name}/bias", "same", out_size)
    return _block(root, block, "encoder.layers")


def _norm(key: str, leaf: str) -> dict[str, Rule]:
    """Rules of a LayerNorm."""
    return {
        f"{key}.weight": Rule(f"{leaf}/scale", "same", "hidden_size"),
        f"{key}.bias": Rule(f"{leaf}/bias", "same", "hidden_size"),
    }


VISION = {
    "embeddings.class_embedding": Rule("vision/stem/class", "same", "hidden_size"),
    "embeddings.patch_embedding.weight": Rule(
        "vision/stem/patch/kernel", "patch", "hidden_size, num_channels, patch_size, patch_size"
    ),
    "embeddings.position_embedding.weight": Rule(
        "vision/stem/position", "same", "1 + (image_size / patch_size)^2, hidden_size"
    ),
    **_norm("pre_layrnorm", "vision/stem/norm"),
    **_tower("vision"),
    **_norm("post_layernorm", "vision/head/norm"),
}
VISION_PROJECTION = {
    "visual_projection.weight": Rule("vision/head/projection/kernel", "linear", "projection_dim, hidden_size"),
}
TEXT = {
    "embeddings.token_embedding.weight": Rule("text/stem/token", "same", "vocab_size, hidden_size"),
    "embeddings.position_embedding.weight": Rule("text/stem/position", "same", "max_position_embeddings, hidden_size"),
    **_tower("text"),
    **_norm("final_layer_norm", "text/head/norm"),
}
TEXT_PROJECTION = {
    "text_projection.weight": Rule("text/head/projection/kernel", "linear", "projection_dim, hidden_size"),
}
_SITES = {
    "self_attn.q_proj": ("q_proj", "num_attention_heads * head_dim, hidden_size"),
    "self_attn.k_proj": ("k_proj", "num_key_value_heads * head_dim, hidden_size"),
    "self_attn.v_proj": ("v_proj", "num_key_value_heads * head_dim, hidden_size"),
    "self_attn.o_proj": ("o_proj", "hidden_size, num_attention_heads * head_dim"),
    "mlp.gate_proj": ("gate_proj", "intermediate_size, hidden_size"),
    "mlp.up_proj": ("up_proj", "intermediate_size, hidden_size"),
    "mlp.down_proj": ("down_proj", "hidden_size, intermediate_size"),
}
DECODER = {
    "embed_tokens.weight": Rule("decoder/embedding/table", "same", "vocab_size, hidden_size"),
    "norm.weight": Rule("decoder/norm/scale", "same", "hidden_size"),
    **_block(
        "decoder",
        {f"{module}.weight": (f"{site}/kernel", "linear", fields) for module, (site, fields) in _SITES.items()}
        | {"input_layernorm.weight": ("norm1/scale", "same", "hidden_size")}
        | {"post_attention_layernorm.weight": ("norm2/scale", "same", "hidden_size")},
        "layers",
    ),
}
HEAD = {"lm_head.weight": Rule("decoder/head/kernel", "linear", "vocab_size, hidden_size")}


def _projector(first: str, second: str) -> dict[str, Rule]:
    """Rules of the projector's two linears, whose names differ between layouts."""
    out = "text_config.hidden_size"
    return {
        f"{first}.weight": Rule("projector/linear1/kernel", "linear", f"{out}, vision_config.hidden_size"),
        f"{first}.bias": Rule("projector/linear1/bias", "same", out),
        f"{second}.weight": Rule("projector/linear2/kernel", "linear", f"{out}, {out}"),
        f"{second}.bias": Rule("projector/linear2/bias", "same", out),
    }


PROJECTOR = _projector("linear_1", "linear_2")
MM_PROJECTOR = _projector("0", "2")

# layout -> (prefix pattern, part)...; what transformers 5 writes has no `vision_model.`, what it holds in memory (and
# versions 4.52-4.57 wrote at times) has `model.` in front of everything but the head.
LAYOUTS: dict[str, tuple[tuple[str, Mapping[str, Rule]], ...]] = {
    "hf-llava": (
        (r"language_model\.model\.|model\.language_model\.", DECODER),
        (r"(?:language_model\.)?", HEAD),
        (r"(?:model\.)?vision_tower\.(?:vision_model\.)?", VISION),
        (r"(?:model\.)?multi_modal_projector\.", PROJECTOR),
    ),
    "llava": (
        (r"model\.", DECODER),
        (r"", HEAD),
        (r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?", VISION),
        (r"model\.mm_projector\.", MM_PROJECTOR),
    ),
    "llama": ((r"model\.", DECODER), (r"", HEAD)),
    "clip": (
        (r"vision_model\.", VISION),
        (r"", VISION_PROJECTION),
        (r"text_model\.", TEXT),
        (r"", TEXT_PROJECTION),
    ),
    "clip-vision": ((r"(?:vision_model\.)?", VISION), (r"", VISION_PROJECTION)),
    "clip-text": ((r"(?:text_model\.)?", TEXT), (r"", TEXT_PROJECTION)),
    "projector": (
        (r"(?:model\.)?mm_projector\.", MM_PROJECTOR),
        (r"(?:model\.)?multi_modal_projector\.", PROJECTOR),
    ),
}
# Buffers that can be recomputed and CLIP's training temperature; every other tensor must be used.
IGNORABLE = (r"(?:.*\.)?rotary_emb\.inv_freq", r"(?:.*\.)?embeddings\.position_ids", r"logit_scale")


def place(key: str, layout: str) -> Place | None:
    """Destination of tensor `key` of a checkpoint in `layout`; None if no rule matches."""
    # Every layer shares one rule, so its number is cut out of the name first.
    number = re.search(r"(?<=\blayers\.)\d+(?=\.)", key)
    plain = key if number is None else f"{key[: number.start()]}#{key[number.end() :]}"
    for prefix, part in LAYOUTS[layout]:
        match = re.fullmatch(f"(?:{prefix})(.+)", plain)
        if match is not None and match[1] in part:
            return Place(part[match[1]], None if number is None else int(number[0]))
    return None


def ignorable(key: str) -> str | None:
    """The pattern of `IGNORABLE` under which a source tensor may be left out, or None."""
    return next((pattern for pattern in IGNORABLE if re.fullmatch(pattern, key)), None)


def transformed(array: np.ndarray, transform: Transform) -> np.ndarray:
    """A source tensor in our axis order, a view of the same numbers where numpy allows it."""
    if transform == "linear":
        return array.T
    if transform == "patch":
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array


def restored(array: np.ndarray, transform: Transform) -> np.ndarray:
    """The inverse of `transformed`."""
    if transform == "linear":
        return array.T
    if transform == "patch":
        _, _, side, _ = source_shape(array.shape, transform)
        return array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    return array


def source_shape(shape: tuple[int, ...], transform: Transform) -> tuple[int, ...]:
    """Shape of the source tensor that `transformed` turns into `shape` (of one layer)."""
    if transform == "linear":
        return shape[::-1]
    if transform == "patch":
        side = math.isqrt(shape[0] // 3)
        return (shape[1], 3, side, side)
    return shape
