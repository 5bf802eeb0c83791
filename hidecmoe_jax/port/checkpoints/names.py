"""Which foreign tensor becomes which leaf of ours: one table for each part of a model, one prefix for each layout.

The same four parts (decoder, projector, vision tower, text tower) appear under different prefixes in every layout that
is in circulation, so a layout is a list of (prefix, part). A linear's weight is [out, in] there and [in, out] here, a
patch convolution is [D, 3, p, p] there and [p * p * 3, D] here; nothing else changes, rotary pairing included (half
split on both sides).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Turn = Literal["same", "linear", "patch"]


@dataclass(frozen=True)
class Rule:
    """One tensor: our leaf, how it is turned, and the config fields that its source axes come from."""

    leaf: str
    turn: Turn
    fields: str


@dataclass(frozen=True)
class Place:
    """Where a source tensor goes: `rule.leaf`, at `layer` of its leading axis where it is one of a stack."""

    rule: Rule
    layer: int | None


def _block(home: str, table: Mapping[str, tuple[str, Turn, str]], stack: str) -> dict[str, Rule]:
    return {f"{stack}.#.{key}": Rule(f"{home}/layers/{leaf}", turn, f) for key, (leaf, turn, f) in table.items()}


def _tower(home: str) -> dict[str, Rule]:
    width, hidden = "hidden_size", "intermediate_size"
    block: dict[str, tuple[str, Turn, str]] = {}
    for ours, theirs in (("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
        block |= {f"{theirs}.weight": (f"{ours}/scale", "same", width)}
        block |= {f"{theirs}.bias": (f"{ours}/bias", "same", width)}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        block |= {f"self_attn.{name}.weight": (f"{name}/kernel", "linear", f"{width}, {width}")}
        block |= {f"self_attn.{name}.bias": (f"{name}/bias", "same", width)}
    for name, (out, into) in {"fc1": (hidden, width), "fc2": (width, hidden)}.items():
        block |= {f"mlp.{name}.weight": (f"{name}/kernel", "linear", f"{out}, {into}")}
        block |= {f"mlp.{name}.bias": (f"{name}/bias", "same", out)}
    return _block(home, block, "encoder.layers")


def _norm(theirs: str, ours: str) -> dict[str, Rule]:
    return {
        f"{theirs}.weight": Rule(f"{ours}/scale", "same", "hidden_size"),
        f"{theirs}.bias": Rule(f"{ours}/bias", "same", "hidden_size"),
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
        {f"{theirs}.weight": (f"{ours}/kernel", "linear", fields) for theirs, (ours, fields) in _SITES.items()}
        | {"input_layernorm.weight": ("norm1/scale", "same", "hidden_size")}
        | {"post_attention_layernorm.weight": ("norm2/scale", "same", "hidden_size")},
        "layers",
    ),
}
HEAD = {"lm_head.weight": Rule("decoder/head/kernel", "linear", "vocab_size, hidden_size")}


def _projector(first: str, second: str) -> dict[str, Rule]:
    out = "text_config.hidden_size"
    return {
        f"{first}.weight": Rule("projector/linear1/kernel", "linear", f"{out}, vision_config.hidden_size"),
        f"{first}.bias": Rule("projector/linear1/bias", "same", out),
        f"{second}.weight": Rule("projector/linear2/kernel", "linear", f"{out}, {out}"),
        f"{second}.bias": Rule("projector/linear2/bias", "same", out),
    }


PROJECTOR, MM_PROJECTOR = _projector("linear_1", "linear_2"), _projector("0", "2")

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
# Buffers that can be worked out again and CLIP's training temperature; everything else must be consumed.
IGNORABLE = (r"(?:.*\.)?rotary_emb\.inv_freq", r"(?:.*\.)?embeddings\.position_ids", r"logit_scale")


def place(key: str, layout: str) -> Place | None:
    """Where `key` of a checkpoint in `layout` goes; None where no rule knows it."""
    number = re.search(r"(?<=\blayers\.)\d+(?=\.)", key)
    plain = key if number is None else f"{key[: number.start()]}#{key[number.end() :]}"
    for prefix, part in LAYOUTS[layout]:
        match = re.fullmatch(f"(?:{prefix})(.+)", plain)
        if match is not None and match[1] in part:
            return Place(part[match[1]], None if number is None else int(number[0]))
    return None


def ignorable(key: str) -> str | None:
    """The named pattern that lets a source tensor be left out, or None."""
    return next((pattern for pattern in IGNORABLE if re.fullmatch(pattern, key)), None)


def turned(array: np.ndarray, turn: Turn) -> np.ndarray:
    """A source tensor as ours, a view of the same numbers where numpy allows it."""
    if turn == "linear":
        return array.T
    if turn == "patch":
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array


def returned(array: np.ndarray, turn: Turn) -> np.ndarray:
    """The inverse of `turned`."""
    if turn == "linear":
        return array.T
    if turn == "patch":
        _, _, side, _ = source_shape(array.shape, turn)
        return array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    return array


def source_shape(shape: tuple[int, ...], turn: Turn) -> tuple[int, ...]:
    """Shape that a source tensor must have to become `shape` (one layer's)."""
    if turn == "linear":
        return shape[::-1]
    if turn == "patch":
        side = math.isqrt(shape[0] // 3)
        return (shape[1], 3, side, side)
    return shape
