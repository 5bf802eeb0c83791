"""Adapters and checkpoints of other tools, and code that a folder names."""

import numpy as np
import pytest
from foreign_adapters import MODULES, lora_tensors, peft_folder, write_folder

from hidecmoe_jax.core.errors import CheckpointError, ConfigError, HidecmoeError
from hidecmoe_jax.port.adapters.read import read_adapter
from hidecmoe_jax.port.checkpoints.settings import llava_config
from hidecmoe_jax.port.checkpoints.source import Source

# What PEFT 0.21 writes for LoraConfig(target_modules=[...]): every field, most of them at their defaults.
PEFT_DEFAULTS = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf", "bias": "none", "corda_config": None,
    "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "kasa_config": None, "layer_replication": None,
    "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_bias": False,
    "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "monteclora_config": None, "peft_version": "0.21.2", "qalora_group_size": 16, "rank_pattern": {},
    "revision": None, "target_modules": ["q_proj", "v_proj"], "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_bdlora": None, "use_dora": False, "use_qalora": False,
    "use_rslora": False, "velora_config": None,
}  # fmt: skip


def test_fault_a7_a_setting_that_is_on_and_unknown_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="adapter_config.json: use_future_thing") as caught:
        read_adapter(peft_folder(tmp_path / "a", use_future_thing=True))
    assert "hidecmoe convert" in str(caught.value)


def test_fault_a7_every_field_of_the_newest_peft_is_read_and_an_unknown_one_that_is_off_is_no_matter(tmp_path):
    folder = peft_folder(tmp_path / "a", **PEFT_DEFAULTS, use_future_thing=False, later_config=None, lists=[])
    assert read_adapter(folder).experts[0].scale == 2.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("use_qalora", True),
        ("lora_bias", True),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("trainable_token_indices", [5]),
        ("alora_invocation_tokens", [7]),
        ("monteclora_config", {"num_samples": 8}),
        ("kasa_config", {"rank": 4}),
        ("arrow_config", {"top_k": 3}),
        ("megatron_config", {"hidden": 8}),
        ("future_scale", 2.0),
        ("future_text", "on"),
    ],
)
def test_fault_a7_settings_that_change_the_update_are_refused_by_name(tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"adapter_config.json: {key}"):
        read_adapter(peft_folder(tmp_path / "a", **{key: value}))


@pytest.mark.parametrize("name", ["lm_head", "multi_modal_projector", "model.embed_tokens"])
def test_fault_a7_a_module_that_is_said_to_be_saved_and_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"modules_to_save\n.*{name}"):
        read_adapter(peft_folder(tmp_path / "a", modules_to_save=[name]))


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_fault_d6_trained_biases_of_linears_without_biases_are_no_obstacle(tmp_path, bias):
    plain = read_adapter(peft_folder(tmp_path / "plain")).experts[0]
    biased = read_adapter(peft_folder(tmp_path / "biased", bias=bias)).experts[0]
    np.testing.assert_array_equal(biased.delta("q_proj", 1), plain.delta("q_proj", 1))


@pytest.mark.parametrize("name", ["q_proj.bias", "q_proj.base_layer.bias"])
def test_fault_d6_biases_that_the_weights_hold_are_refused_by_name(tmp_path, name):
    tensors = lora_tensors(modules=MODULES)
    key = f"base_model.model.model.language_model.layers.0.self_attn.{name}"
    tensors[key] = np.ones(8, np.float32)
    config = {"r": 4, "lora_alpha": 8, "bias": "lora_only"}
    with pytest.raises(CheckpointError, match=name):
        read_adapter(write_folder(tmp_path / "a", config, tensors))


def llava_source(tmp_path, **config) -> Source:
    """The settings of a Hugging Face LLaVA with the sizes of LLaVA-1.5, without its tensors."""
    return Source(tmp_path, "checkpoint", {"model_type": "llava", "text_config": {}} | config, {}, ())


def shapes_of(source: Source, layout: str = "hf-llava"):
    return llava_config(layout, source, tower=source, projection=None, text=None, dtype="bfloat16")


def test_fault_d7_a_list_of_one_feature_layer_is_that_layer(tmp_path):
    assert shapes_of(llava_source(tmp_path, vision_feature_layer=[-2])).feature_layer == -2
    assert shapes_of(llava_source(tmp_path, vision_feature_layer=-3)).feature_layer == -3


@pytest.mark.parametrize("layers", [[-2, -1], [], ["-2"], [True], [99]])
def test_fault_d7_other_lists_are_refused_with_the_reason(tmp_path, layers):
    with pytest.raises(CheckpointError, match="vision_feature_layer\n") as caught:
        shapes_of(llava_source(tmp_path, vision_feature_layer=layers))
    assert ("projector of another width" in str(caught.value)) == (len(layers) > 1)


def test_fault_d7_the_two_sides_of_a_square_are_one_size(tmp_path):
    tower = {"image_size": [336, 336], "patch_size": [14, 14], "hidden_size": 1024, "num_attention_heads": 16}
    vision = shapes_of(llava_source(tmp_path, vision_config=tower)).vision
    assert (vision.image_size, vision.patch_size) == (336, 14)
    with pytest.raises(HidecmoeError, match="image_size"):
        shapes_of(llava_source(tmp_path, vision_config=tower | {"image_size": [336, 224]}))
