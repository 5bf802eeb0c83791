"""Building blocks shared by the towers and the decoder: linear maps, norms, attention, and stacks of equal blocks.

Every parameter carries logical axis names (`core/sharding.py` maps them to a mesh). A stack is one block's parameters
with a leading layer axis; it is initialised with `vmap` and run by an explicit scan, so that depth costs no compile
time.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

Axes = tuple[str | None, ...]


def named(init, axes: Axes):
    """Wraps an initialiser so that its parameter carries logical axis names."""
    return nn.with_logical_partitioning(init, axes)


def dense(
    features: int,
    axes: Axes,
    dtype: jnp.dtype,
    *,
    bias: bool = False,
    param_dtype: str = "float32",
    name: str | None = None,
) -> nn.Dense:
    """`nn.Dense` with logical axis names: kernel [D, F] stored in `param_dtype`, cast to `dtype` for the product."""
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,  # given, because Dense would otherwise promote to the wider of input and parameters
        param_dtype=jnp.dtype(param_dtype),
        kernel_init=named(nn.initializers.lecun_normal(), axes),
        bias_init=named(nn.initializers.zeros, axes[1:]),
        name=name,
    )


# The norms are not Flax's: those multiply by one factor, scale / deviation, where here the division is first. Results
# would differ in their last bits, and so would those of every model converted before.


class LayerNorm(nn.Module):
    """Layer norm over the last axis in float32, returned in the dtype of `x`."""

    epsilon: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        dtype = jnp.dtype(self.param_dtype)
        scale = self.param("scale", named(nn.initializers.ones, ("width",)), (width,), dtype)
        bias = self.param("bias", named(nn.initializers.zeros, ("width",)), (width,), dtype)
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis in float32, returned in the dtype of `x`."""

    epsilon: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = named(nn.initializers.ones, ("width",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.dtype(self.param_dtype))
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        y = x32 * jax.lax.rsqrt(mean_square + self.epsilon)
        y = y * scale.astype(jnp.float32)
        return y.astype(x.dtype)


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

    def init_layer(layer_key: Array) -> dict:
        return nn.unbox(block.init(layer_key, *inputs))["params"]

    return jax.vmap(init_layer)(keys)


def axes_of(module: nn.Module, *inputs, stacked: bool = False) -> dict:
    """Logical axis names of a module's parameters, as a tree of tuples (with a leading 'layer' when `stacked`)."""
    # Shapes alone: the parameters of a large model would not fit on the host.
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
    prefix = ("layer",) if stacked else ()

    def is_boxed(node: object) -> bool:
        return isinstance(node, nn.Partitioned)

    return jax.tree.map(lambda leaf: prefix + tuple(leaf.names), boxed, is_leaf=is_boxed)
