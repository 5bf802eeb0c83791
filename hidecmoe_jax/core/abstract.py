"""Calls a function on shapes: large arrays are shapes alone, small ones are real numbers.

`jax.eval_shape` makes every array abstract, so a function that reads who owns a slot on the host cannot be called by
it. Here a small array whose inputs are numbers is computed, and every other one has a shape and a dtype and takes no
memory. Host code of a method (initialisation, surgery, folding) thereby runs as it is at the shapes
of a model that this machine could not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Trace, Tracer, eval_context, eval_jaxpr
from jax.extend.core import set_current_trace

SMALL = 2**16
"""Most numbers of an array that is computed."""
SMALL_WHOLE = 2**20
"""The same for whole numbers and truth values, which say who owns a slot and how often it was chosen."""


class ShapeOnly(Tracer):
    """An array of which only shape and dtype are available."""

    __slots__ = ()


class ShapeTrace(Trace):
    """Interprets operations: computes small results of known numbers, infers the shapes of all others."""

    def stage_value(self, value: Any) -> Any:
        """A value of the host as an array."""
        if isinstance(value, ShapeOnly):
            return value
        with eval_context():
            return jnp.asarray(value)

    def process_primitive(self, primitive: Any, args: Sequence[Any], params: dict[str, Any], /) -> Any:
        """The results of one operation."""
        inner: Any = params.get("jaxpr")
        if primitive.name in ("jit", "pjit", "closed_call"):
            # Compiled as a whole it would be abstract as a whole; inside, owners can be computed beside factors.
            return self._inside(eval_jaxpr, inner.jaxpr, inner.consts, *args)
        outputs, _ = primitive.abstract_eval(*map(_aval_of, args), **params)
        several = primitive.multiple_results
        avals = outputs if several else [outputs]
        is_known = not any(isinstance(arg, ShapeOnly) for arg in args)
        if is_known and all(_is_small(aval, primitive.name) for aval in avals):
            return primitive.bind(*args, **params)
        results = [ShapeOnly(self, aval) for aval in avals]
        return results if several else results[0]

    def _inside(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result, with this trace for its operations: JAX computes while a primitive is processed."""
        with set_current_trace(self):
            return function(*args)

    def process_custom_jvp_call(self, primitive: Any, fun: Any, jvp: Any, args: Sequence[Any], /, **_: Any) -> Any:
        """The function itself: nothing is differentiated here."""
        return self._inside(fun.call_wrapped, *args)

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Sequence[Any], /, **_: Any
    ) -> Any:
        """The function itself: nothing is differentiated here."""
        return self._inside(fun.call_wrapped, *args)


def call_on_shapes(function: Callable[..., Any], *args: Any) -> Any:
    """The result of `function`, with a `ShapeDtypeStruct` in place of every large array.

    The same large array in arguments and result is the same object, so what was passed through can be recognised.

    Args:
      args: pytrees; leaves that are `ShapeDtypeStruct`s are arrays of which only the shape is known.

    Raises:
      jax.errors.TracerArrayConversionError: the function reads the numbers of a large array on the host.
    """
    trace = ShapeTrace()
    structs: dict[int, jax.ShapeDtypeStruct] = {}
    tracers: dict[int, ShapeOnly] = {}

    def entered(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if id(leaf) not in tracers:
            tracer = ShapeOnly(trace, jax.core.ShapedArray(leaf.shape, leaf.dtype))
            tracers[id(leaf)] = tracer
            structs[id(tracer)] = leaf
        return tracers[id(leaf)]

    def left(leaf: Any) -> Any:
        if not isinstance(leaf, ShapeOnly):
            return leaf
        return structs.setdefault(id(leaf), jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))

    inputs = jax.tree.map(entered, args)
    with set_current_trace(trace):
        result = function(*inputs)
        return jax.tree.map(left, result)


def _aval_of(value: Any) -> Any:
    return value.aval if isinstance(value, Tracer) else jax.typeof(value)


def _is_small(aval: Any, primitive: str) -> bool:
    dtype = getattr(aval, "dtype", np.dtype(np.float32))
    is_whole = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
    # Drawing is slow, and nobody reads what was drawn.
    is_drawn = primitive.startswith(("random", "threefry"))
    limit = SMALL_WHOLE if is_whole and not is_drawn else SMALL
    return math.prod(getattr(aval, "shape", ())) <= limit


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays and `ShapeDtypeStruct`s in a tree."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "shape"):
            total += math.prod(leaf.shape) * _item_bytes(leaf.dtype)
    return total


def _item_bytes(dtype: Any) -> int:
    # A random key is two uint32.
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return 8
    return np.dtype(dtype).itemsize
