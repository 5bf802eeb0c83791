"""How programs of the decoder are executed: the settings that no result depends on beyond rounding.

They are a static part of a model, so jitted functions are compiled for them. The one place where a default is chosen by
the kind of processor is `execution_for`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

STAYS = "stays"
"""Name, for policies of recomputation, of the mask that dropout draws."""


@dataclass(frozen=True)
class Execution:
    """How the layers are run.

    Attributes:
      attention: `library` is JAX's own function; `products` is `attention.attend_by_products`.
      recompute: the backward pass computes the activations of a layer again, beginning with the layer's input.
      saved: names of activations that are saved all the same.
      decode: a token goes through layers that lie in one stack (`stack`), or were taken apart before (`apart`,
        `models/decode.py`), which takes the memory of a second decoder and copies nothing at a token.
    """

    attention: Literal["library", "products"] = "library"
    recompute: bool = False
    saved: tuple[str, ...] = ()
    decode: Literal["stack", "apart"] = "stack"


PLAIN = Execution()
ON_CPU = Execution(attention="products", recompute=True, saved=(STAYS,))
"""On a CPU, writing activations to memory and reading them back takes longer than computing them again, but random
bits take longer than either."""

CACHED_BYTES = 64 * 2**20
"""Weights of a decoder's layers that the caches of a CPU may hold. What is copied in a cache costs little, and layers
that lie apart take longer to compile."""


def execution_for(backend: str, *, layers_bytes: int = 0) -> Execution:
    """The default for a kind of processor.

    Args:
      backend: as `jax.default_backend()` names it.
      layers_bytes: of the decoder's layers. The compiler for TPUs reads a layer in its stack, that for CPUs does not.
    """
    if backend != "cpu":
        return PLAIN
    return replace(ON_CPU, decode="apart") if layers_bytes > CACHED_BYTES else ON_CPU
