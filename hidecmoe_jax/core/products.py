"""Matrix products whose sums are float32 whatever the operands, in the forward and in the backward pass.

A product of bfloat16 operands that is asked for in float32 and rounded afterwards is the same arithmetic as one asked
for in bfloat16, and compilers for CPUs reach the matrix units with the former alone. What the rules of JAX derive from
it mixes a float32 cotangent with a bfloat16 operand, which no unit multiplies: hence a gradient of our own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def product(x: Array, w_DF: Array) -> Array:
    """`x @ w`, [..., D] times [D, F] to [..., F], in float32; `w` is cast to the dtype of `x` for it.

    The gradient of `x` is summed in float32 and rounded once to the dtype of `x`. That of `w` stays float32 until it is
    cast to the dtype in which `w` is stored: a factor that is stored in float32 gets it unrounded, also where it is
    summed over devices. A gradient that nobody asks for costs nothing, because compilers drop unread products.
    """
    return _forward(x, w_DF)[0]


def _forward(x: Array, w_DF: Array) -> tuple[Array, tuple[Array, Array]]:
    y = contract(x, w_DF.astype(x.dtype), x.ndim - 1, 0)
    return y, (x, w_DF)


def _backward(operands: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w_DF = operands
    dy = dy.astype(x.dtype)
    dx = contract(dy, w_DF.astype(x.dtype), dy.ndim - 1, 1)
    # One row a token: contracted over two axes at once, the operands would be transposed first.
    x_ND = x.reshape(-1, x.shape[-1])
    dy_NF = dy.reshape(-1, dy.shape[-1])
    dw_DF = contract(x_ND, dy_NF, 0, 0)
    return dx.astype(x.dtype), dw_DF.astype(w_DF.dtype)


def contract(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """Sum of products over one axis of either operand, float32."""
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


product.defvjp(_forward, _backward)
