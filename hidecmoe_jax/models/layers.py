"""Building blocks shared by the towers and the decoder: linear maps, norms, attention, and stacks of equal blocks.

Every parameter carries logical axis names (`core/sharding.py` maps them to a mesh). A stack is one block's parameters
with a leading layer axis; it is initialised with `vmap` and run by an explicit scan, so that depth costs no compile
time.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core.products import product

Axes = tuple[str | None, ...]


def named(init, axes: Axes):
    """Wraps an initialiser so that its parameter carries logical axis names."""
    return nn.with_logical_partitioning(init, axes)


def small_normal(axes: Axes):
    """Initialiser of embeddings, positions and class tokens: normal, deviation 0.02, with logical axis names."""
    draw = nn.initializers.normal(1.0)

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        standard = draw(key, shape, dtype)
        # A compiler merges the factor with the last one of the draw, which changes bits.
        standard = jax.lax.optimization_barrier(standard)
        return standard * jnp.array(0.02, dtype)

    return named(init, axes)


def dense(
    features: int,
    axes: Axes,
    dtype: jnp.dtype,
    *,
    bias: bool = False,
    param_dtype: str = "float32",
    name: str | None = None,
    sums_float32: bool = False,
) -> nn.Dense:
    """`nn.Dense` with logical axis names: kernel [D, F] stored in `param_dtype`, cast to `dtype` for the product.

    With `sums_float32` it is `core.products.product`: float32 comes out, and gradients are in reverse mode alone.
    """
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,  # given, because Dense would otherwise promote to the wider of input and parameters
        param_dtype=jnp.dtype(param_dtype),
        kernel_init=named(nn.initializers.lecun_normal(), axes),
        bias_init=named(nn.initializers.zeros, axes[1:]),
        name=name,
        dot_general=_product_of_dense if sums_float32 else None,
    )


def _product_of_dense(x: Array, kernel_DF: Array, axes: object, **_: object) -> Array:
    """`product` as `nn.Dense` calls it; the axes are those of a product of the last axis with the first."""
    del axes
    return product(x, kernel_DF)


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
        init_scale = named(nn.initializers.ones, ("width",))
        init_bias = named(nn.initializers.zeros, ("width",))
        scale = self.param("scale", init_scale, (width,), dtype)
        bias = self.param("bias", init_bias, (width,), dtype)
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, axis=-1, keepdims=True)
        centred = x32 - mean
        squared = jnp.square(centred)
        variance = jnp.mean(squared, axis=-1, keepdims=True)
        inverse_std = jax.lax.rsqrt(variance + self.epsilon)
        y = centred * inverse_std
        y = y * scale.astype(jnp.float32)
        y = y + bias.astype(jnp.float32)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis in float32, returned in the dtype of `x`."""

    epsilon: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        dtype = jnp.dtype(self.param_dtype)
        init_scale = named(nn.initializers.ones, ("width",))
        scale = self.param("scale", init_scale, (width,), dtype)
        x32 = x.astype(jnp.float32)
        squared = jnp.square(x32)
        mean_square = jnp.mean(squared, axis=-1, keepdims=True)
        inverse_rms = jax.lax.rsqrt(mean_square + self.epsilon)
        y = x32 * inverse_rms
        y = y * scale.astype(jnp.float32)
        return y.astype(x.dtype)


def activation(name: str, x: Array) -> Array:
    """GELU as CLIP was trained with: `quick_gelu` (x * sigmoid(1.702 x)) or the exact erf form."""
    if name == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=False)


def attend(
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    mask_B1TS: Array | None = None,
    *,
    implementation: Literal["cudnn"] | None = None,
) -> Array:
    """Softmax attention with grouped keys (G divides H); scores in float32. Fully masked rows stay finite.

    Args:
      implementation: JAX's name of a fused kernel; None for plain products.

    Returns [B, T, H * K] in the dtype of `q`.
    """
    with jax.numpy_dtype_promotion("standard"):  # JAX's own function mixes bfloat16 and float32 on purpose
        out = jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, mask=mask_B1TS, implementation=implementation)
    return out.reshape(*out.shape[:2], -1)


def init_stack(block: nn.Module, layers: int, key: Array, *inputs) -> dict:
    """Parameters of `layers` equal blocks with a leading layer axis."""
    keys = jax.random.split(key, layers)

    def init_layer(layer_key: Array) -> dict:
        variables = block.init(layer_key, *inputs)
        variables = nn.unbox(variables)
        return variables["params"]

    return jax.vmap(init_layer)(keys)


def axes_of(module: nn.Module, *inputs, stacked: bool = False) -> dict:
    """Logical axis names of a module's parameters, as a tree of tuples (with a leading 'layer' when `stacked`)."""
    # Shapes alone: the parameters of a large model would not fit on the host.
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    prefix = ("layer",) if stacked else ()

    def is_boxed(node: object) -> bool:
        return isinstance(node, nn.Partitioned)

    def names_of(leaf: nn.Partitioned) -> tuple:
        return prefix + tuple(leaf.names)

    return jax.tree.map(names_of, variables["params"], is_leaf=is_boxed)
