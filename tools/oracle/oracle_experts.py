"""Experts, anchors and features of the arithmetic tests, from the same formula as the models' weights."""

from __future__ import annotations

import numpy as np
from oracle_cases import CASES, Case, drawn, head_width

TASKS, RANK, SCALE = 3, 4, 2.0
EXPERTS, SMALL_RANK, OUT, IN = 4, 2, 24, 16
SLOTS = 6
"""Anchors that the official gate has room for; `TASKS` of them are learned."""

TEMPERATURES = (0.05, 0.1, 0.5, 1.0)
READINGS = ("factor_sum", "product_sum", "product_mean")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ROUTED = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
"""MoELoRA gives every linear a router of its own, which reads the linear's own input."""


def case() -> Case:
    """The model that the experts sit in."""
    return CASES["plain"]


def site_widths(config: dict) -> dict[str, tuple[int, int]]:
    """Input and output width of the seven linears of a block."""
    d = config["hidden_size"]
    f = config["intermediate_size"]
    head = head_width(config)
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    widths = {"q_proj": (d, queries), "k_proj": (d, keys), "v_proj": (d, keys), "o_proj": (queries, d)}
    return widths | {"gate_proj": (d, f), "up_proj": (d, f), "down_proj": (f, d)}


def factors(kind: str, expert: int, layer: int, site: str, *, rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    """A [R, D] and B [F, R] of one expert at one linear, as PEFT lays them out."""
    wide, out = site_widths(case().text)[site]
    name = f"{kind}.{expert}.{layer}.{site}"
    return drawn(f"{name}.A", (rank, wide), 7, 0.3), drawn(f"{name}.B", (out, rank), 7, 0.15)


def router(layer: int, site: str) -> np.ndarray:
    """[E, D]: one linear's router, as MoELoRA has it."""
    wide = site_widths(case().text)[site][0]
    return drawn(f"router.{layer}.{site}", (EXPERTS, wide), 7, 0.4)


def pooled(samples: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """CLIP features of a batch, not normalised: image [B, E], text [B, D]."""
    image = case().vision["projection_dim"]
    text = case().clip_text["hidden_size"]
    return drawn("features.image", (samples, image), 7, 3.0), drawn("features.text", (samples, text), 7, 5.0)


def anchors() -> tuple[np.ndarray, np.ndarray]:
    """Means of `SLOTS` tasks: image [N, E], text [N, D]; only the first `TASKS` belong to tasks."""
    image = case().vision["projection_dim"]
    text = case().clip_text["hidden_size"]
    return drawn("anchors.image", (SLOTS, image), 7, 1.0), drawn("anchors.text", (SLOTS, text), 7, 1.0)


def one_linear() -> dict[str, np.ndarray]:
    """A MoELoRA linear alone: x, w, a, b, router, and the weights of its loss."""
    shapes = {
        "x": (2, 5, IN), "w": (OUT, IN), "a": (EXPERTS, SMALL_RANK, IN), "b": (EXPERTS, OUT, SMALL_RANK),
        "router": (EXPERTS, IN), "loss": (2, 5, OUT),
    }  # fmt: skip
    return {name: drawn(f"linear.{name}", shape, 7, 1.0) for name, shape in shapes.items()}
