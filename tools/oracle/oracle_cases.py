"""Small models of the parity tests: configs with Hugging Face's field names, and weights from a formula.

No checkpoint is stored in the repository. A weight is a function of its name, its shape and the case's seed, drawn from
the raw 64-bit stream of PCG64 (which NumPy promises never to change), so the oracle and the tests write the same bytes.
Sizes differ wherever two axes could be mixed up, and inputs of norms are small, so that a wrong epsilon shows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One model, as Hugging Face's config describes it, and the CLIP pair its vision tower comes from."""

    name: str
    text: dict
    vision: dict
    clip_text: dict
    image_token: int
    feature_layer: int = -2
    seed: int = 0
    bfloat16: bool = False
    extra: dict = field(default_factory=dict)


IMAGE = 360
PAD = 361
VOCABULARY = 384  # the tokenizer has 360 pieces and two added tokens; the rest of the table is padding
_VISION = {
    "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 20,
    "patch_size": 6, "projection_dim": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "model_type": "clip_vision_model",
}  # fmt: skip
_CLIP_TEXT = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 10, "projection_dim": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 39, "bos_token_id": 38, "pad_token_id": 1, "model_type": "clip_text_model",
}  # fmt: skip
_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
    "model_type": "llama",
}  # fmt: skip

CASES = {
    case.name: case
    for case in (
        Case("plain", _TEXT, _VISION, _CLIP_TEXT | {"eos_token_id": 2}, IMAGE),
        Case(
            "grouped",
            _TEXT
            | {"num_key_value_heads": 2, "head_dim": 12, "rope_theta": 500.0, "rms_norm_eps": 1e-6}
            | {"tie_word_embeddings": True},
            _VISION | {"hidden_act": "gelu"},
            _CLIP_TEXT | {"hidden_act": "gelu"},
            IMAGE,
            seed=1,
        ),
        Case(
            "narrow",
            _TEXT | {"num_key_value_heads": 1, "num_hidden_layers": 2, "rope_theta": 100000.0},
            _VISION | {"num_hidden_layers": 4},
            _CLIP_TEXT,
            IMAGE,
            feature_layer=-3,
            seed=2,
            bfloat16=True,
        ),
    )
}
"""`plain` is LLaVA-1.5 in small (its CLIP carries the old end-of-text id 2, which stands for the largest id)."""


def drawn(name: str, shape: tuple[int, ...], seed: int, scale: float, centre: float = 0.0) -> np.ndarray:
    """Uniform float32 around `centre` with half-width `scale`."""
    generator = np.random.PCG64([seed, zlib.crc32(name.encode())])
    raw = generator.random_raw(int(np.prod(shape)))
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (centre + scale * (2 * unit - 1)).reshape(shape).astype(np.float32)


def round_bfloat16(value: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16 (ties to even), still stored as float32."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    last_bit = (bits >> 16) & 1  # a tie is rounded to the side where this bit is 0
    rounded = (bits + 0x7FFF + last_bit) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The value of one tensor; its kind is read from its name."""
    if "norm" in name or "layrnorm" in name:
        centre = 1.0 if name.endswith("weight") else 0.0
        return drawn(name, shape, seed, 0.2, centre)
    if name.endswith("bias"):
        return drawn(name, shape, seed, 0.1)
    small = {"embed_tokens": 0.04, "patch_embedding": 0.01, "class_embedding": 0.03, "position_embedding": 0.03}
    small["token_embedding"] = 0.03
    for module, scale in small.items():
        if module in name:
            return drawn(name, shape, seed, scale)
    # A uniform of this half-width keeps the variance of the input.
    scale = float(np.sqrt(3.0 / shape[-1]))
    gain = 2.0 if "lm_head" in name else 1.0
    return drawn(name, shape, seed, gain * scale)


def filled(shapes: dict[str, tuple[int, ...]], case: Case) -> State:
    """All tensors of a table of shapes."""
    tied = case.text.get("tie_word_embeddings", False)
    state = {}
    for name, shape in shapes.items():
        value = weight(name, shape, case.seed)
        if tied and "embed_tokens" in name:
            # The table is the head as well, whose weights are larger.
            value = value * 5
        state[name] = round_bfloat16(value) if case.bfloat16 else value
    return state


def _block(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one block of a CLIP tower."""
    linears = {f"self_attn.{letter}_proj": (width, width) for letter in ("q", "k", "v", "out")}
    linears |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for norm in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes


def _stack(prefix: str, count: int, block: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of `count` equal blocks."""
    shapes = {}
    for layer in range(count):
        for name, shape in block.items():
            shapes[f"{prefix}.{layer}.{name}"] = shape
    return shapes


def vision_shapes(config: dict, prefix: str) -> dict[str, tuple[int, ...]]:
    """CLIP's vision tower below `prefix` (its own spelling of `layrnorm` included)."""
    width = config["hidden_size"]
    patch = config["patch_size"]
    places = (config["image_size"] // patch) ** 2 + 1
    shapes = {
        f"{prefix}embeddings.class_embedding": (width,),
        f"{prefix}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{prefix}embeddings.position_embedding.weight": (places, width),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{prefix}{norm}.weight": (width,), f"{prefix}{norm}.bias": (width,)}
    return shapes | _stack(
        f"{prefix}encoder.layers", config["num_hidden_layers"], _block(width, config["intermediate_size"])
    )


def clip_text_shapes(config: dict, prefix: str) -> dict[str, tuple[int, ...]]:
    """CLIP's text tower below `prefix`."""
    width = config["hidden_size"]
    shapes = {
        f"{prefix}embeddings.token_embedding.weight": (config["vocab_size"], width),
        f"{prefix}embeddings.position_embedding.weight": (config["max_position_embeddings"], width),
        f"{prefix}final_layer_norm.weight": (width,),
        f"{prefix}final_layer_norm.bias": (width,),
    }
    return shapes | _stack(
        f"{prefix}encoder.layers", config["num_hidden_layers"], _block(width, config["intermediate_size"])
    )


def head_width(config: dict) -> int:
    """Width of one attention head: named, or the model's width shared among heads."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def decoder_shapes(config: dict, prefix: str) -> dict[str, tuple[int, ...]]:
    """LLaMA below `prefix`, without the head."""
    width = config["hidden_size"]
    hidden = config["intermediate_size"]
    head = head_width(config)
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    block = {
        "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width), "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width), "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (hidden, width), "mlp.up_proj.weight": (hidden, width),
        "mlp.down_proj.weight": (width, hidden),
    }  # fmt: skip
    shapes = {f"{prefix}embed_tokens.weight": (config["vocab_size"], width), f"{prefix}norm.weight": (width,)}
    return shapes | _stack(f"{prefix}layers", config["num_hidden_layers"], block)


def llava_state(case: Case) -> State:
    """The model under the names that transformers 5 writes."""
    width = case.text["hidden_size"]
    vision_width = case.vision["hidden_size"]
    shapes = decoder_shapes(case.text, "language_model.model.")
    if not case.text.get("tie_word_embeddings", False):
        shapes["language_model.lm_head.weight"] = (case.text["vocab_size"], width)
    shapes |= {
        "multi_modal_projector.linear_1.weight": (width, vision_width),
        "multi_modal_projector.linear_1.bias": (width,),
        "multi_modal_projector.linear_2.weight": (width, width),
        "multi_modal_projector.linear_2.bias": (width,),
    }
    return filled(shapes | vision_shapes(case.vision, "vision_tower."), case)


def clip_state(case: Case) -> State:
    """The CLIP pair whose vision tower is the case's: the same numbers under the names of `CLIPModel`."""
    vision = filled(vision_shapes(case.vision, "vision_tower."), case)
    projections = {
        "visual_projection.weight": (case.vision["projection_dim"], case.vision["hidden_size"]),
        "text_projection.weight": (case.clip_text["projection_dim"], case.clip_text["hidden_size"]),
    }
    state = filled(clip_text_shapes(case.clip_text, "text_model.") | projections, case)
    state |= renamed(vision, lambda name: name.replace("vision_tower.", "vision_model."))
    return state | {"logit_scale": np.asarray(2.5, np.float32)}


def renamed(state: State, rename: Callable[[str], str]) -> State:
    """The same tensors under other names."""
    return {rename(name): value for name, value in state.items()}
