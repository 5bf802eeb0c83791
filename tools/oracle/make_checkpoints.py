"""Writes the small models of `oracle_cases.py` as checkpoints, in every layout that is in circulation. Needs no torch.

Layouts (a folder each): `hub` (names of 2023-24, config with defaults left out), `current` (as transformers 5 saves),
`memory` (names as modules are called since transformers 4.52) and `memory_flat` (the same since 5), `original`
(language model with `model.mm_projector.*` and the vision tower inside), `separate` (the projector in a file of its
own, vision by path), `vicuna` (a plain LLaMA beside a stage-1 projector), and CLIP folders: both towers, vision alone,
text alone.

Example: python tools/oracle/make_checkpoints.py build/checkpoints
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from oracle_cases import CASES, IMAGE, PAD, Case, State, clip_state, llava_state, renamed

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "port" / "goldens"
BASE_ROWS = 360
"""Rows of the original layout's table: the tokenizer's pieces, without image and padding token."""

_OLD = {"_name_or_path": "", "torch_dtype": "float32", "transformers_version": "4.36.0"}


def save_tensors(path: Path, state: State, *, bfloat16: bool = False) -> None:
    """One safetensors file, written by hand; as bfloat16 the values must be exact in it already."""
    dtype = "BF16" if bfloat16 else "F32"
    header = {"__metadata__": {"format": "pt"}}
    blocks = []
    start = 0
    for name, value in state.items():
        # Taken before `ascontiguousarray`, which makes one axis of none.
        shape = list(np.shape(value))
        array = np.ascontiguousarray(value)
        if bfloat16:
            # The upper half of a float32 is the bfloat16.
            array = (array.view(np.uint32) >> 16).astype(np.uint16)
        data = array.tobytes()
        stop = start + len(data)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        blocks.append(data)
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    length = len(text).to_bytes(8, "little")
    path.write_bytes(length + text + b"".join(blocks))


def save_shards(folder: Path, state: State, *, count: int, bfloat16: bool = False) -> None:
    """Shards of about equal numbers of tensors and their index."""
    names = sorted(state)
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        names_in_shard = names[number::count]
        shard = {name: state[name] for name in names_in_shard}
        save_tensors(folder / file, shard, bfloat16=bfloat16)
        weight_map |= dict.fromkeys(names_in_shard, file)
    itemsize = 2 if bfloat16 else 4
    size = sum(value.size for value in state.values()) * itemsize
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, value: dict) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, *, image: bool) -> None:
    """The LLaMA tokenizer of the goldens; with `image`, its two added tokens as in LLaVA's hub folders."""
    shutil.copyfile(GOLDENS / "tokenizer.model", folder / "tokenizer.model")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names["pad_token"] = "<pad>" if image else "<unk>"
    write_json(folder / "special_tokens_map.json", names)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    if image:
        write_json(folder / "added_tokens.json", {"<image>": IMAGE, "<pad>": PAD})
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        contents = {0: "<unk>", 1: "<s>", 2: "</s>", IMAGE: "<image>", PAD: "<pad>"}
        added = {str(token): {"content": content, **flags} for token, content in contents.items()}
        settings |= {"added_tokens_decoder": added, "processor_class": "LlavaProcessor"}
    write_json(folder / "tokenizer_config.json", settings | names)


def write_processor(folder: Path, case: Case) -> None:
    """CLIP's picture settings."""
    side = case.vision["image_size"]
    settings = {
        "crop_size": {"height": side, "width": side}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": side},
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", settings)


def llava_config(case: Case, *, old: bool) -> dict:
    """A `LlavaForConditionalGeneration` config: without defaults as in the hub's 2023 folders, or of transformers 5."""
    text = dict(case.text)
    vision = dict(case.vision)
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "projector_hidden_act": "gelu"}
    config |= {"vision_feature_layer": case.feature_layer, "vision_feature_select_strategy": "default"}
    config |= {"image_token_index": case.image_token, "tie_word_embeddings": text.get("tie_word_embeddings", False)}
    if old:
        if text["num_key_value_heads"] == text["num_attention_heads"]:
            del text["num_key_value_heads"]
        defaults = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # the hub's folder leaves them out
        vision = {name: value for name, value in vision.items() if defaults.get(name) != value}
        return config | _OLD | {
            "ignore_index": -100, "pad_token_id": PAD, "vocab_size": text["vocab_size"], "text_config": text,
            "vision_config": vision | {"vocab_size": 32000},
        }  # fmt: skip
    theta = text.pop("rope_theta", 10000.0)
    text |= {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}, "bos_token_id": 1, "eos_token_id": 2}
    text |= {"head_dim": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]}
    config |= {"dtype": "float32", "image_seq_length": (vision["image_size"] // vision["patch_size"]) ** 2}
    config |= {"multimodal_projector_bias": True, "transformers_version": "5.23.0"}
    return config | {"text_config": text | {"attention_bias": False, "mlp_bias": False}, "vision_config": vision}


def _hub_name(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def _memory_name(name: str) -> str:
    name = name.replace("language_model.model.", "model.language_model.")
    name = name.replace("language_model.lm_head", "lm_head")
    return name if name.startswith(("model.", "lm_head")) else f"model.{name}"


def _original_name(name: str) -> str:
    name = name.replace("language_model.model.", "model.")
    name = name.replace("language_model.lm_head", "lm_head")
    name = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
    name = name.replace("multi_modal_projector.linear_2", "model.mm_projector.2")
    return name.replace("vision_tower.", "model.vision_tower.vision_tower.vision_model.")


def write_hub(folder: Path, case: Case) -> None:
    """Names and config of the hub's folders of 2023-24, one file."""
    write_json(folder / "config.json", llava_config(case, old=True))
    state = renamed(llava_state(case), _hub_name)
    save_tensors(folder / "model.safetensors", state, bfloat16=case.bfloat16)
    write_tokenizer(folder, image=True)
    write_processor(folder, case)


def write_current(folder: Path, case: Case) -> None:
    """A folder as transformers 5 saves it, in three shards."""
    write_json(folder / "config.json", llava_config(case, old=False))
    save_shards(folder, llava_state(case), count=3, bfloat16=case.bfloat16)
    write_tokenizer(folder, image=True)
    write_processor(folder, case)


def write_memory(folder: Path, case: Case) -> None:
    """Module names of transformers 4.52 and later as tensor names, two shards."""
    write_json(folder / "config.json", llava_config(case, old=True))
    hub_state = renamed(llava_state(case), _hub_name)
    state = renamed(hub_state, _memory_name)
    save_shards(folder, state, count=2, bfloat16=case.bfloat16)
    write_tokenizer(folder, image=True)
    write_processor(folder, case)


def write_memory_flat(folder: Path, case: Case) -> None:
    """The same since transformers 5, whose vision tower has one module less."""
    write_json(folder / "config.json", llava_config(case, old=False))
    state = renamed(llava_state(case), _memory_name)
    save_shards(folder, state, count=2, bfloat16=case.bfloat16)
    write_tokenizer(folder, image=True)
    write_processor(folder, case)


def original_config(case: Case, *, tower: str) -> dict:
    """A `LlavaLlamaForCausalLM` config of the original layout."""
    text = case.text | {"vocab_size": BASE_ROWS, "tie_word_embeddings": False, "hidden_act": "silu"}
    return text | _OLD | {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "mm_hidden_size": case.vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": case.feature_layer, "mm_vision_tower": tower,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "freeze_mm_mlp_adapter": False, "use_cache": True,
        "image_aspect_ratio": "pad", "mm_resampler_type": None, "unfreeze_mm_vision_tower": False,
    }  # fmt: skip


def _original_state(case: Case) -> State:
    """All tensors under the original layout's names; its tables end at `BASE_ROWS`."""
    state = renamed(llava_state(case), _original_name)
    for name, value in state.items():
        if "embed_tokens" in name or "lm_head" in name:
            state[name] = value[:BASE_ROWS]
    return state


def _language_model_and_projector(case: Case) -> tuple[State, State]:
    """The original layout's tensors without the vision tower: the language model's, and the projector's."""
    language: State = {}
    projector: State = {}
    for name, value in _original_state(case).items():
        if "mm_projector" in name:
            projector[name] = value
        elif "vision_tower" not in name:
            language[name] = value
    return language, projector


def write_original(folder: Path, case: Case) -> None:
    """Language model, projector and vision tower in two shards, rotary tables of old versions among them."""
    write_json(folder / "config.json", original_config(case, tower="../clip"))
    state = _original_state(case)
    half = case.text["hidden_size"] // case.text["num_attention_heads"] // 2
    frequency = (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    for layer in range(case.text["num_hidden_layers"]):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequency
    save_shards(folder, state, count=2)
    write_tokenizer(folder, image=False)


def write_separate(folder: Path, case: Case) -> None:
    """Without vision tower; the projector lies in `mm_projector.safetensors`, under the names of its training."""
    write_json(folder / "config.json", original_config(case, tower="../clip"))
    language, projector = _language_model_and_projector(case)
    save_shards(folder, language, count=2)
    save_tensors(folder / "mm_projector.safetensors", projector)
    write_tokenizer(folder, image=False)


def write_vicuna(folder: Path, case: Case) -> None:
    """A plain LLaMA and, beside its folder, `projector/mm_projector.safetensors` of a first training stage."""
    config = case.text | _OLD | {"architectures": ["LlamaForCausalLM"], "vocab_size": BASE_ROWS, "hidden_act": "silu"}
    write_json(folder / "config.json", config | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    language, projector = _language_model_and_projector(case)
    save_tensors(folder / "model.safetensors", language)
    write_tokenizer(folder, image=False)
    beside = folder.parent / f"{folder.name}_projector"
    beside.mkdir(exist_ok=True)
    save_tensors(beside / "mm_projector.safetensors", projector)


def _clip_config(case: Case) -> dict:
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "logit_scale_init_value": 2.6592, **_OLD,
        "projection_dim": case.clip_text["projection_dim"], "text_config": case.clip_text, "vision_config": case.vision,
    }  # fmt: skip


def write_clip(folder: Path, case: Case) -> None:
    """`CLIPModel`, with the position buffers that old versions stored."""
    write_json(folder / "config.json", _clip_config(case))
    save_tensors(folder / "model.safetensors", clip_state(case), bfloat16=case.bfloat16)
    write_processor(folder, case)


def write_clip_vision(folder: Path, case: Case) -> None:
    """`CLIPVisionModelWithProjection`."""
    write_json(folder / "config.json", case.vision | {"architectures": ["CLIPVisionModelWithProjection"]})
    of_vision = ("vision_model", "visual_projection")
    state = {name: value for name, value in clip_state(case).items() if name.startswith(of_vision)}
    save_tensors(folder / "model.safetensors", state, bfloat16=case.bfloat16)
    write_processor(folder, case)


def write_clip_text(folder: Path, case: Case) -> None:
    """`CLIPTextModelWithProjection`."""
    write_json(folder / "config.json", case.clip_text | {"architectures": ["CLIPTextModelWithProjection"]})
    state = {name: value for name, value in clip_state(case).items() if name.startswith("text_")}
    save_tensors(folder / "model.safetensors", state, bfloat16=case.bfloat16)


WRITERS: dict[str, tuple[str, Callable[[Path, Case], None]]] = {
    "hub": ("plain", write_hub),
    "memory_flat": ("plain", write_memory_flat),
    "current": ("grouped", write_current),
    "hub_tied": ("grouped", write_hub),
    "memory": ("narrow", write_memory),
    "original": ("plain", write_original),
    "separate": ("plain", write_separate),
    "vicuna": ("plain", write_vicuna),
    **{f"clip_{name}": (name, write_clip) for name in CASES},
    "clip_vision_plain": ("plain", write_clip_vision),
    "clip_text_plain": ("plain", write_clip_text),
}
"""Layout -> the case that is written in it, and its writer."""


def write(layout: str, root: Path) -> Path:
    """Writes one layout below `root` and returns its folder."""
    case, writer = WRITERS[layout]
    folder = root / layout
    folder.mkdir(parents=True)
    writer(folder, CASES[case])
    return folder


def main() -> None:
    """Writes all layouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    root = parser.parse_args().root
    for layout in WRITERS:
        print(write(layout, root))


if __name__ == "__main__":
    main()
