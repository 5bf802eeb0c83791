"""LLaVA's projector (arXiv 2310.03744): two linear maps with a GELU between, from vision width to decoder width."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core.products import product
from hidecmoe_jax.models.layers import Axes, activation, named


class BiasedLinear(nn.Module):
    """`x @ kernel + bias` [..., F] in the dtype of `x`, with the parameters of `nn.Dense`.

    Not `nn.Dense` itself, which adds the bias as [1, ..., F]: XLA sums the gradient of that in another order, and the
    last bits of every projector that is trained would differ from those of earlier versions.
    """

    features: int
    axes: Axes
    param_dtype: str = "float32"
    sums_float32: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = jnp.dtype(self.param_dtype)
        init_kernel = named(nn.initializers.lecun_normal(), self.axes)
        init_bias = named(nn.initializers.zeros, self.axes[1:])
        kernel = self.param("kernel", init_kernel, (x.shape[-1], self.features), dtype)
        bias = self.param("bias", init_bias, (self.features,), dtype)
        if self.sums_float32 and x.dtype != kernel.dtype:
            return _narrow_affine(x, kernel, bias)
        y = x @ kernel.astype(x.dtype)
        return y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


def _narrow_affine(x: Array, kernel: Array, bias: Array) -> Array:
    """The same where `x` is narrower than the parameters: float32 sums, also of their gradients over devices."""
    y = product(x, kernel)
    y = y + jnp.broadcast_to(bias.astype(jnp.float32), y.shape)
    return y.astype(x.dtype)


class Projector(nn.Module):
    """`mlp2x_gelu`: [..., Dv] -> [..., D].

    `sums_float32`: gradients stay float32 until they are summed over devices, also where `patches` are bfloat16.
    """

    width: int
    param_dtype: str = "float32"
    sums_float32: bool = False

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        linear1 = BiasedLinear(self.width, (None, "width"), self.param_dtype, self.sums_float32, name="linear1")
        linear2 = BiasedLinear(self.width, ("width", None), self.param_dtype, self.sums_float32, name="linear2")
        hidden = activation("gelu", linear1(patches))
        return linear2(hidden)
