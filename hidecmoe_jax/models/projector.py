"""LLaVA's projector (arXiv 2310.03744): two linear maps with a GELU between, from vision width to decoder width."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from hidecmoe_jax.models.layers import Linear, activation


class Projector(nn.Module):
    """`mlp2x_gelu`: [..., Dv] -> [..., D]."""

    width: int
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        h = Linear(self.width, (None, "width"), bias=True, param_dtype=self.param_dtype, name="linear1")(patches)
        h = activation("gelu", h)
        return Linear(self.width, ("width", None), bias=True, param_dtype=self.param_dtype, name="linear2")(h)
