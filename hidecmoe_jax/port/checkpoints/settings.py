"""Reads `LlavaConfig` from config.json of other tools; refuses, by field name, settings that change the arithmetic.

Configs on the hub omit whatever equals the default of the library that wrote them, so the defaults of LlamaConfig and
of the two CLIP configs are part of the format; they are the tables below. Fields that only matter for training or for
caches are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
_CLIP_VISION_ONLY = {"model_type": ("clip_vision_model", "clip", None), "num_channels": (3, None)}
# Checked here once, so that no other module has to: sizes are whole numbers from 1, the rest is positive.
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "image_size", "patch_size", "max_position_embeddings", "projection_dim",
)  # fmt: skip
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "rope_theta")
_LARGEST = 2**31 - 1
_ACTIVATIONS = ("quick_gelu", "gelu")
_REMAT_BYTES = 2 * 2**30
OLD_EOS = 2  # old CLIP text configs have this end token, but pool at the highest id
END_TOKEN = "end_token"  # our own field, for an end token that really is 2


def llava_config(
    layout: str, main: Source, *, tower: Source | None, projection: Source | None, text: Source | None, dtype: str
) -> LlavaConfig:
    """Shapes of the converted model; the image token is set later, from the tokenizer.

    Args:
      layout: of `main` ("hf-llava", "llava", "llama").
      tower: the source of the vision tower; `projection`, of its projection; `text`, of the text tower. None if no
        source has it: the model then has no text tower, and the plan refuses whatever else is missing.
      dtype: of the parameters, and of the computation in towers and decoder.

    Raises:
      CheckpointError: a field requires other arithmetic than LLaVA-1.5's.
    """
    config = main.config
    only_of_layout = {"hf-llava": _LLAVA_ONLY, "llava": _ORIGINAL_ONLY}
    _require_values(config, only_of_layout.get(layout, {}), main)
    decoder = decoder_config(config, layout, main)
    vision = vision_config(layout, main, tower, projection)
    layer_field = "vision_feature_layer" if layout == "hf-llava" else "mm_vision_select_layer"
    layer = _feature_layer(config.get(layer_field, -2), layer_field, vision.layers, main)
    # Bytes of the decoder's feed-forward kernels in bfloat16, three a layer: above this, activations are recomputed.
    kernel = decoder.width * decoder.hidden
    kernel_bytes = decoder.layers * kernel * 3 * 2
    large = kernel_bytes > _REMAT_BYTES
    text_shape = None if text is None else text_config(text)
    # LLaVA reads neither CLIP's text tower nor the projection beside it; a text tower alone lacks its counterpart.
    if text is None and projection is None:
        vision = replace(vision, projection=0)
    return LlavaConfig(vision, text_shape, decoder, feature_layer=layer, dtype=dtype, param_dtype=dtype, remat=large)


def _feature_layer(value: Any, field: str, count: int, source: Source) -> int:
    """The one layer that the projector reads; a list of one is that one."""
    layer = value
    if isinstance(value, list) and len(value) == 1:
        layer = value[0]
    if type(layer) is not int or not -count <= layer <= count:
        expected = f"one layer from -{count} to {count}"
        if isinstance(value, list) and len(value) > 1:
            expected += ": several are joined, which needs a projector of another width"
        _refuse(source, field, value, expected)
    return layer


def decoder_config(config: Mapping[str, Any], layout: str, source: Source) -> DecoderConfig:
    """The LLaMA part: `text_config` of a Hugging Face LLaVA, the top level in other layouts."""
    if layout == "hf-llava":
        settings = _object(config, "text_config", source)
    elif config:
        settings = config
    else:
        raise CheckpointError("a checkpoint without config.json", where=str(source.path), why="its shapes are unknown")
    _require_values(settings, _LLAMA_ONLY, source)
    # Hugging Face LLaVA writes it at either level; in the other layouts both levels are the same object.
    tied_above = config.get("tie_word_embeddings", False)
    tied = settings.get("tie_word_embeddings", tied_above)
    if type(tied) not in (bool, type(None)):
        _refuse(source, "tie_word_embeddings", tied, "true or false")
    fields = _typed(_LLAMA, settings, source)
    heads = fields["num_attention_heads"]
    width = fields["hidden_size"]
    kv_heads = fields.get("num_key_value_heads", heads)
    if heads % kv_heads:
        _refuse(source, "num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
    if "head_dim" not in fields:
        _require_heads(fields, source)
    return DecoderConfig(
        vocabulary=fields["vocab_size"], width=width, hidden=fields["intermediate_size"],
        layers=fields["num_hidden_layers"], heads=heads, kv_heads=kv_heads,
        head_width=fields.get("head_dim", width // heads), rope_theta=_theta(fields, source),
        epsilon=fields["rms_norm_eps"], tied=bool(tied),
    )  # fmt: skip


def vision_config(layout: str, main: Source, tower: Source | None, projection: Source | None) -> VisionConfig:
    """The vision tower, from the LLaVA's own config if it has one; only its projection's width is from `projection`."""
    if layout == "hf-llava":
        settings: Mapping[str, Any] = _LLAVA_VISION
        if "vision_config" in main.config:
            settings = _object(main.config, "vision_config", main)
    else:
        # Original LLaVA has no config of its tower, even where it stores the tower's weights.
        described_by = projection
        if tower is not None and tower is not main:
            described_by = tower
        settings = {}
        if described_by is not None:
            settings = _nested(described_by, "vision_config")
    fields = _typed(_VISION, _squares(settings), main)
    _require_heads(fields, main)
    image_size = fields["image_size"]
    patch_size = fields["patch_size"]
    if patch_size > image_size:
        _refuse(main, "patch_size", patch_size, f"at most image_size ({image_size})")
    _require_values(fields, _CLIP_VISION_ONLY, main)
    return VisionConfig(
        image_size=image_size, patch_size=patch_size, width=fields["hidden_size"],
        layers=fields["num_hidden_layers"], heads=fields["num_attention_heads"], hidden=fields["intermediate_size"],
        projection=_projection_width(projection, "vision_config"), activation=_activation(fields, main),
        epsilon=fields["layer_norm_eps"],
    )  # fmt: skip


def text_config(source: Source) -> TextConfig:
    """CLIP's text tower.

    `eos_token_id` 2 means "the highest id" in old configs, which is where they pool; our own export marks a real 2 by
    the field `END_TOKEN`.
    """
    settings = _nested(source, "text_config")
    fields = _typed(_TEXT, settings, source)
    _require_heads(fields, source)
    vocabulary = fields["vocab_size"]
    for field in ("eos_token_id", END_TOKEN):
        token = fields.get(field, 0)
        if type(token) is not int or not 0 <= token < vocabulary:
            _refuse(source, field, token, f"a whole number below vocab_size ({vocabulary})")
    end = fields["eos_token_id"]
    if end == OLD_EOS:
        end = vocabulary - 1
    end = fields.get(END_TOKEN, end)
    return TextConfig(
        vocabulary=vocabulary, context=fields["max_position_embeddings"], width=fields["hidden_size"],
        layers=fields["num_hidden_layers"], heads=fields["num_attention_heads"], hidden=fields["intermediate_size"],
        projection=_projection_width(source, "text_config"), eos_token=end,
        activation=_activation(fields, source), epsilon=fields["layer_norm_eps"],
    )  # fmt: skip


def _projection_width(source: Source | None, name: str) -> int:
    """Width of the CLIP embedding: a CLIPModel's top level, or a single tower's own config."""
    if source is None:
        return 512
    tower_fields = {"projection_dim": 512} | _nested(source, name)
    # The towers' configs inside a CLIPModel hold a stale value, so the top level overrides them.
    top_level = {"projection_dim": source.config.get("projection_dim")}
    fields = _typed(tower_fields, top_level, source)
    return fields["projection_dim"]


def _nested(source: Source, name: str) -> dict[str, Any]:
    """A tower's own settings without nulls; very old CLIP configs keep them under `<name>_dict`."""
    config = source.config
    settings = _object(config, name, source)
    if not settings:
        settings = _object(config, f"{name}_dict", source)
    if not settings and "vision_config" not in config and "text_config" not in config:
        settings = config  # a single tower's folder
    return {key: value for key, value in settings.items() if value is not None}


def _object(config: Mapping[str, Any], field: str, source: Source) -> Mapping[str, Any]:
    """A nested object of the settings; empty if it is absent or null."""
    value = config.get(field)
    if value is not None and not isinstance(value, Mapping):
        _refuse(source, field, value, "an object")
    return value or {}


def _typed(defaults: Mapping[str, Any], settings: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Defaults overlaid with a file's settings; raises CheckpointError for a number of a wrong type or range."""
    fields = dict(defaults)
    fields |= {key: value for key, value in settings.items() if value is not None}
    for field, value in fields.items():
        # By type and not isinstance: a bool is an int as well.
        if field in _SIZES:
            if type(value) is not int or not 1 <= value <= _LARGEST:
                _refuse(source, field, value, f"a whole number from 1 to {_LARGEST}")
        if field in _POSITIVE:
            if type(value) not in (int, float) or not value > 0:
                _refuse(source, field, value, "a number above 0")
    return fields


def _squares(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which `[n, n]`, the sides of a square, is n."""
    numbers = dict(settings)
    for field in ("image_size", "patch_size"):
        value = settings.get(field)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            numbers[field] = value[0]
    return numbers


def _require_heads(fields: Mapping[str, Any], source: Source) -> None:
    """Heads must divide the width, because their own width is not in the config."""
    width = fields["hidden_size"]
    heads = fields["num_attention_heads"]
    if width % heads:
        _refuse(source, "num_attention_heads", heads, f"a divisor of hidden_size ({width})")


def _theta(fields: Mapping[str, Any], source: Source) -> float:
    """Base of the rotary angles, which transformers 5 moved into `rope_parameters`; scaled positions are refused."""
    parameters = _object(fields, "rope_parameters", source)
    nested = _typed({}, parameters, source)
    scaling = _object(fields, "rope_scaling", source) or nested
    # `type` is the field's older name.
    old_kind = scaling.get("type", "default")
    kind = scaling.get("rope_type", old_kind)
    if kind != "default" or "factor" in scaling:
        _refuse(source, "rope_scaling", scaling, "none: scaled rotary positions are not built in")
    # LlamaConfig's default, for files that state none.
    theta = fields.get("rope_theta", 10000.0)
    return float(nested.get("rope_theta", theta))


def _activation(fields: Mapping[str, Any], source: Source) -> str:
    activation = fields["hidden_act"]
    if activation not in _ACTIVATIONS:
        _refuse(source, "hidden_act", activation, " or ".join(_ACTIVATIONS))
    return activation


def _require_values(config: Mapping[str, Any], allowed: Mapping[str, tuple], source: Source) -> None:
    """Refuses fields whose value is not among those allowed; None stands for an absent field."""
    for field, values in allowed.items():
        value = config.get(field)
        if value not in values:
            spelled = [repr(option) for option in values if option is not None]
            expected = " or ".join(spelled) or "nothing"
            _refuse(source, field, value, expected)


def _refuse(source: Source, field: str, value: Any, expected: str) -> None:
    raise CheckpointError(
        "a setting of the checkpoint is not supported",
        where=f"{source.path}: {field}",
        why=f"found {value!r}, expected {expected}",
        remedy="this library computes LLaVA-1.5 (CLIP ViT, two-layer GELU projector, LLaMA); convert such a checkpoint",
    )
