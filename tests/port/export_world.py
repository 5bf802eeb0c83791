"""What the tests of weights out share: a small run, and a LoRA folder read without our own code."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from tiny import run_config

from hidecmoe_jax.core import trees
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.adopt import write_run

MODULES = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
TREES = {"since5": "model.language_model.layers", "before5": "language_model.model.layers"}


def read_adapter(folder: Path) -> tuple[dict, dict[str, np.ndarray], dict[str, str]]:
    """(config, tensors, header notes) of a PEFT folder."""
    with safe_open(folder / "adapter_model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        notes = file.metadata()
    return json.loads((folder / "adapter_config.json").read_text()), tensors, notes


def update(folder: Path, site: str, layer: int, tree: str = "since5") -> np.ndarray:
    """What PEFT adds to a linear, as its manual says: (lora_alpha / r) * B A, float64 [out, in]."""
    config, tensors, _ = read_adapter(folder)
    module = f"base_model.model.{TREES[tree]}.{layer}.{MODULES[site]}"
    a, b = (tensors[f"{module}.lora_{kind}.weight"].astype(np.float64) for kind in "AB")
    return config["lora_alpha"] / config["r"] * (b @ a)


def make_run(folder: Path, base: Path, name: str, tasks: tuple[str, ...], *, seed: int = 0, **method) -> Path:
    """A run that has learned `tasks`: experts, projector and anchors are drawn, nothing is trained."""
    config = run_config(base, name, rank=3, **method)
    model, random = load_model(base), np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return random.normal(0, 0.2, shape).astype(np.float32)

    lessons, own = [], config.method
    for _ in tasks:
        shapes = own.lora.blank(model, 1).factors
        experts = {path: drawn(*leaf.shape) for path, leaf in trees.flatten(shapes).items()}
        projector = trees.flatten({"projector": model.params["projector"]})
        shared = {path: drawn(*leaf.shape) for path, leaf in projector.items()} if own.train_projector else {}
        one = np.asarray(4, np.int32)
        memory = {"image_NE": drawn(8), "image_count_N": one, "text_ND": drawn(16), "text_count_N": one}
        memory = memory if own.gated and own.gate.kind == "anchors" else {}
        lessons.append({"experts": experts, "shared": shared, "memory": memory})
    write_run(folder, config, model, tasks, lessons, facts={}, digest=trees.digest(model.params))
    return folder
