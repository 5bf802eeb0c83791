"""Deterministic operations on GPUs, which XLA takes as a flag before its first program.

Without it sums by atomic additions may differ from run to run in the last bits. CPUs and TPUs do not differ by
themselves, there the flag changes nothing.
"""

from __future__ import annotations

import os

_FLAG = "--xla_gpu_deterministic_ops=true"


def use_deterministic() -> None:
    """Asks XLA for deterministic operations; call it before JAX compiles anything."""
    if not is_deterministic():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()


def is_deterministic() -> bool:
    """Whether XLA was asked for them, here or by the user."""
    return _FLAG in os.environ.get("XLA_FLAGS", "").split()
