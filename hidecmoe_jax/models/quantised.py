"""A model whose decoder's linears are int8: made from one that is loaded, or as shapes.

Token table, head, norms, projector and vision tower stay as they are: they are a fifteenth of LLaVA-1.5-7B, and answers
depend on them most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from hidecmoe_jax.core.int8 import Int8, quantised, require_qwix, shapes_of
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Model, decoder_layers, model_template, with_decoder_layers


def is_quantised(model: Model) -> bool:
    """Whether linears of the decoder are int8."""
    return any(isinstance(leaves.get("kernel"), Int8) for leaves in decoder_layers(model).values())


def quantise_model(model: Model, *, consume: bool = False) -> Model:
    """The model with every linear of the decoder in int8, one leaf after the other.

    Args:
      consume: delete a kernel as soon as it is quantised; `model` cannot be used afterwards.

    Raises:
      ConfigError: the package that quantises is not installed.
    """
    require_qwix()

    def change(kernel: Any) -> Int8:
        int8 = jax.block_until_ready(quantised(kernel))
        if consume:
            kernel.delete()
        return int8

    return _with_kernels(model, change)


def template_of(config: LlavaConfig, bits: int) -> Model:
    """A model of shapes, in int8 where `bits` are 8."""
    template = model_template(config)
    return quantised_shapes(template) if bits == 8 else template


def quantised_shapes(model: Model) -> Model:
    """The same of a model of shapes."""
    return _with_kernels(model, shapes_of)


def _with_kernels(model: Model, change: Callable[[Any], Int8]) -> Model:
    layers = {}
    for site, leaves in decoder_layers(model).items():
        layers[site] = leaves
        if "kernel" in leaves:
            layers[site] = {**leaves, "kernel": change(leaves["kernel"])}
    return with_decoder_layers(model, layers)
