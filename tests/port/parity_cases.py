"""What the parity tests share: the oracle's folder on the path, stored answers, and every case put together by hand.

`by_hand` maps Hugging Face's names to our tree with a table of its own, in numpy: the tests of our arithmetic do not
depend on the converter, and the converter must give the very same leaves.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = Path(__file__).resolve().parent / "goldens"
sys.path.insert(0, str(ROOT / "tools" / "oracle"))

from oracle_cases import CASES, Case, clip_state, llava_state  # noqa: E402

from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig  # noqa: E402
from hidecmoe_jax.models.llava import Model  # noqa: E402

Arrays = dict[str, np.ndarray]


@functools.cache
def stored(name: str) -> Arrays:
    """One file of goldens."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def inputs(name: str) -> Arrays:
    """The probe of a case."""
    return {key[3:]: value for key, value in stored(name).items() if key.startswith("in_")}


def truth(name: str) -> Arrays:
    """The reference's answers to it."""
    outputs = {key[4:]: value for key, value in stored(name).items() if key.startswith("out_")}
    outputs.pop("bfloat16_kl")
    return outputs


def config_by_hand(case: Case) -> LlavaConfig:
    """The case's shapes in our words."""
    text, vision, clip = case.text, case.vision, case.clip_text
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    tower = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    tower |= {"hidden": "intermediate_size", "projection": "projection_dim", "activation": "hidden_act"}
    tower |= {"epsilon": "layer_norm_eps"}
    decoder = DecoderConfig(
        vocabulary=text["vocab_size"], width=text["hidden_size"], hidden=text["intermediate_size"], heads=heads,
        layers=text["num_hidden_layers"], kv_heads=kv_heads, rope_theta=text.get("rope_theta", 10000.0),
        head_width=text.get("head_dim", text["hidden_size"] // heads), epsilon=text["rms_norm_eps"],
        tied=text.get("tie_word_embeddings", False),
    )  # fmt: skip
    eos = clip["vocab_size"] - 1 if clip["eos_token_id"] == 2 else clip["eos_token_id"]
    mine = {name: vision[theirs] for name, theirs in tower.items()}
    text_tower = {name: clip[theirs] for name, theirs in tower.items()}
    return LlavaConfig(
        VisionConfig(image_size=vision["image_size"], patch_size=vision["patch_size"], **mine),
        TextConfig(clip["vocab_size"], clip["max_position_embeddings"], eos_token=eos, **text_tower),
        decoder,
        image_token=case.image_token,
        feature_layer=case.feature_layer,
    )


def _pair(state: Arrays, name: str) -> Arrays:
    out = {"kernel": state[f"{name}.weight"].T}
    return out | ({"bias": state[f"{name}.bias"]} if f"{name}.bias" in state else {})


def _norm(state: Arrays, name: str) -> Arrays:
    out = {"scale": state[f"{name}.weight"]}
    return out | ({"bias": state[f"{name}.bias"]} if f"{name}.bias" in state else {})


def _stacked(layers: list[dict]) -> dict:
    return {name: {leaf: np.stack([layer[name][leaf] for layer in layers]) for leaf in value}
            for name, value in layers[0].items()}  # fmt: skip


def _clip_layers(state: Arrays, prefix: str, count: int) -> dict:
    layers = []
    for index in range(count):
        at = f"{prefix}encoder.layers.{index}."
        layer = {name: _pair(state, f"{at}self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        layer |= {name: _pair(state, f"{at}mlp.{name}") for name in ("fc1", "fc2")}
        layers.append(layer | {f"norm{n}": _norm(state, f"{at}layer_norm{n}") for n in (1, 2)})
    return _stacked(layers)


def _vision(state: Arrays, clip: Arrays, case: Case) -> dict:
    at = "vision_tower."
    patch = state[f"{at}embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)
    return {
        "stem": {
            "patch": {"kernel": patch.reshape(-1, patch.shape[-1])},
            "class": state[f"{at}embeddings.class_embedding"],
            "position": state[f"{at}embeddings.position_embedding.weight"],
            "norm": _norm(state, f"{at}pre_layrnorm"),
        },
        "layers": _clip_layers(state, at, case.vision["num_hidden_layers"]),
        "head": {"norm": _norm(state, f"{at}post_layernorm"), "projection": _pair(clip, "visual_projection")},
    }


def _text(clip: Arrays, case: Case) -> dict:
    at = "text_model."
    return {
        "stem": {
            "token": clip[f"{at}embeddings.token_embedding.weight"],
            "position": clip[f"{at}embeddings.position_embedding.weight"],
        },
        "layers": _clip_layers(clip, at, case.clip_text["num_hidden_layers"]),
        "head": {"norm": _norm(clip, f"{at}final_layer_norm"), "projection": _pair(clip, "text_projection")},
    }


def _decoder(state: Arrays, case: Case) -> dict:
    layers = []
    for index in range(case.text["num_hidden_layers"]):
        at = f"language_model.model.layers.{index}."
        layer = {name: _pair(state, f"{at}self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        layer |= {name: _pair(state, f"{at}mlp.{name}") for name in ("gate_proj", "up_proj", "down_proj")}
        layer["norm1"] = _norm(state, f"{at}input_layernorm")
        layers.append(layer | {"norm2": _norm(state, f"{at}post_attention_layernorm")})
    out = {"embedding": {"table": state["language_model.model.embed_tokens.weight"]}, "layers": _stacked(layers)}
    out["norm"] = _norm(state, "language_model.model.norm")
    tied = case.text.get("tie_word_embeddings", False)
    return out if tied else out | {"head": _pair(state, "language_model.lm_head")}


@functools.cache
def by_hand(name: str) -> Model:
    """A case's model without the converter."""

    case = CASES[name]
    state, clip = llava_state(case), clip_state(case)
    projector = {f"linear{n}": _pair(state, f"multi_modal_projector.linear_{n}") for n in (1, 2)}
    params = {"vision": _vision(state, clip, case), "text": _text(clip, case)}
    params |= {"projector": projector, "decoder": _decoder(state, case)}
    return Model(jax.tree.map(jnp.asarray, params), config_by_hand(case))
