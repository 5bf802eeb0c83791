"""Attention by fused kernels of libraries, which hold no scores of whole sequences: cuDNN's through JAX on NVIDIA GPUs,
and the flash attention in Pallas that comes with JAX on TPUs.

Both are for whole sequences, in training and in the first pass over a prompt. A query that is alone has few scores.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from hidecmoe_jax.core.layout import Layout, spec_of

BLOCK = 128
"""Lengths are padded to a multiple of it for the kernel in Pallas."""

HEADS_AXES = ("batch", None, "heads", None)


def fits_cudnn(q_BTHK: Array, k_BSGK: Array) -> bool:
    """Whether cuDNN takes the shapes under a mask: even lengths, and heads of a multiple of 8 up to 128."""
    tokens, _, width = q_BTHK.shape[1:]
    keys = k_BSGK.shape[1]
    return tokens % 2 == 0 and keys % 2 == 0 and width % 8 == 0 and width <= 128


def attend_by_pallas(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, real_BS: Array, layout: Layout | None) -> Array:
    """Causal attention of queries at the first T of S positions; keys that are not real are never read.

    Args:
      real_BS: bool, or int32 segments that read themselves alone. A query that is not real reads what is not real, and
        nobody reads it.

    Returns:
      [B, T, H, K] in the dtype of `q_BTHK`.
    """
    if layout is None:
        return _flash(q_BTHK, k_BSGK, v_BSGK, real_BS)
    # The compiler cannot split a kernel by itself: every device runs it on its samples and heads.
    heads = [spec_of(layout, HEADS_AXES, leaf.shape) for leaf in (q_BTHK, k_BSGK, v_BSGK)]
    real = PartitionSpec(heads[0][0], None)
    split = jax.shard_map(_flash, mesh=layout.mesh, in_specs=(*heads, real), out_specs=heads[0], check_vma=False)
    return split(q_BTHK, k_BSGK, v_BSGK, real_BS)


def _flash(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, real_BS: Array) -> Array:
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention

    tokens = q_BTHK.shape[1]
    groups = q_BTHK.shape[2] // k_BSGK.shape[2]
    length = -(-max(tokens, k_BSGK.shape[1]) // BLOCK) * BLOCK
    # The kernel has one key head for every query head.
    q_BHTK = _padded(q_BTHK, length).swapaxes(1, 2)
    k_BHSK = jnp.repeat(_padded(k_BSGK, length).swapaxes(1, 2), groups, axis=1)
    v_BHSK = jnp.repeat(_padded(v_BSGK, length).swapaxes(1, 2), groups, axis=1)
    segment_BS = _padded(real_BS.astype(jnp.int32), length)
    out_BHTK = flash_attention(
        q_BHTK, k_BHSK, v_BHSK, segment_ids=SegmentIds(segment_BS, segment_BS), causal=True,
        sm_scale=q_BTHK.shape[-1] ** -0.5,
    )  # fmt: skip
    out_BTHK = out_BHTK.swapaxes(1, 2)
    return out_BTHK[:, :tokens].astype(q_BTHK.dtype)


def _padded(x: Array, length: int) -> Array:
    """Zeros after the last position, up to `length`."""
    missing = length - x.shape[1]
    widths = [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths)
