"""Answers of transformers' PyTorch models in float32 to the probe of `hidecmoe_jax.port.checkpoints.check`.

A program of its own (extra `oracle`): `hidecmoe convert --check` runs it by path, in any interpreter that has torch and
transformers. Hugging Face layouts are opened by transformers itself; the original layout and a language model with a
separate projector are assembled here by a table of names, every tensor exactly once. It shares no code with the
converter, so that an error in one of them cannot hide in the other.

Arguments: SOURCE probe.npz answers.npz [--clip DIR ...] [--projector FILE] [--vision DIR]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

Arrays = dict[str, np.ndarray]
STEPS = 12
RENAMED = (
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.vision_tower\.vision_tower\.(vision_model\.)?", "model.vision_tower."),
    (r"^vision_model\.", "model.vision_tower."),
    (r"^model\.(layers|norm|embed_tokens)\b", r"model.language_model.\1"),
)


def read_config(folder: Path) -> dict:
    """A folder's config.json."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files, float32."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, value in load_file(path).items():
            state[name] = value.float()
    return state


def load(source: Path, *, clip: Path | None, projector: Path | None, vision: Path | None, image_token: int):
    """The model in any layout."""
    config = read_config(source)
    if config["architectures"] == ["LlavaForConditionalGeneration"]:
        model = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
        model.config.image_token_id = image_token
        return model.eval()
    return assembled(source, config, tower=vision or clip, projector=projector, image_token=image_token)


def assembled(source: Path, config: dict, *, tower: Path | None, projector: Path | None, image_token: int):
    """A model out of the original layout's parts: language model, projector, vision tower."""
    # Old files store the rotary frequencies, which the model computes.
    state = {name: value for name, value in tensors(source).items() if "rotary_emb" not in name}
    if projector is not None:
        folder = projector if projector.is_dir() else projector.parent
        for name, value in tensors(folder).items():
            if "mm_projector" in name:
                state[name] = value
    if tower is None:
        raise SystemExit("the original layout has no config of its vision tower: give --clip or --vision")
    if not any("vision_tower" in name for name in state):
        # A CLIP folder may have the text tower as well.
        for name, value in tensors(tower).items():
            if name.startswith("vision_model."):
                state[name] = value
    tower_config = read_config(tower)
    # `model_type` is LLaVA's own name there, not LLaMA's.
    text_settings = {name: value for name, value in config.items() if name != "model_type"}
    text = LlamaConfig(**text_settings)
    whole = LlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**tower_config.get("vision_config", tower_config)),
        image_token_index=image_token,
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        attn_implementation="eager",
    )
    model = LlavaForConditionalGeneration(whole)
    named = {}
    for name, value in state.items():
        for pattern, target in RENAMED:
            name = re.sub(pattern, target, name)
        named[name] = value
    model.load_state_dict(named, strict=True)  # every tensor exactly once
    table = model.get_input_embeddings().weight.detach()
    # transformers looks the row of the image token up before a patch takes its place, so the table must have one.
    if image_token >= len(table):
        more = torch.zeros(image_token + 1 - len(table), table.shape[1])
        longer = torch.cat([table, more])
        model.set_input_embeddings(torch.nn.Embedding.from_pretrained(longer))
    return model.float().eval()


class Towers:
    """The CLIP pair: projected image embeddings, text states before and after the projection; one may be absent."""

    def __init__(self, folder: Path):
        kind = read_config(folder)["architectures"][0]
        known = {cls.__name__: cls for cls in (CLIPModel, CLIPVisionModelWithProjection, CLIPTextModelWithProjection)}
        if kind not in known:
            names = ", ".join(known)
            raise SystemExit(f"{folder}: a {kind} has no projection to compare; give one of {names}")
        self.kind = kind
        self.model = known[kind].from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def outputs(self, pixels_NCHW: torch.Tensor, ids: torch.Tensor) -> Arrays:
        """Embeddings of pictures and texts."""
        out = {}
        if self.kind != "CLIPTextModelWithProjection":
            vision = self.model.vision_model(pixel_values=pixels_NCHW)
            out["clip_image"] = self.model.visual_projection(vision.pooler_output).numpy()
        if self.kind != "CLIPVisionModelWithProjection":
            text = self.model.text_model(input_ids=ids)
            out["clip_text_state"] = text.pooler_output.numpy()
            out["clip_text"] = self.model.text_projection(text.pooler_output).numpy()
        return out


def _left(tokens: np.ndarray, mask: np.ndarray, where: np.ndarray):
    """The same rows padded on the left, and the compared places shifted with them."""
    left_tokens = np.zeros_like(tokens)
    left_mask = np.zeros_like(mask)
    left_where = where.copy()
    for row in range(len(tokens)):
        count = int(mask[row].sum())
        padding = tokens.shape[1] - count
        left_tokens[row, -count:] = tokens[row, :count]
        left_mask[row, -count:] = True
        in_row = where[:, 0] == row
        left_where[in_row, 1] += padding
    return left_tokens, left_mask, left_where


@torch.no_grad()
def read(model, tokens: np.ndarray, mask: np.ndarray, pixels_NCHW: torch.Tensor):
    """Hidden states of every layer (the last one normed) and logits of a padded batch."""
    keys = torch.tensor(mask).long()
    # Positions count valid tokens only, so that padding on either side changes nothing.
    places = (keys.cumsum(1) - 1).clamp(min=0)
    return model(
        input_ids=torch.tensor(tokens).long(), attention_mask=keys, position_ids=places, pixel_values=pixels_NCHW,
        output_hidden_states=True, use_cache=False,
    )  # fmt: skip


def _last_layer(model, tokens, mask, pixels) -> torch.Tensor:
    """The last layer's output before the norm, which the hidden states leave out."""
    outputs: list[torch.Tensor] = []
    norm = model.model.language_model.norm
    hook = norm.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0]))
    read(model, tokens, mask, pixels)
    hook.remove()
    return outputs[0]


@torch.no_grad()
def answers(model, inputs: Mapping[str, np.ndarray], *, steps: int = STEPS) -> Arrays:
    """The outputs of `check.ours` for a probe, computed by transformers."""
    pixels = torch.tensor(inputs["pixels"]).permute(0, 3, 1, 2).contiguous()
    tower = model.model.vision_tower(pixel_values=pixels, output_hidden_states=True)
    feature_layer = tower.hidden_states[model.config.vision_feature_layer]
    # The first token is the class token.
    features = feature_layer[:, 1:]
    out = {"vision_features": features, "projected": model.model.multi_modal_projector(features)}
    tokens = inputs["tokens"]
    mask = inputs["mask"]
    where = inputs["where"]
    rows, columns = torch.tensor(where.T).long()
    right = read(model, tokens, mask, pixels)
    last = _last_layer(model, tokens, mask, pixels)
    states = [*right.hidden_states[:-1], last]
    for index, state in enumerate(states):
        out[f"hidden_{index:02d}"] = state[rows, columns]
    out["hidden_normed"] = right.hidden_states[-1][rows, columns]
    out["logits"] = right.logits[rows[::2], columns[::2]]
    left_tokens, left_mask, moved = _left(tokens, mask, where)
    rows, columns = torch.tensor(moved[::4].T).long()
    left_logits = read(model, left_tokens, left_mask, pixels).logits
    out["logits_left"] = left_logits[rows, columns]
    long = inputs["long_tokens"][None]
    long_mask = np.ones_like(long, bool)
    picture = pixels[int(inputs["long_picture"])][None]
    long_logits = read(model, long, long_mask, picture).logits
    # As many places as `check._long_logits` takes: every 16th.
    out["logits_long"] = long_logits[0, ::16]
    written = model.generate(
        input_ids=torch.tensor(left_tokens).long(), attention_mask=torch.tensor(left_mask).long(), pixel_values=pixels,
        max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    step_logits = torch.stack(written.logits, 1).float()
    best = step_logits.topk(2, dim=-1).values
    # `sequences` begins with the prompt.
    out["greedy"] = written.sequences[:, tokens.shape[1] :].int()
    out["margin"] = best[..., 0] - best[..., 1]
    return {name: value.numpy() for name, value in out.items()}


def main() -> None:
    """Reads SOURCE, answers the probe, writes the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("source", "probe", "answers"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--clip", type=Path, nargs="+", default=[])
    for name in ("projector", "vision"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    with np.load(args.probe) as file:
        inputs = {name: file[name] for name in file.files}
    token = int(inputs["image_token"])
    # The vision tower of an original LLaVA may come from any CLIP folder but one with the text tower alone.
    clip = None
    for folder in args.clip:
        kind = read_config(folder)["architectures"][0]
        if clip is None and "Text" not in kind:
            clip = folder
    model = load(args.source, clip=clip, projector=args.projector, vision=args.vision, image_token=token)
    out = answers(model, inputs)
    pixels = torch.tensor(inputs["pixels"]).permute(0, 3, 1, 2)
    clip_ids = torch.tensor(inputs["clip_ids"]).long()
    for folder in args.clip:
        out |= Towers(folder).outputs(pixels, clip_ids)
    np.savez(args.answers, **out)


if __name__ == "__main__":
    main()
