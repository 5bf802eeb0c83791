"""Shapes of a LLaVA from a config.json without weights, as the hub has them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import hidecmoe_jax as hj
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.models.config import llava_7b, llava_13b

# Fields that equal the library's defaults are left out by the tool that writes such files.
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 32064, "max_position_embeddings": 4096}
LARGER = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
HUB = {"model_type": "llava", "image_token_index": 32000, "vision_config": TOWER, "text_config": LLAMA}
ORIGINAL = {
    **LLAMA, "model_type": "llava_llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
}  # fmt: skip


def folder_of(tmp_path: Path, config: dict) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(("config", "shapes"), [
    (HUB, llava_7b()),
    ({**HUB, "text_config": LLAMA | LARGER}, llava_13b()),
    (ORIGINAL, replace(llava_7b(), decoder=replace(llava_7b().decoder, vocabulary=32000))),
])  # fmt: skip
def test_shapes_are_those_of_the_known_models(tmp_path, config, shapes):
    described = hj.described_shapes(folder_of(tmp_path, config))
    assert described.decoder == shapes.decoder
    assert described.vision == shapes.vision
    assert described.text == shapes.text
    assert (described.dtype, described.remat, described.feature_layer) == ("bfloat16", True, shapes.feature_layer)


def test_a_converted_base_and_a_missing_one_are_left_to_others(tmp_path):
    assert hj.described_shapes(tmp_path) is None
    assert hj.described_shapes(folder_of(tmp_path, {"decoder": {}, "vision": {}})) is None


@pytest.mark.parametrize("config", [
    {"model_type": "qwen2_vl"},
    {**HUB, "model_type": "llava_next"},
    {**HUB, "text_config": LLAMA | {"hidden_act": "gelu"}},
])  # fmt: skip
def test_another_model_is_refused(tmp_path, config):
    with pytest.raises(CheckpointError):
        hj.described_shapes(folder_of(tmp_path, config))
