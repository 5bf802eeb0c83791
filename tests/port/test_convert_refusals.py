"""Wrong checkpoints are refused with tensor, expected, found, and the config field behind it (rows WT and SEC)."""

from __future__ import annotations

import json
import os
import shutil

import convert_world as world
import numpy as np
import pytest

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.checkpoints.convert import convert

HEAD = "language_model.lm_head.weight"
TABLE = "language_model.model.embed_tokens.weight"


def test_a_wrong_shape_names_tensor_sizes_and_config_field(hub, clip):
    world.change(world.weights(hub), lambda state: state.update({TABLE: state[TABLE][:-4]}))
    said = world.refusal(hub, clip=clip)
    assert TABLE in said and "found [380, 32]" in said and "expected [384, 32]" in said and "vocab_size" in said


def test_a_transposed_tensor_is_called_transposed(hub, clip):
    key = "language_model.model.layers.0.mlp.up_proj.weight"
    world.change(world.weights(hub), lambda state: state.update({key: state[key].T}))
    said = world.refusal(hub, clip=clip)
    assert key in said and "transposed" in said and "intermediate_size" in said


def test_grouped_heads_are_explained_by_their_field(hub, clip):
    world.change_json(hub / "config.json", text_config__num_key_value_heads=2)
    said = world.refusal(hub, clip=clip)
    assert "k_proj" in said and "num_key_value_heads * head_dim" in said


def test_a_missing_tensor_is_listed_with_its_layer(hub, clip):
    world.change(world.weights(hub), lambda state: state.pop(world.HUB))
    assert "decoder/layers/q_proj/kernel, layers [1]" in world.refusal(hub, clip=clip)


def test_what_llava_lacks_is_named_with_the_flag_that_brings_it(hub, made, clip):
    assert "--vision" in world.refusal(made / "separate", clip=made / "clip_text_plain")
    assert "--projector" in world.refusal(made / "vicuna", clip=clip)


def test_fault_d10_a_checkpoint_without_clips_text_tower_is_converted_and_says_who_needs_one(hub):
    report = convert(hub, hub.parent / "out")
    assert report.config.text is None and report.config.vision.projection == 0
    assert any("gate `anchors`" in note and "--clip DIR" in note for note in report.notes)
    model = load_model(hub.parent / "out")
    assert "text" not in model.params and model.config == report.config


def test_fault_d10_half_of_the_clip_pair_is_refused_with_the_flag(hub, made):
    assert "--clip" in world.refusal(hub, clip=made / "clip_text_plain")


def test_an_unexpected_tensor_is_refused_and_ignorable_ones_are_counted(hub, clip):
    extra = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    world.change(world.weights(hub), lambda state: state.update(extra))
    report = convert(hub, hub.parent / "out", clip=clip, dry_run=True)
    assert report.dropped == {r"(?:.*\.)?rotary_emb\.inv_freq": 1, "logit_scale": 1}
    assert any("rotary_emb" in line for line in report.lines())
    extra = {"language_model.model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)}
    world.change(world.weights(hub), lambda state: state.update(extra))
    assert "q_norm" in world.refusal(hub, clip=clip)


def test_a_layer_too_many_is_refused(hub, clip):
    more = {world.HUB.replace("layers.1", "layers.7"): np.ones((32, 32), np.float32)}
    world.change(world.weights(hub), lambda state: state.update(more))
    said = world.refusal(hub, clip=clip)
    assert "layer 7" in said and "num_hidden_layers" in said


def test_pickled_weights_are_refused_with_the_command_that_converts_them(hub, clip, made, tmp_path):
    world.weights(hub).rename(hub / "pytorch_model.bin")
    assert "hidecmoe unpickle" in world.refusal(hub, clip=clip)
    (tmp_path / "mm_projector.bin").write_bytes(b"\x80\x02}q\x00.")
    said = world.refusal(made / "vicuna", clip=clip, projector=tmp_path / "mm_projector.bin")
    assert "hidecmoe unpickle" in said and "mm_projector.bin" in said


def spoilt(header: dict, numbers: bytes, way: str) -> tuple[dict | bytes, bytes]:
    """One dishonest file for each way of being dishonest."""
    first, second = [key for key in header if key != "__metadata__"][:2]
    start, stop = header[first]["data_offsets"]
    if way == "cut":
        return header, numbers[:-10]
    if way == "followed":
        return header, numbers + b"0" * 8
    if way == "no json":
        return b"{" * 64, numbers
    if way == "overlap":
        header[second]["data_offsets"] = [start, start + len(numbers) and header[second]["data_offsets"][1] - stop]
    elif way == "gap":
        header = {key: value for key, value in header.items() if key != first}
    elif way == "size":
        header[first]["shape"] = [1]
    elif way == "negative":
        header[first]["data_offsets"] = [-8, stop - start - 8]
    elif way == "overflow":
        header[first]["shape"] = [2**62, 2**62]
    elif way == "quantised":
        header[first]["dtype"] = "F8_E4M3"
    return header, numbers


@pytest.mark.parametrize(
    "way", ["cut", "followed", "no json", "overlap", "gap", "size", "negative", "overflow", "quantised"]
)
def test_a_damaged_or_dishonest_file_is_refused(way, hub, clip):
    file = world.weights(hub)
    world.write_raw(file, *spoilt(*world.header_of(file), way))
    said = world.refusal(hub, clip=clip)
    assert "damaged" in said or "not supported" in said, said


def test_a_header_longer_than_the_file_is_not_read(hub, clip):
    world.weights(hub).write_bytes((2**40).to_bytes(8, "little") + b"{}")
    assert "header would be" in world.refusal(hub, clip=clip)


def test_a_missing_shard_is_named(made, clip, tmp_path):
    folder = world.fresh(made, "memory_flat", tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in world.refusal(folder, clip=clip)
    (folder / "model.safetensors.index.json").unlink()
    assert "model-00002-of-00002.safetensors" in world.refusal(folder, clip=clip)


def test_a_tensor_outside_its_shard_is_named(made, clip, tmp_path):
    folder = world.fresh(made, "memory_flat", tmp_path)
    world.change(folder / "model-00001-of-00002.safetensors", lambda state: state.pop("lm_head.weight"))
    said = world.refusal(folder, clip=clip)
    assert "lm_head.weight" in said and "model-00001-of-00002.safetensors" in said


def test_a_name_twice_in_a_header_or_in_two_shards_is_refused(made, hub, clip, tmp_path):
    header, numbers = world.header_of(world.weights(hub))
    text = json.dumps(header)
    world.write_raw(world.weights(hub), (text[:-1] + f', "{TABLE}": {json.dumps(header[TABLE])}}}').encode(), numbers)
    said = world.refusal(hub, clip=clip)
    assert "twice" in said and TABLE in said
    folder = world.fresh(made, "memory_flat", tmp_path)
    taken: dict = {}
    world.change(folder / "model-00001-of-00002.safetensors", taken.update)
    key = sorted(taken)[0]
    world.change(folder / "model-00002-of-00002.safetensors", lambda state: state.update({key: taken[key]}))
    said = world.refusal(folder, clip=clip)
    assert "two files" in said and key in said


def test_two_saves_in_one_folder_are_refused_before_either_is_believed(hub, clip):
    other = {"model.language_model.norm.weight": np.ones(32, np.float32)}
    world.change(world.weights(hub), lambda state: state.update(other))
    said = world.refusal(hub, clip=clip)
    assert "two tensors" in said and "model.language_model.norm.weight" in said


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_unless_allowed(bad, hub, clip):
    def spoil(state):
        state[world.HUB][3, 3] = bad

    world.change(world.weights(hub), spoil)
    with pytest.raises(CheckpointError, match=world.HUB):
        convert(hub, hub.parent / "out", clip=clip)
    assert not (hub.parent / "out").exists()
    report = convert(hub, hub.parent / "out", clip=clip, allow_nonfinite=True)
    assert any("NaN" in note and world.HUB in note for note in report.notes)


def test_zeros_are_reported_and_a_number_too_large_for_the_dtype_is_refused(hub, clip):
    world.change(world.weights(hub), lambda state: state[world.HUB].fill(0))
    report = convert(hub, hub.parent / "out", clip=clip)
    assert any("all zero" in note and world.HUB in note for note in report.notes)
    world.change(world.weights(hub), lambda state: state[world.HUB].fill(3.4e38))
    with pytest.raises(CheckpointError, match="overflows bfloat16"):
        convert(hub, hub.parent / "narrow", clip=clip, dtype="bfloat16")


def test_a_tokenizer_of_another_model_is_refused(hub, clip):
    world.change_json(hub / "config.json", image_token_index=7)
    assert "image_token_index" in world.refusal(hub, clip=clip)
    world.change_json(hub / "config.json", image_token_index=360, text_config__vocab_size=361)

    def fewer(state):
        state.update({TABLE: state[TABLE][:361], HEAD: state[HEAD][:361]})

    world.change(world.weights(hub), fewer)
    said = world.refusal(hub, clip=clip)
    assert "362 tokens" in said and "361 rows" in said and "vocab_size" in said


def test_a_token_id_beyond_the_table_is_refused_though_few_tokens_are(hub, clip):
    content = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "b": 99999}, "unk_token": "<unk>"},
    }
    (hub.parent / "words").mkdir()
    (hub.parent / "words" / "tokenizer.json").write_text(json.dumps(content))
    world.change_json(hub / "config.json", image_token_index=None)
    said = world.refusal(hub, clip=clip, tokenizer=hub.parent / "words")
    assert "'b' has id 99999" in said and "384 rows" in said


def test_a_tokenizer_folder_is_a_source_like_the_others(hub, clip, tmp_path):
    assert "no such directory" in world.refusal(hub, clip=clip, tokenizer=tmp_path / "llama-tokeniser")
    (tmp_path / "words").mkdir()
    assert "no tokenizer there" in world.refusal(hub, clip=clip, tokenizer=tmp_path / "words")
    for file in hub.glob("*token*"):
        shutil.copy(file, tmp_path / "words")
    world.change_json(tmp_path / "words" / "tokenizer_config.json", auto_map={"AutoTokenizer": "mine.Mine"})
    assert "auto_map" in world.refusal(hub, clip=clip, tokenizer=tmp_path / "words")


def test_a_path_that_does_not_exist_is_never_looked_up(hub, clip, tmp_path):
    for given in ({"clip": tmp_path / "clipp"}, {"clip": clip, "vision": tmp_path / "openai/clip"}):
        assert "no such directory" in world.refusal(hub, **given)
    assert "no such directory" in world.refusal(tmp_path / "llava-hf/llava-1.5-7b-hf", clip=clip)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_code_of_its_own_is_refused(name, hub, clip):
    world.change_json(hub / name, auto_map={"AutoModel": "modeling.Mine"})
    said = world.refusal(hub, clip=clip)
    assert "auto_map" in said and name in said


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "a\\b"])
def test_a_shard_name_that_leaves_the_folder_is_refused(name, made, clip, tmp_path):
    folder = world.fresh(made, "memory_flat", tmp_path)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content))
    assert "leads out of the folder" in world.refusal(folder, clip=clip)


def test_a_link_out_of_the_folder_is_refused(hub, clip, tmp_path):
    shutil.move(world.weights(hub), tmp_path / "elsewhere.safetensors")
    os.symlink(tmp_path / "elsewhere.safetensors", world.weights(hub))
    assert "link out of its folder" in world.refusal(hub, clip=clip)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "tokenizer.model", "chat_template.jinja"])
def test_a_settings_file_that_is_a_link_out_of_the_folder_is_refused(name, hub, clip, tmp_path):
    shutil.copy(hub / "special_tokens_map.json", tmp_path / "id_rsa")
    (hub / name).unlink(missing_ok=True)
    os.symlink("../id_rsa", hub / name)
    said = world.refusal(hub, clip=clip)
    assert "link out of its folder" in said and name in said


def test_links_of_a_hub_cache_are_followed_and_the_commit_is_kept(hub, clip, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / commit, tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in hub.iterdir():
        shutil.move(file, blobs / f"{file.name}.blob")
        os.symlink(f"../../blobs/{file.name}.blob", snapshot / file.name)
    convert(snapshot, tmp_path / "out", clip=clip)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["sources"][0]["revision"] == commit


def test_tied_embeddings_and_an_absent_head(hub, clip):
    world.change(world.weights(hub), lambda state: state.pop(HEAD))
    assert "tie_word_embeddings" in world.refusal(hub, clip=clip)
    world.change_json(hub / "config.json", text_config__tie_word_embeddings=True)
    report = convert(hub, hub.parent / "tied", clip=clip)
    assert report.config.decoder.tied and any("tied" in note for note in report.notes)


def test_a_stored_head_of_tied_embeddings_must_repeat_the_table(hub, clip):
    world.change_json(hub / "config.json", text_config__tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="must be equal"):
        convert(hub, hub.parent / "out", clip=clip)
    world.change(world.weights(hub), lambda state: state.update({HEAD: state[TABLE]}))
    report = convert(hub, hub.parent / "out", clip=clip)
    assert any("tied lm_head: 1 tensors" in note and "all equal" in note for note in report.notes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_config__model_type", "mistral"),
        ("text_config__rope_scaling", {"type": "linear", "factor": 2.0}),
        ("text_config__rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        ("text_config__attention_bias", True),
        ("text_config__hidden_act", "gelu"),
        ("vision_feature_layer", [-2, -5]),
        ("vision_feature_select_strategy", "full"),
        ("projector_hidden_act", "relu"),
        ("quantization_config", {"load_in_4bit": True}),
        ("vision_config__hidden_act", "gelu_pytorch_tanh"),
        ("vision_config__model_type", "siglip_vision_model"),
    ],
)
def test_a_setting_that_would_change_the_arithmetic_is_refused_by_name(field, value, hub, clip):
    world.change_json(hub / "config.json", **{field: value})
    said = world.refusal(hub, clip=clip)
    assert field.split("__")[-1].replace("rope_parameters", "rope_scaling") in said


@pytest.mark.parametrize("sign", ["model_type", "tensor", "pinpoints"])
def test_llava_next_is_refused_by_name(sign, hub, clip):
    if sign == "model_type":
        world.change_json(hub / "config.json", model_type="llava_next")
    elif sign == "pinpoints":
        world.change_json(hub / "config.json", image_grid_pinpoints=[[336, 672]])
    else:
        world.change(world.weights(hub), lambda state: state.update(image_newline=np.ones(32, np.float32)))
    assert "LLaVA-NeXT" in world.refusal(hub, clip=clip)


def test_parts_in_the_wrong_place_are_sent_to_the_right_flag(hub, clip, made):
    assert "--clip" in world.refusal(clip)
    assert "as SRC" in world.refusal(hub, clip=hub)
    said = world.refusal(hub, clip=clip, projector=made / "vicuna_projector")
    assert "leave out --projector" in said
    adapter = {"base_model.model.x.lora_A.weight": np.ones((2, 2), np.float32)}
    world.change(world.weights(hub), lambda state: (state.clear(), state.update(adapter)))
    assert "an adapter, not a base model" in world.refusal(hub, clip=clip)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_mean", [0.5, 0.5, 0.5]),
        ("image_std", "abc"),
        ("do_normalize", False),
        ("do_rescale", False),
        ("rescale_factor", 1 / 127.5),
        ("size", {"shortest_edge": [8]}),
    ],
)
def test_pictures_prepared_otherwise_are_refused(field, value, hub, clip):
    world.change_json(hub / "preprocessor_config.json", **{field: value})
    assert field in world.refusal(hub, clip=clip)


def test_no_name_from_a_checkpoint_becomes_a_path(hub, clip, tmp_path):
    names = {f"../../{number}": np.ones(2, np.float32) for number in range(3)}
    world.change(world.weights(hub), lambda state: state.update(names))
    before = sorted(tmp_path.parent.rglob("*"))
    assert "../../0" in world.refusal(hub, clip=clip)
    assert sorted(tmp_path.parent.rglob("*")) == before
