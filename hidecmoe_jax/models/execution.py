"""How programs of the decoder are executed: the settings that no result depends on beyond rounding.

They are a static part of a model, so jitted functions are compiled for them. The one place where a default is chosen by
the kind of processor is `execution_for`.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    attention: Literal["library", "products"] = "library"
    recompute: bool = False
    saved: tuple[str, ...] = ()


PLAIN = Execution()
ON_CPU = Execution(attention="products", recompute=True, saved=(STAYS,))
"""On a CPU, writing activations to memory and reading them back takes longer than computing them again, but random
bits take longer than either."""


def execution_for(backend: str) -> Execution:
    """The default for a kind of processor, as `jax.default_backend()` names it."""
    return ON_CPU if backend == "cpu" else PLAIN
