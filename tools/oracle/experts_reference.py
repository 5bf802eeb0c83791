"""HiDe's and MoELoRA's arithmetic once more, in torch, from the papers' formulas (arXiv 2503.12941, 2403.08350).

Experts are added by forward hooks on transformers' own LLaVA, one expert and one linear at a time, so nothing is shared
with the package but the numbers of `oracle_experts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracle_experts
import torch
from make_checkpoints import GOLDENS, write
from oracle_cases import CASES
from oracle_experts import ATTENTION, EXPERTS, READINGS, ROUTED, SCALE, TASKS, TEMPERATURES

from hidecmoe_jax.port.checkpoints.reference.__main__ import load, read

Arrays = dict[str, np.ndarray]
Change = Callable[[int, str, torch.Tensor], torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]


def linears(model, layer: int) -> dict[str, torch.nn.Linear]:
    """The seven linears of a block by name."""
    block = model.model.language_model.layers[layer]
    modules = {}
    for site in oracle_experts.site_widths(oracle_experts.case().text):
        parent = block.self_attn if site in ATTENTION else block.mlp
        modules[site] = getattr(parent, site)
    return modules


def with_change(model, change: Change, run: Callable[[], object], sites=None):
    """Result of `run` with `change(layer, site, x)` added to the output of every linear, or of those in `sites`."""

    def hook_at(layer: int, site: str) -> Callable:
        return lambda module, inputs, output: output + change(layer, site, inputs[0])

    hooks = []
    for layer in range(oracle_experts.case().text["num_hidden_layers"]):
        for site, module in linears(model, layer).items():
            if sites is None or site in sites:
                hooks.append(module.register_forward_hook(hook_at(layer, site)))
    try:
        return run()
    finally:
        for hook in hooks:
            hook.remove()


def _cosines(features: np.ndarray, anchors: np.ndarray) -> torch.Tensor:
    """Cosine of every row of `features` with every row of `anchors`, [B, N]."""
    rows = torch.tensor(features)[:, None]
    columns = torch.tensor(anchors)[None]
    return torch.nn.functional.cosine_similarity(rows, columns, dim=-1, eps=1e-8)


def similarities() -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of a batch with all anchors: image and text, [B, N]."""
    image, text = oracle_experts.pooled()
    image_anchors, text_anchors = oracle_experts.anchors()
    return _cosines(image, image_anchors), _cosines(text, text_anchors)


def clean_gate(temperature: float) -> torch.Tensor:
    """Softmax over learned tasks, per sample."""
    image, text = similarities()
    return torch.softmax((0.5 * image + 0.5 * text)[:, :TASKS] / temperature, dim=-1)


def legacy_gate(temperature: float) -> torch.Tensor:
    """The official code's gate: one weight vector for the batch from the largest cosines, all slots counted."""
    image, text = similarities()
    mixed = []
    for slot in range(oracle_experts.SLOTS):
        largest_image = image[:, slot].max().item()
        largest_text = text[:, slot].max().item()
        mixed.append((0.5 * largest_image + 0.5 * largest_text) / temperature)
    return torch.softmax(torch.tensor(mixed), dim=-1)


def _pair(task: int, layer: int, site: str) -> Pair:
    """A [R, D] and B [F, R] of one HiDe expert at one linear."""
    a, b = oracle_experts.factors("hide", task, layer, site)
    return torch.tensor(a), torch.tensor(b)


def hide_change(reading: str, gate_BN: torch.Tensor) -> Change:
    """What HiDe adds to a linear's output: fused experts below the last layer, gated ones in it."""
    last = oracle_experts.case().text["num_hidden_layers"] - 1

    def change(layer: int, site: str, x: torch.Tensor) -> torch.Tensor:
        pairs = [_pair(task, layer, site) for task in range(TASKS)]
        if layer == last:
            gated = [gate_BN[:, task, None, None] * (x @ a.T @ b.T) for task, (a, b) in enumerate(pairs)]
            return SCALE * sum(gated)
        if reading == "factor_sum":
            a_sum = sum(a for a, _ in pairs)
            b_sum = sum(b for _, b in pairs)
            return SCALE * (x @ a_sum.T @ b_sum.T)
        share = TASKS if reading == "product_mean" else 1
        return SCALE * sum(x @ a.T @ b.T for a, b in pairs) / share

    return change


def inputs_of_plain() -> Arrays:
    """The probe of the plain case, as it is stored."""
    with np.load(GOLDENS / "plain.npz") as file:
        return {name[3:]: file[name] for name in file.files if name.startswith("in_")}


def _plain_model(root: Path):
    """The plain case's model, opened by transformers from a checkpoint below `root`."""
    image_token = CASES["plain"].image_token
    return load(write("hub", root), clip=None, projector=None, vision=None, image_token=image_token)


def hide(root: Path) -> Arrays:
    """Gates at several temperatures, and the whole model's states and last logits under every fusion reading."""
    out = {}
    for temperature in TEMPERATURES:
        out[f"gate_{temperature}"] = clean_gate(temperature).numpy()
        out[f"legacy_{temperature}"] = legacy_gate(temperature).numpy()
    inputs = inputs_of_plain()
    pixels = torch.tensor(inputs["pixels"]).permute(0, 3, 1, 2).contiguous()
    model = _plain_model(root)
    rows, columns = torch.tensor(inputs["where"].T).long()
    last = torch.tensor(inputs["mask"]).long().sum(1) - 1
    clean = clean_gate(0.1)
    legacy = legacy_gate(0.1)[None, :TASKS].expand(4, TASKS)
    # The legacy gate is compared under one reading only, because fusion does not depend on the gate.
    served = [(reading, "", clean) for reading in READINGS]
    served.insert(1, ("factor_sum", "_legacy", legacy))
    for reading, suffix, gate in served:
        change = hide_change(reading, gate)
        outputs = with_change(model, change, lambda: read(model, inputs["tokens"], inputs["mask"], pixels))
        out[f"state_{reading}{suffix}"] = outputs.hidden_states[-1][rows, columns].numpy()
        out[f"last_{reading}{suffix}"] = outputs.logits[torch.arange(4), last].numpy()
    return out


def _moe(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
    """scale * sum_e softmax(R x)_e B_e A_e x, the softmax in float32 over all experts."""
    weight = torch.softmax((x @ router.T).float(), dim=-1)
    return SCALE * sum(weight[..., e : e + 1] * (x @ a[e].T @ b[e].T) for e in range(len(a)))


def moelora(root: Path) -> Arrays:
    """One linear with all its gradients, and the whole model's loss with the gradients of experts and routers."""
    leaves = {}
    for name, value in oracle_experts.one_linear().items():
        leaves[name] = torch.tensor(value, requires_grad=name != "loss")
    y = leaves["x"] @ leaves["w"].T + _moe(leaves["x"], leaves["a"], leaves["b"], leaves["router"])
    (y * leaves["loss"]).sum().backward()
    out = {"y": y.detach().numpy()}
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            out[f"d_{name}"] = leaf.grad.numpy()
    return out | _moelora_model(root)


def _moelora_leaves(layers: int) -> dict[tuple[int, str], tuple[torch.Tensor, ...]]:
    """A [E, R, D], B [E, F, R] and router [E, D] by (layer, site), with gradients."""
    leaves = {}
    for layer in range(layers):
        for site in ROUTED:
            pairs = []
            for expert in range(EXPERTS):
                pairs.append(oracle_experts.factors("moe", expert, layer, site, rank=oracle_experts.SMALL_RANK))
            a = np.stack([a for a, _ in pairs])
            b = np.stack([b for _, b in pairs])
            router = oracle_experts.router(layer, site)
            leaves[layer, site] = tuple(torch.tensor(value, requires_grad=True) for value in (a, b, router))
    return leaves


def _moelora_model(root: Path) -> Arrays:
    """Loss of the whole model with MoELoRA at every linear, and the gradients of all experts and routers."""
    inputs = inputs_of_plain()
    layers = oracle_experts.case().text["num_hidden_layers"]
    pixels = torch.tensor(inputs["pixels"]).permute(0, 3, 1, 2).contiguous()
    model = _plain_model(root)
    model.requires_grad_(False)
    leaves = _moelora_leaves(layers)

    def change(layer: int, site: str, x: torch.Tensor) -> torch.Tensor:
        return _moe(x, *leaves[layer, site])

    def run():
        # Without the decorator of `read`, which turns gradients off.
        return read.__wrapped__(model, inputs["tokens"], inputs["mask"], pixels)

    with torch.enable_grad():
        logits = with_change(model, change, run, sites=ROUTED).logits
    tokens = torch.tensor(inputs["tokens"]).long()
    mask = torch.tensor(inputs["mask"])
    # Every text token after the first is predicted; pictures are not.
    predicted = mask[:, 1:] & (tokens[:, 1:] != CASES["plain"].image_token)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][predicted].float(), tokens[:, 1:][predicted])
    loss.backward()
    out = {"loss": loss.detach().numpy()}
    for site in ROUTED:
        for index, name in enumerate(("a", "b", "router")):
            gradients = [leaves[layer, site][index].grad for layer in range(layers)]
            out[f"model_d_{name}_{site}"] = torch.stack(gradients).numpy()
    return out
