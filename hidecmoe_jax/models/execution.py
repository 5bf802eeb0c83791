"""How programs of the decoder are executed: the settings that no result depends on beyond rounding.

They are a static part of a model, so jitted functions are compiled for them. The one place where a default is chosen by
the kind of processor is `execution_for`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from hidecmoe_jax.core.errors import ConfigError

Form = Literal["library", "products", "cudnn", "pallas"]
Attention = Literal["auto", "xla", "cudnn", "pallas"]
"""What a user chooses: a fused kernel, none (`xla`), or what the processor has (`auto`)."""

STAYS = "stays"
"""Name, for policies of recomputation, of the mask that dropout draws."""


@dataclass(frozen=True)
class Execution:
    """How the layers are run.

    Attributes:
      attention: `library` is JAX's own function; `products` is `attention.attend_by_products`; `cudnn` and `pallas` are
        fused kernels for whole sequences (`fused_attention`), and `library` for everything else.
      recompute: the backward pass computes the activations of a layer again, beginning with the layer's input.
      saved: names of activations that are saved all the same.
      decode: a token goes through layers that lie in one stack (`stack`), or were taken apart before (`apart`,
        `models/decode.py`), which takes the memory of a second decoder and copies nothing at a token.
    """

    attention: Form = "library"
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


KERNEL_OF = MappingProxyType({"gpu": "cudnn", "tpu": "pallas"})
"""The fused attention of a kind of processor."""

BY_DEFAULT = ("pallas",)
"""Kernels that nobody has to ask for: that of TPUs was compiled for one, that of GPUs has not run on one yet."""


def execution_for(
    backend: str, *, layers_bytes: int = 0, attention: Attention = "auto", dtype: str = "float32"
) -> Execution:
    """The default for a kind of processor.

    Args:
      backend: as `jax.default_backend()` names it.
      dtype: that the model computes in; fused kernels are for bfloat16 where nobody asked for one.
      layers_bytes: of the decoder's layers. The compiler for TPUs reads a layer in its stack, that for CPUs does not.

    Raises:
      ConfigError: a kernel that the processor has not, or one for another dtype.
    """
    if backend == "cpu":
        execution = replace(ON_CPU, decode="apart") if layers_bytes > CACHED_BYTES else ON_CPU
    else:
        execution = PLAIN
    form = _form(attention, backend, dtype)
    return execution if form is None else replace(execution, attention=form)


def _form(attention: Attention, backend: str, dtype: str) -> Form | None:
    """The form of attention that was chosen; None for the default of the processor without a fused kernel."""
    kernel = KERNEL_OF.get(backend)
    if attention == "auto":
        return kernel if kernel in BY_DEFAULT and dtype == "bfloat16" else None
    if attention == "xla":
        return "library"
    if attention != kernel:
        where = next(name for name, form in KERNEL_OF.items() if form == attention)
        raise ConfigError(
            "this processor has not that kernel", where=f"scale.attention: {attention}",
            why=f"it is for {where.upper()}s, the run is on a {backend.upper()}",
            remedy="--set scale.attention=auto",
        )  # fmt: skip
    if attention == "cudnn" and dtype != "bfloat16":
        raise ConfigError(
            "cuDNN's attention computes in half precision", where="scale.attention: cudnn",
            why=f"base.dtype is {dtype}",
            remedy="--set base.dtype=bfloat16, or --set scale.attention=xla",
        )  # fmt: skip
    return attention
