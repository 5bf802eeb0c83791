"""What a traced program needs: the most bytes that are alive at once, and the multiplications it executes.

The count follows the operations in order, as a compiler without a scheduler would run them. Elementwise operations are
taken to be fused into whoever reads them and then take no memory of their own; products, reductions, gathers and
results of loops are stored. A loop's body is counted once for memory and as often as it runs for operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from jax.extend.core import Literal

from hidecmoe_jax.core.abstract import bytes_of

# Operations whose result a compiler computes where it is read instead of storing it.
FUSED = frozenset(
    "abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos div dynamic_slice eq erf erf_inv"
    " erfc exp exp2 expm1 floor ge gt integer_pow iota is_finite le log log1p logistic lt max min mul ne neg not or pad"
    " pow random_unwrap random_wrap real reduce_precision rem rev round rsqrt select_n shift_left shift_right_logical"
    " sign sin slice split sqrt square sub tanh transpose xor".split()
)
# Operations whose result is the same bytes under another shape or name.
SAME_BYTES = frozenset(
    "copy_p expand_dims name optimization_barrier reshape sharding_constraint squeeze stop_gradient".split()
)
CALLS = frozenset("jit pjit closed_call custom_jvp_call custom_vjp_call".split())


def peak_bytes(jaxpr: Any, *, inner: bool = False) -> int:
    """Most bytes alive at once in a program beyond its inputs; its results count.

    Args:
      jaxpr: of `jax.jit(f).trace(...)`, without constants.
      inner: the program is a body, whose fused results are written into those of the operation around it.
    """
    stored = _stored(jaxpr, results=not inner)
    last_use = _last_uses(jaxpr, stored)
    inputs = set(jaxpr.invars)
    alive: dict[Any, int] = {}
    now = 0
    most = 0
    for place, equation in enumerate(jaxpr.eqns):
        for var, source in zip(equation.outvars, _updated(equation), strict=True):
            if var not in stored:
                continue
            # Updated in place where nobody reads the former value later; a body's inputs are counted around it.
            is_last = source is not None and last_use.get(source) == place
            if is_last and source in alive:
                alive[var] = alive.pop(source)
            elif is_last and inner and source in inputs:
                alive[var] = 0
            else:
                alive[var] = bytes_of(var.aval)
                now += alive[var]
        most = max(most, now + _inner_bytes(equation))
        for var in [var for var in alive if last_use.get(var, -1) <= place]:
            now -= alive.pop(var)
    return most


def _last_uses(jaxpr: Any, stored: set[Any]) -> dict[Any, int]:
    """Number of the operation that reads a value last. What a fused operation reads lives as long as its result, unless
    that is stored: then it is computed at its place, as any other."""
    end = len(jaxpr.eqns)
    last = {var: end for var in variables(jaxpr.outvars)}
    for place in reversed(range(end)):
        equation = jaxpr.eqns[place]
        until = place
        if _is_fused(equation):
            readers = [last.get(var, place) for var in equation.outvars if var not in stored]
            until = max(readers, default=place)
        for var in variables(equation.invars):
            last[var] = max(last.get(var, -1), until)
    return last


def _stored(jaxpr: Any, *, results: bool) -> set[Any]:
    """Values that take memory: results of operations that are not fused, and what such operations read."""
    stored = set(variables(jaxpr.outvars)) if results else set()
    # Backwards, so that readers are known before what they read.
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name in SAME_BYTES:
            if stored.isdisjoint(equation.outvars):
                continue
            stored.difference_update(equation.outvars)
            stored.update(variables(equation.invars))
        elif not _is_fused(equation):
            stored.update(equation.outvars)
            stored.update(variables(equation.invars))
    return stored - set(jaxpr.invars) - set(jaxpr.constvars)


def _is_fused(equation: Any) -> bool:
    """Whether an operation, or every operation of a called function, is computed where its result is read."""
    name = equation.primitive.name
    if name in CALLS:
        return all(_is_fused(inner) for program in inner_programs(equation) for inner in program.eqns)
    return name in FUSED or name in SAME_BYTES


def _updated(equation: Any) -> list[Any]:
    """For every result, the operand that it is an update of: what a loop carries, and slices written into an array."""
    name = equation.primitive.name
    params = equation.params
    operands = [None if isinstance(atom, Literal) else atom for atom in equation.invars]
    sources: list[Any] = [None] * len(equation.outvars)
    if name == "scan":
        carried = params["num_carry"]
        start = params["num_consts"]
        sources[:carried] = operands[start : start + carried]
    elif name == "while":
        sources = operands[params["cond_nconsts"] + params["body_nconsts"] :]
    elif name == "dynamic_update_slice" or name.startswith("scatter"):
        sources[0] = operands[0]
    return sources


def variables(atoms: Iterable[Any]) -> list[Any]:
    """The atoms of a program that are no constants."""
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _inner_bytes(equation: Any) -> int:
    """Bytes that the bodies of an operation need while it runs."""
    return max((peak_bytes(program, inner=True) for program in inner_programs(equation)), default=0)


def inner_programs(equation: Any) -> list[Any]:
    """Programs inside an operation: a loop's body, a branch, a called function."""
    programs = []
    for value in equation.params.values():
        members = value if isinstance(value, tuple | list) else (value,)
        for member in members:
            program = getattr(member, "jaxpr", member)
            if hasattr(program, "eqns"):
                programs.append(program)
    return programs


def used_inputs(jaxpr: Any) -> list[Any]:
    """Inputs that the program reads; a compiler drops the others."""
    read = set(variables(jaxpr.outvars))
    for equation in jaxpr.eqns:
        read.update(variables(equation.invars))
    return [var for var in jaxpr.invars if var in read]


def product_flops(jaxpr: Any) -> int:
    """Floating-point operations of all matrix products of a program; a multiply and an add count two.

    The body of a `while` counts once: how often it runs is not in the program.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += _dot_flops(equation)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in inner_programs(equation):
            total += times * product_flops(inner)
    return total


def _dot_flops(equation: Any) -> int:
    (left_contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    summed = math.prod(left[axis] for axis in left_contracted)
    results = math.prod(equation.outvars[0].aval.shape)
    return 2 * summed * results
