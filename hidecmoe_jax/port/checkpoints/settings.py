"""Foreign config.json files become a `LlavaConfig`; what would change the arithmetic is refused by field name.

Configs on the hub leave out whatever equals the default of the library that wrote them, so the defaults of
LlamaConfig and the two CLIP configs are part of the format and stand here as tables. Fields that only matter for
training or for caches are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.port.checkpoints.source import Source

# Defaults of transformers' LlamaConfig, CLIPVisionConfig and CLIPTextConfig: absent in a file means this.
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "rms_norm_eps": 1e-6,
}  # fmt: skip
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu", "projection_dim": 512,
}  # fmt: skip
_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu",
    "projection_dim": 512, "eos_token_id": 49407,
}  # fmt: skip
# Absent as a whole in a LlavaConfig means CLIP ViT-L/14 at 336 pixels.
_LLAVA_VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
# field -> values that compute what this library computes; anything else is refused.
_LLAMA_ONLY = {
    "model_type": ("llama", "llava", "llava_llama", None), "hidden_act": ("silu", None),
    "attention_bias": (False, None), "mlp_bias": (False, None), "pretraining_tp": (1, None),
    "quantization_config": (None,), "sliding_window": (None,),
}  # fmt: skip
_LLAVA_ONLY = {
    "vision_feature_select_strategy": ("default", None), "projector_hidden_act": ("gelu", None),
    "multimodal_projector_bias": (True, None), "quantization_config": (None,),
}  # fmt: skip
_ORIGINAL_ONLY = {
    "mm_projector_type": ("mlp2x_gelu",), "mm_vision_select_feature": ("patch", None),
    "mm_use_im_start_end": (False, None), "mm_use_im_patch_token": (False, None),
    "mm_patch_merge_type": ("flat", None),
}  # fmt: skip
# What every other module may rely on: sizes are whole numbers from 1, the rest is positive.
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "image_size", "patch_size", "max_position_embeddings", "projection_dim",
)  # fmt: skip
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "rope_theta")
_LARGEST = 2**31 - 1
_ACTIVATIONS = ("quick_gelu", "gelu")
_REMAT_BYTES = 2 * 2**30
OLD_EOS = 2  # what old CLIP text configs say while pooling at the highest id
END_TOKEN = "end_token"  # our own word for an end token that is 2 in truth


def llava_config(
    layout: str, main: Source, *, tower: Source | None, projection: Source | None, text: Source | None, dtype: str
) -> LlavaConfig:
    """Shapes of the converted model; the image token is settled by the tokenizer.

    Args:
      layout: of `main` ("hf-llava", "llava", "llama").
      tower: the source of the vision tower; `projection`, of its projection; `text`, of the text tower. None where
        no source has it, which the plan then refuses by name.
      dtype: of parameters and of what towers and decoder compute in.

    Raises:
      CheckpointError: a field asks for something else than LLaVA-1.5's arithmetic.
    """
    config = main.config
    _only(config, {"hf-llava": _LLAVA_ONLY, "llava": _ORIGINAL_ONLY}.get(layout, {}), main)
    decoder = decoder_config(config, layout, main)
    seen = vision_config(layout, main, tower, projection)
    layer = config.get("vision_feature_layer" if layout == "hf-llava" else "mm_vision_select_layer", -2)
    if type(layer) is not int or not -seen.layers <= layer <= seen.layers:
        _refuse(main, "vision_feature_layer", layer, f"one layer from -{seen.layers} to {seen.layers}")
    large = decoder.layers * decoder.width * decoder.hidden * 3 * 2 > _REMAT_BYTES
    return LlavaConfig(
        seen, text_config(text), decoder, feature_layer=layer, dtype=dtype, param_dtype=dtype, remat=large
    )


def decoder_config(config: Mapping[str, Any], layout: str, source: Source) -> DecoderConfig:
    """The LLaMA part: `text_config` of a Hugging Face LLaVA, the top level elsewhere."""
    own = _object(config, "text_config", source) if layout == "hf-llava" else config
    if layout != "hf-llava" and not own:
        raise CheckpointError("a checkpoint without config.json", where=str(source.path), why="its shapes are unknown")
    _only(own, _LLAMA_ONLY, source)
    if layout == "hf-llava":
        tied = own.get("tie_word_embeddings", config.get("tie_word_embeddings", False))
    else:
        tied = own.get("tie_word_embeddings", False)
    if type(tied) not in (bool, type(None)):
        _refuse(source, "tie_word_embeddings", tied, "true or false")
    given = _typed(_LLAMA, own, source)
    heads, width = given["num_attention_heads"], given["hidden_size"]
    kv_heads = given.get("num_key_value_heads", heads)
    if heads % kv_heads:
        _refuse(source, "num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
    if "head_dim" not in given:
        _require_heads(given, source)
    return DecoderConfig(
        vocabulary=given["vocab_size"], width=width, hidden=given["intermediate_size"],
        layers=given["num_hidden_layers"], heads=heads, kv_heads=kv_heads,
        head_width=given.get("head_dim", width // heads), rope_theta=_theta(given, source),
        epsilon=given["rms_norm_eps"], tied=bool(tied),
    )  # fmt: skip


def vision_config(layout: str, main: Source, tower: Source | None, projection: Source | None) -> VisionConfig:
    """The vision tower: the LLaVA's own config where it has one; the projection's width is told by who brings it."""
    if layout == "hf-llava":
        own = _object(main.config, "vision_config", main) if "vision_config" in main.config else _LLAVA_VISION
    else:
        beside = tower if tower is not None and tower is not main else projection
        own = {} if beside is None else _nested(beside, "vision_config")
    given = _typed(_VISION, own, main)
    _require_heads(given, main)
    if given["patch_size"] > given["image_size"]:
        _refuse(main, "patch_size", given["patch_size"], f"at most image_size ({given['image_size']})")
    _only(given, {"model_type": ("clip_vision_model", "clip", None), "num_channels": (3, None)}, main)
    return VisionConfig(
        image_size=given["image_size"], patch_size=given["patch_size"], width=given["hidden_size"],
        layers=given["num_hidden_layers"], heads=given["num_attention_heads"], hidden=given["intermediate_size"],
        projection=_projection_width(projection, "vision_config"), activation=_activation(given, main),
        epsilon=given["layer_norm_eps"],
    )  # fmt: skip


def text_config(source: Source | None) -> TextConfig:
    """CLIP's text tower; `eos_token_id` 2 is how old configs spell "the highest id", which is where they pool, unless
    our own export says that it is meant."""
    if source is None:
        return TextConfig()
    given = _typed(_TEXT, _nested(source, "text_config"), source)
    _require_heads(given, source)
    eos = given["eos_token_id"]
    for field in ("eos_token_id", END_TOKEN):
        if type(given.get(field, 0)) is not int or not 0 <= given.get(field, 0) < given["vocab_size"]:
            _refuse(source, field, given[field], f"a whole number below vocab_size ({given['vocab_size']})")
    end = given.get(END_TOKEN, given["vocab_size"] - 1 if eos == OLD_EOS else eos)
    return TextConfig(
        vocabulary=given["vocab_size"], context=given["max_position_embeddings"], width=given["hidden_size"],
        layers=given["num_hidden_layers"], heads=given["num_attention_heads"], hidden=given["intermediate_size"],
        projection=_projection_width(source, "text_config"), eos_token=end,
        activation=_activation(given, source), epsilon=given["layer_norm_eps"],
    )  # fmt: skip


def _projection_width(source: Source | None, name: str) -> int:
    """A CLIPModel says it at its top level (what its towers' configs say there is stale), a lone tower in its own."""
    if source is None:
        return 512
    given = {"projection_dim": 512} | _nested(source, name)
    top = {key: value for key, value in source.config.items() if key == "projection_dim"}
    return _typed(given, top, source)["projection_dim"]


def _nested(source: Source, name: str) -> dict[str, Any]:
    """A tower's own settings; very old CLIP configs keep them under `<name>_dict`."""
    config = source.config
    found = _object(config, name, source) or _object(config, f"{name}_dict", source)
    if not found and "vision_config" not in config and "text_config" not in config:
        found = config
    return {key: value for key, value in found.items() if value is not None}


def _object(config: Mapping[str, Any], field: str, source: Source) -> Mapping[str, Any]:
    """A nested part of the settings; empty where it is absent or null."""
    found = config.get(field)
    if found is not None and not isinstance(found, Mapping):
        _refuse(source, field, found, "an object")
    return found or {}


def _typed(defaults: Mapping[str, Any], own: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Defaults overlaid with what a file says, every number of the kind and range that its field has."""
    given = {**defaults, **{key: value for key, value in own.items() if value is not None}}
    for field in _SIZES:
        if field in given and (type(given[field]) is not int or not 1 <= given[field] <= _LARGEST):
            _refuse(source, field, given[field], f"a whole number from 1 to {_LARGEST}")
    for field in _POSITIVE:
        if field in given and (type(given[field]) not in (int, float) or not given[field] > 0):
            _refuse(source, field, given[field], "a number above 0")
    return given


def _require_heads(given: Mapping[str, Any], source: Source) -> None:
    if given["hidden_size"] % given["num_attention_heads"]:
        heads = given["num_attention_heads"]
        _refuse(source, "num_attention_heads", heads, f"a divisor of hidden_size ({given['hidden_size']})")


def _theta(given: Mapping[str, Any], source: Source) -> float:
    """RoPE's base, which transformers 5 moved into `rope_parameters`; scaled positions are refused."""
    nested = _typed({}, _object(given, "rope_parameters", source), source)
    scaling = _object(given, "rope_scaling", source) or nested
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default" or "factor" in scaling:
        _refuse(source, "rope_scaling", scaling, "none: scaled rotary positions are not built in")
    return float(nested.get("rope_theta", given.get("rope_theta", 10000.0)))


def _activation(given: Mapping[str, Any], source: Source) -> str:
    if given["hidden_act"] not in _ACTIVATIONS:
        _refuse(source, "hidden_act", given["hidden_act"], " or ".join(_ACTIVATIONS))
    return given["hidden_act"]


def _only(config: Mapping[str, Any], allowed: Mapping[str, tuple], source: Source) -> None:
    for field, values in allowed.items():
        if config.get(field) not in values:
            _refuse(
                source, field, config.get(field), " or ".join(repr(v) for v in values if v is not None) or "nothing"
            )


def _refuse(source: Source, field: str, found: Any, expected: str) -> None:
    raise CheckpointError(
        "a setting of the checkpoint is not supported",
        where=f"{source.path}: {field}",
        why=f"found {found!r}, expected {expected}",
        remedy="this library computes LLaVA-1.5 (CLIP ViT, two-layer GELU projector, LLaMA); convert such a checkpoint",
    )
