"""Experts, anchors and features of the arithmetic tests, from the same formula as the models' weights."""

from __future__ import annotations

import numpy as np
from oracle_cases import CASES, Case, drawn, head_width

TASKS = 3
RANK = 4
SCALE = 2.0
# MoELoRA's experts, and the widths of its linear alone.
EXPERTS = 4
SMALL_RANK = 2
OUT = 24
IN = 16
SLOTS = 6
"""Anchors that the official gate has room for; `TASKS` of them are learned."""

TEMPERATURES = (0.05, 0.1, 0.5, 1.0)
READINGS = ("factor_sum", "product_sum", "product_mean")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ROUTED = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
"""MoELoRA gives every linear a router of its own, which reads the linear's own input."""


def case() -> Case:
    """The model that the experts belong to."""
    return CASES["plain"]


def site_widths(config: dict) -> dict[str, tuple[int, int]]:
    """Input and output width of the seven linears of a block."""
    width = config["hidden_size"]
    hidden = config["intermediate_size"]
    head = head_width(config)
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    return {
        "q_proj": (width, queries),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "o_proj": (queries, width),
        "gate_proj": (width, hidden),
        "up_proj": (width, hidden),
        "down_proj": (hidden, width),
    }


def factors(kind: str, expert: int, layer: int, site: str, *, rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    """A [R, D] and B [F, R] of one expert at one linear, as PEFT stores them."""
    width, out = site_widths(case().text)[site]
    name = f"{kind}.{expert}.{layer}.{site}"
    a_RD = drawn(f"{name}.A", (rank, width), 7, 0.3)
    b_FR = drawn(f"{name}.B", (out, rank), 7, 0.15)
    return a_RD, b_FR


def router(layer: int, site: str) -> np.ndarray:
    """MoELoRA's router of one linear, [E, D]."""
    width, _ = site_widths(case().text)[site]
    return drawn(f"router.{layer}.{site}", (EXPERTS, width), 7, 0.4)


def pooled(samples: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """CLIP features of a batch, not normalised: image [B, E], text [B, D]."""
    image_width = case().vision["projection_dim"]
    text_width = case().clip_text["hidden_size"]
    image = drawn("features.image", (samples, image_width), 7, 3.0)
    text = drawn("features.text", (samples, text_width), 7, 5.0)
    return image, text


def anchors() -> tuple[np.ndarray, np.ndarray]:
    """Means of `SLOTS` tasks: image [N, E], text [N, D]; only the first `TASKS` belong to tasks."""
    image_width = case().vision["projection_dim"]
    text_width = case().clip_text["hidden_size"]
    image = drawn("anchors.image", (SLOTS, image_width), 7, 1.0)
    text = drawn("anchors.text", (SLOTS, text_width), 7, 1.0)
    return image, text


def one_linear() -> dict[str, np.ndarray]:
    """A MoELoRA linear alone: x, w, a, b, router, and the weights of its loss."""
    shapes = {
        "x": (2, 5, IN),
        "w": (OUT, IN),
        "a": (EXPERTS, SMALL_RANK, IN),
        "b": (EXPERTS, OUT, SMALL_RANK),
        "router": (EXPERTS, IN),
        "loss": (2, 5, OUT),
    }
    return {name: drawn(f"linear.{name}", shape, 7, 1.0) for name, shape in shapes.items()}
