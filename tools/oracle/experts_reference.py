"""HiDe's and MoELoRA's arithmetic once more, in torch, from the papers' formulas (arXiv 2503.12941, 2403.08350).

Experts are added by forward hooks on transformers' own LLaVA, one expert and one linear at a time, so nothing is shared
with the package but the numbers of `oracle_experts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracle_experts as given
import torch
from make_checkpoints import write
from oracle_cases import CASES
from oracle_experts import ATTENTION, EXPERTS, READINGS, ROUTED, SCALE, TASKS, TEMPERATURES

from hidecmoe_jax.port.checkpoints.reference.__main__ import load, read

Arrays = dict[str, np.ndarray]
Change = Callable[[int, str, torch.Tensor], torch.Tensor]


def linears(model, layer: int) -> dict[str, torch.nn.Linear]:
    """The seven linears of a block by name."""
    block = model.model.language_model.layers[layer]
    return {site: getattr(block.self_attn if site in ATTENTION else block.mlp, site)
            for site in given.site_widths(given.case().text)}  # fmt: skip


def with_change(model, change: Change, run: Callable[[], object], sites=None):
    """Runs with `change(layer, site, x)` added to every linear's output."""
    hooks = []
    for layer in range(given.case().text["num_hidden_layers"]):
        for site, module in linears(model, layer).items():
            if sites is None or site in sites:
                hook = lambda module, inputs, output, at=layer, name=site: output + change(at, name, inputs[0])  # noqa: E731
                hooks.append(module.register_forward_hook(hook))
    try:
        return run()
    finally:
        for hook in hooks:
            hook.remove()


def similarities() -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of a batch with all anchors: image and text, [B, N]."""
    pairs = zip(given.pooled(), given.anchors(), strict=True)
    found = [
        torch.nn.functional.cosine_similarity(torch.tensor(x)[:, None], torch.tensor(y)[None], dim=-1, eps=1e-8)
        for x, y in pairs
    ]
    return found[0], found[1]


def clean_gate(temperature: float) -> torch.Tensor:
    """Softmax over learned tasks, per sample."""
    image, text = similarities()
    return torch.softmax((0.5 * image + 0.5 * text)[:, :TASKS] / temperature, dim=-1)


def legacy_gate(temperature: float) -> torch.Tensor:
    """As the official code has it: one weight vector for the batch from the largest cosines, all slots counted."""
    image, text = similarities()
    mixed = [(0.5 * image[:, i].max().item() + 0.5 * text[:, i].max().item()) / temperature for i in range(given.SLOTS)]
    return torch.softmax(torch.tensor(mixed), dim=-1)


def _pair(task: int, layer: int, site: str) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = given.factors("hide", task, layer, site)
    return torch.tensor(a), torch.tensor(b)


def hide_change(reading: str, gate_BN: torch.Tensor) -> Change:
    """Fused experts below the last layer, gated ones in it."""
    last = given.case().text["num_hidden_layers"] - 1

    def change(layer: int, site: str, x: torch.Tensor) -> torch.Tensor:
        pairs = [_pair(task, layer, site) for task in range(TASKS)]
        if layer == last:
            parts = [gate_BN[:, i, None, None] * (x @ a.T @ b.T) for i, (a, b) in enumerate(pairs)]
            return SCALE * sum(parts)
        if reading == "factor_sum":
            return SCALE * (x @ sum(a for a, _ in pairs).T @ sum(b for _, b in pairs).T)
        share = TASKS if reading == "product_mean" else 1
        return SCALE * sum(x @ a.T @ b.T for a, b in pairs) / share

    return change


def inputs_of_plain() -> Arrays:
    """The probe of the plain case, as it is stored."""
    from make_checkpoints import GOLDENS

    with np.load(GOLDENS / "plain.npz") as file:
        return {name[3:]: file[name] for name in file.files if name.startswith("in_")}


def hide(root: Path) -> Arrays:
    """Gates at several temperatures, and the whole model's states and last logits under every fusion reading."""
    out = {}
    for temperature in TEMPERATURES:
        out[f"gate_{temperature}"] = clean_gate(temperature).numpy()
        out[f"legacy_{temperature}"] = legacy_gate(temperature).numpy()
    inputs = inputs_of_plain()
    pixels = torch.tensor(inputs["pixels"]).permute(0, 3, 1, 2).contiguous()
    model = load(write("hub", root), clip=None, projector=None, vision=None, image_token=CASES["plain"].image_token)
    rows, columns = torch.tensor(inputs["where"].T).long()
    last = torch.tensor(inputs["mask"]).long().sum(1) - 1
    gates = {"": clean_gate(0.1), "_legacy": legacy_gate(0.1)[None, :TASKS].expand(4, TASKS)}
    for reading, (suffix, gate) in [(r, g) for r in READINGS for g in gates.items()]:
        if suffix and reading != "factor_sum":
            continue
        run = lambda: read(model, inputs["tokens"], inputs["mask"], pixels)  # noqa: E731
        seen = with_change(model, hide_change(reading, gate), run)
        out[f"state_{reading}{suffix}"] = seen.hidden_states[-1][rows, columns].numpy()
        out[f"last_{reading}{suffix}"] = seen.logits[torch.arange(4), last].numpy()
    return out


def _moe(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
    """scale * sum_e softmax(R x)_e B_e A_e x, the softmax in float32 over all experts."""
    weight = torch.softmax((x @ router.T).float(), dim=-1)
    return SCALE * sum(weight[..., e : e + 1] * (x @ a[e].T @ b[e].T) for e in range(len(a)))


def moelora(root: Path) -> Arrays:
    """One linear with all its gradients, and the whole model's loss with the gradients of experts and routers."""
    leaves = {name: torch.tensor(value, requires_grad=name != "loss") for name, value in given.one_linear().items()}
    y = leaves["x"] @ leaves["w"].T + _moe(leaves["x"], leaves["a"], leaves["b"], leaves["router"])
    (y * leaves["loss"]).sum().backward()
    out = {"y": y.detach().numpy()}
    out |= {f"d_{name}": leaf.grad.numpy() for name, leaf in leaves.items() if leaf.grad is not None}
    return out | _moelora_model(root)


def _moelora_model(root: Path) -> Arrays:
    inputs, config = inputs_of_plain(), given.case().text
    pixels = torch.tensor(inputs["pixels"]).permute(0, 3, 1, 2).contiguous()
    model = load(write("hub", root), clip=None, projector=None, vision=None, image_token=CASES["plain"].image_token)
    model.requires_grad_(False)
    leaves: dict[tuple[int, str], tuple[torch.Tensor, ...]] = {}
    for layer in range(config["num_hidden_layers"]):
        for site in ROUTED:
            pairs = [given.factors("moe", expert, layer, site, rank=given.SMALL_RANK) for expert in range(EXPERTS)]
            made = (np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]), given.router(layer, site))
            leaves[layer, site] = tuple(torch.tensor(value, requires_grad=True) for value in made)
    change = lambda layer, site, x: _moe(x, *leaves[layer, site])  # noqa: E731
    with torch.enable_grad():
        run = lambda: read.__wrapped__(model, inputs["tokens"], inputs["mask"], pixels)  # noqa: E731
        logits = with_change(model, change, run, sites=ROUTED).logits
    tokens, mask = torch.tensor(inputs["tokens"]).long(), torch.tensor(inputs["mask"])
    asked = mask[:, 1:] & (tokens[:, 1:] != CASES["plain"].image_token)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][asked].float(), tokens[:, 1:][asked])
    loss.backward()
    out = {"loss": loss.detach().numpy()}
    for site in ROUTED:
        for place, name in enumerate(("a", "b", "router")):
            grads = [leaves[layer, site][place].grad for layer in range(config["num_hidden_layers"])]
            out[f"model_d_{name}_{site}"] = torch.stack(grads).numpy()
    return out
