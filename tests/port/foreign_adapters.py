"""Adapter folders in the layouts of other tools, drawn at random: names and shapes as those tools save them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tiny import TINY

MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MODULES += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
WIDTH, HIDDEN, LAYERS = TINY.decoder.width, TINY.decoder.hidden, TINY.decoder.layers


def shape_of(module: str) -> tuple[int, int]:
    """Input and output width of a linear of the tiny decoder."""
    wide = {"mlp.gate_proj": (WIDTH, HIDDEN), "mlp.up_proj": (WIDTH, HIDDEN), "mlp.down_proj": (HIDDEN, WIDTH)}
    return wide.get(module, (WIDTH, WIDTH))


def drawn(random, *shape: int) -> np.ndarray:
    return random.normal(0, 0.3, shape).astype(np.float32)


def projector(random, name: str) -> dict[str, np.ndarray]:
    """LLaVA's own names (`0`, `2`) or Hugging Face's (`linear_1`, `linear_2`)."""
    parts = ("0", "2") if name.endswith("mm_projector") else ("linear_1", "linear_2")
    return {f"{name}.{part}.weight": drawn(random, WIDTH, WIDTH) for part in parts} | {
        f"{name}.{part}.bias": drawn(random, WIDTH) for part in parts
    }


def write_folder(
    folder: Path, config: dict, tensors: dict, more: dict | None = None, header: dict | None = None
) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"} | (header or {}))
    if more:
        save_file(more, folder / "non_lora_trainables.safetensors")
    return folder


def lora_tensors(seed: int = 0, *, rank: int = 4, root: str = "model.language_model", modules=MODULES) -> dict:
    random, found = np.random.default_rng(seed), {}
    for layer in range(LAYERS):
        for module in modules:
            width, out = shape_of(module)
            name = f"base_model.model.{root}.layers.{layer}.{module}"
            found[f"{name}.lora_A.weight"] = drawn(random, rank, width)
            found[f"{name}.lora_B.weight"] = drawn(random, out, rank)
    return found


def peft_folder(folder: Path, *, seed: int = 0, rank: int = 4, alpha: float = 8, header=None, **config) -> Path:
    """What PEFT's `save_pretrained` leaves behind."""
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.05, "bias": "none"} | config
    return write_folder(folder, told, lora_tensors(seed, rank=rank), header=header)


def split_tensors(seed: int = 0, *, experts: int = 3, rank: int = 2, twice: bool = False) -> dict:
    """HiDe's and CoIN's names: `lora_A.loraA.{i}`, a router at every linear."""
    random, found = np.random.default_rng(seed), {}
    for layer in range(LAYERS):
        for module in MODULES:
            width, out = shape_of(module)
            name = f"base_model.model.model.layers.{layer}.{module}"
            for expert in range(experts):
                a, b = drawn(random, rank, width), drawn(random, out, rank)
                for tail in ("weight", "mlp.weight") if twice else ("weight",):
                    found[f"{name}.lora_A.loraA.{expert}.{tail}"] = a
                    found[f"{name}.lora_B.loraB.{expert}.{tail}"] = b
            found[f"{name}.lora_router.weight"] = drawn(random, experts, width)
    return found


def hide_folder(folder: Path, *, current: int = 1, seed: int = 0, twice: bool = False, **config) -> Path:
    """HiDe's: three slots, two of them learned; anchors for ten tasks, as the official code keeps them."""
    random = np.random.default_rng(seed + 100)
    told = {"peft_type": "MOE_LORA_HiDe", "r": 6, "lora_alpha": 12, "lora_dropout": 0.05, "bias": "none"}
    told |= {"expert_num": 3, "cur_task": current, "task_embedding_dim": 64} | config
    more = projector(random, "base_model.model.model.mm_projector")
    for task in range(10):
        for kind, width in (("image", TINY.vision.projection), ("text", TINY.text.width)):
            more[f"base_model.model.{kind}_anchors.{task}"] = drawn(random, width)
            more[f"base_model.model.{kind}_boundary.{task}"] = drawn(random, 1)
    return write_folder(folder, told, split_tensors(seed, twice=twice), more)


def moelora_folder(folder: Path, *, seed: int = 0, **config) -> Path:
    """CoIN's: three experts that every token mixes at every linear."""
    told = {"peft_type": "MOE_LORA_CoIN", "r": 6, "lora_alpha": 12, "lora_dropout": 0.05, "expert_num": 3} | config
    more = projector(np.random.default_rng(seed + 100), "base_model.model.model.mm_projector")
    return write_folder(folder, told, split_tensors(seed), more)
