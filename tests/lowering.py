"""Cheaper lowering for tests, whose programs are many and small."""

import threading

import jax
from jax._src.interpreters import mlir

# Before the next context is made: one keeps what it has seen.
PROGRAMS_A_CONTEXT = 200


def lower_in_shared_contexts() -> None:
    """Programs of a thread share a context of MLIR; what is lowered is the same.

    JAX makes one for every program, with all operations that there are: a fifth of the time of a small program.
    """
    # No public name: for the versions that were tried alone.
    if not jax.__version__.startswith("0.10."):
        return
    made = threading.local()
    make = mlir.make_ir_context

    def shared():
        left = getattr(made, "left", 0)
        if not left:
            made.context = make()
            left = PROGRAMS_A_CONTEXT
        made.left = left - 1
        return made.context

    mlir.make_ir_context = shared
