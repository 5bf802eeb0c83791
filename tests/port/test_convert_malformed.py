"""Files and fields that somebody wrote by hand, and places that cannot be written: refused by name, no traceback."""

from __future__ import annotations

from pathlib import Path

import convert_world as world
import pytest

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.port.checkpoints.convert import convert


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", '{"a": 1}'),
        ("added_tokens.json", "[1]"),
        ("added_tokens.json", '{"<image>": "x"}'),
        ("special_tokens_map.json", "[]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"360": 5}}'),
        ("tokenizer.model", "no model"),
        ("config.json", "[]"),
    ],
)
def test_a_malformed_settings_file_is_refused_by_name(name, text, hub, clip):
    (hub / name).write_text(text)
    said = world.refusal(hub, clip=clip)
    assert name in said or "an added token is" in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_config__num_attention_heads", 0),
        ("text_config__num_attention_heads", True),
        ("text_config__hidden_size", "32"),
        ("text_config__rms_norm_eps", "1e-5"),
        ("text_config__num_key_value_heads", 5),
        ("text_config__rope_theta", -1),
        ("text_config__rope_parameters", "x"),
        ("text_config__tie_word_embeddings", "false"),
        ("text_config__num_hidden_layers", 10**9),
        ("text_config__vocab_size", 2**40),
        ("text_config", "x"),
        ("vision_config", [1]),
        ("vision_config__patch_size", 0),
        ("vision_config__patch_size", 512),
        ("vision_config__num_attention_heads", 7),
        ("image_token_index", "360"),
    ],
)
def test_a_malformed_setting_is_refused_by_name(field, value, hub, clip):
    world.change_json(hub / "config.json", **{field: value})
    assert field.split("__")[-1] in world.refusal(hub, clip=clip)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_config", "x"),
        ("text_config__eos_token_id", 10**6),
        ("projection_dim", "8"),
        ("text_config__hidden_size", 0),
    ],
)
def test_a_malformed_setting_of_clip_is_refused_by_name(field, value, hub, made, tmp_path):
    clip = world.fresh(made, "clip_plain", tmp_path)
    world.change_json(clip / "config.json", **{field: value})
    assert field.split("__")[-1] in world.refusal(hub, clip=clip)


@pytest.mark.parametrize("place", ["a_file/out", "proc"])
def test_a_target_that_cannot_be_made_is_refused_without_a_traceback(place, hub, clip, tmp_path):
    (tmp_path / "a_file").touch()
    target = tmp_path / place if place != "proc" else Path("/proc/out")
    with pytest.raises((CheckpointError, ConfigError), match="another"):
        convert(hub, target, clip=clip)
