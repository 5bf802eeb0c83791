"""Weights in int8: values with a scale for every output channel, and the products that read them.

A value is a whole number from -127 to 127, which bfloat16 and float32 hold exactly, so a product computes
`(x @ values) * scale`: the weights are never widened in memory, and what is rounded is what quantisation rounded.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.products import contract


class Int8(struct.PyTreeNode):
    """A kernel [..., D, F] as int8 `values` of its shape and a float32 `scale` [..., 1, F].

    In trees that describe a kernel both are its shapes, or names of its axes.
    """

    values: Any
    scale: Any


def require_qwix() -> None:
    """Refuses where the package that quantises is missing.

    Raises:
      ConfigError: names the command that installs it.
    """
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "weights cannot be quantised", where="scale.bits: 8", why="the package qwix is not installed",
            remedy="pip install qwix==0.1.8, or --set scale.bits=16",
        ) from error  # fmt: skip


@jax.jit
def _quantised(kernel_LDF: Array) -> Int8:
    import qwix

    def of_layer(kernel_DF: Array) -> Int8:
        array = qwix.quantize(kernel_DF.astype(jnp.float32), jnp.int8, channelwise_axes=(1,))
        return Int8(array.qvalue, array.scale)

    # One layer after the other: widened to float32, a stack would need several times its memory.
    return jax.lax.map(of_layer, kernel_LDF)


def quantised(kernel: Array) -> Int8:
    """A stack of kernels [L, D, F], a step of every output channel 1 / 127.5 of its largest absolute value.

    Raises:
      ConfigError: as `require_qwix`.
    """
    require_qwix()
    return _quantised(kernel)


def dequantised(kernel: Int8, dtype: Any = jnp.float32) -> Array:
    """The kernel as numbers."""
    wide = kernel.values.astype(jnp.float32) * kernel.scale
    return wide.astype(dtype)


def shapes_of(kernel: Any) -> Int8:
    """Shapes of `quantised(kernel)`, without computing or the package that would."""
    scale = (*kernel.shape[:-2], 1, kernel.shape[-1])
    return Int8(jax.ShapeDtypeStruct(kernel.shape, jnp.int8), jax.ShapeDtypeStruct(scale, jnp.float32))


def spread_axes(axes: Any, tree: Any) -> Any:
    """Names of axes for a tree in which some kernels are `Int8`: one tuple for values, one for the scale."""

    def spread(names: tuple, leaf: Any) -> Any:
        if not isinstance(leaf, Int8):
            return names
        return Int8(names, (*names[:-2], None, names[-1]))

    return jax.tree.map(spread, axes, tree, is_leaf=lambda node: isinstance(node, tuple))


def int8_product(x: Array, kernel: Int8) -> Array:
    """`x @ kernel`, [..., D] to [..., F], in float32. The kernel is frozen: it has no gradient."""
    return _product(x, kernel.values, kernel.scale)


@jax.custom_vjp
def _product(x: Array, values_DF: Array, scale_1F: Array) -> Array:
    return _forward(x, values_DF, scale_1F)[0]


def _forward(x: Array, values_DF: Array, scale_1F: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    y = contract(x, values_DF.astype(x.dtype), x.ndim - 1, 0)
    # An array of no elements carries the dtype of `x` to the backward pass.
    return y * scale_1F[0], (values_DF, scale_1F, jnp.zeros((0,), x.dtype))


def _backward(operands: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Any, Array]:
    values_DF, scale_1F, like = operands
    scaled = (dy * scale_1F[0]).astype(like.dtype)
    dx = contract(scaled, values_DF.astype(like.dtype), dy.ndim - 1, 1)
    return dx.astype(like.dtype), np.zeros(values_DF.shape, jax.dtypes.float0), jnp.zeros_like(scale_1F)


_product.defvjp(_forward, _backward)
