"""LLaVA's projector (arXiv 2310.03744): two linear maps with a GELU between, from vision width to decoder width."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from hidecmoe_jax.models.layers import activation, dense


class Projector(nn.Module):
    """`mlp2x_gelu`: [..., Dv] -> [..., D]."""

    width: int
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        dtype = patches.dtype
        linear1 = dense(self.width, (None, "width"), dtype, bias=True, param_dtype=self.param_dtype, name="linear1")
        linear2 = dense(self.width, ("width", None), dtype, bias=True, param_dtype=self.param_dtype, name="linear2")
        return linear2(activation("gelu", linear1(patches)))
