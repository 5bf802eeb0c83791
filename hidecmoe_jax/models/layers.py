"""Building blocks shared by the towers and the decoder: linear maps, norms, attention, and stacks of equal
blocks.

Every parameter carries logical axis names (`core/sharding.py` maps them to a mesh). A stack is one block's
parameters with a leading layer axis; it is initialised with `vmap` and walked with an explicit scan, so that
depth costs no compile time.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

Axes = tuple[str | None, ...]


def named(init, axes: Axes):
    """Wraps an initialiser so that its parameter knows its logical axis names."""
    return nn.with_logical_partitioning(init, axes)


class Linear(nn.Module):
    """`y = x @ kernel (+ bias)`; kernel [D, F] stored in `param_dtype`, computed in the dtype of `x`."""

    features: int
    axes: Axes
    bias: bool = False
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = named(nn.initializers.lecun_normal(), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.dtype(self.param_dtype))
        y = x @ kernel.astype(x.dtype)
        if not self.bias:
            return y
        bias = self.param(
            "bias", named(nn.initializers.zeros, self.axes[1:]), (self.features,), jnp.dtype(self.param_dtype)
        )
        return y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


class LayerNorm(nn.Module):
    """Layer norm over the last axis in float32, returned in the dtype of `x`."""

    epsilon: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, dtype = x.shape[-1], jnp.dtype(self.param_dtype)
        scale = self.param("scale", named(nn.initializers.ones, ("width",)), (width,), dtype).astype(jnp.float32)
        bias = self.param("bias", named(nn.initializers.zeros, ("width",)), (width,), dtype).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (y * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis in float32, returned in the dtype of `x`."""

    epsilon: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = named(nn.initializers.ones, ("width",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.dtype(self.param_dtype)).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return (y * scale).astype(x.dtype)


def activation(name: str, x: Array) -> Array:
    """GELU as CLIP was trained with: `quick_gelu` (x * sigmoid(1.702 x)) or the exact erf form."""
    if name == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=False)


def attend(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask_B1TS: Array | None = None) -> Array:
    """Softmax attention with grouped keys (G divides H); scores in float32. Fully masked rows stay finite.

    Returns [B, T, H * K] in the dtype of `q`.
    """
    with jax.numpy_dtype_promotion("standard"):  # JAX's own function mixes bfloat16 and float32 on purpose
        out = jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, mask=mask_B1TS)
    return out.reshape(*out.shape[:2], -1)


def init_stack(block: nn.Module, layers: int, key: Array, *inputs) -> dict:
    """Parameters of `layers` equal blocks with a leading layer axis."""
    keys = jax.random.split(key, layers)
    return jax.vmap(lambda k: nn.unbox(block.init(k, *inputs))["params"])(keys)


def axes_of(module: nn.Module, *inputs, stacked: bool = False) -> dict:
    """Logical axis names of a module's parameters, as a tree of tuples (with a leading 'layer' when `stacked`)."""
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
    prefix = ("layer",) if stacked else ()
    return jax.tree.map(lambda p: prefix + tuple(p.names), boxed, is_leaf=lambda p: isinstance(p, nn.Partitioned))
