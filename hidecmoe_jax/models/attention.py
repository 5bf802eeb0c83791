"""The decoder's attention: rotary positions, and softmax attention by batched products.

The gradient of the latter is written out. What the rules of JAX derive goes over the scores several times; here every
product is batched over heads with rows of tokens, as matrix units want it, and the scores are gone over once. All
scores of a layer are held at once, so it is for processors without a fused kernel (`models/fused_attention.py`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core.layout import Layout
from hidecmoe_jax.models.execution import Form
from hidecmoe_jax.models.fused_attention import attend_by_pallas, fits_cudnn
from hidecmoe_jax.models.layers import attend

# Added to by any score, it stays what it is; a row of it alone gives equal weights, not NaN.
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)

Saved = tuple[Array, Array, Array, Array, Array]


def rotary_table(positions_BT: Array, width: int, theta: float) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles of heads of `width`, float32 [B, T, 1, K / 2] each."""
    half = width // 2
    exponent = -jnp.arange(half, dtype=jnp.float32) / half
    frequency = theta**exponent
    # All heads turn alike.
    positions_BT11 = positions_BT[:, :, None, None]
    angle = positions_BT11.astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTHK: Array, table: tuple[Array, Array]) -> Array:
    """Rotary positions, half-split pairing (dimension i with i + K / 2), by the cosines and sines of `rotary_table`."""
    cos, sin = table
    half = x_BTHK.shape[-1] // 2
    low = x_BTHK[..., :half]
    low = low.astype(jnp.float32)
    high = x_BTHK[..., half:]
    high = high.astype(jnp.float32)
    rotated_low = low * cos - high * sin
    rotated_high = high * cos + low * sin
    rotated = jnp.concatenate([rotated_low, rotated_high], axis=-1)
    return rotated.astype(x_BTHK.dtype)


def attend_as(
    form: Form,
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    mask_B1TS: Array | None,
    *,
    real_BS: Array | None = None,
    layout: Layout | None = None,
) -> Array:
    """Attention [B, T, H * K] in a form that `Execution.attention` names.

    Args:
      real_BS: keys that are not padding, where the mask is these and causal; fused kernels then read it instead of the
        mask. Of rows with several samples it is the number of each key's sample, 0 on padding. None where queries are
        not the first positions of the keys, which the kernel of `pallas` cannot mask.
    """
    is_whole = real_BS is not None
    if form == "products" and mask_B1TS is not None:
        out_BTHK = attend_by_products(q_BTHK, k_BSGK, v_BSGK, mask_B1TS)
    elif form == "pallas" and is_whole:
        out_BTHK = attend_by_pallas(q_BTHK, k_BSGK, v_BSGK, real_BS, layout)
    elif form == "cudnn" and is_whole and fits_cudnn(q_BTHK, k_BSGK):
        return attend(q_BTHK, k_BSGK, v_BSGK, mask_B1TS, implementation="cudnn")
    else:
        return attend(q_BTHK, k_BSGK, v_BSGK, mask_B1TS)
    return out_BTHK.reshape(*out_BTHK.shape[:2], -1)


@jax.custom_vjp
def attend_by_products(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask_B1TS: Array) -> Array:
    """Attention with grouped keys (G divides H); scores and their sums in float32. Fully masked rows stay finite.

    Args:
      mask_B1TS: bool, True where a query may read a key; the batch axis may be 1.

    Returns:
      [B, T, H, K] in the dtype of `q_BTHK`.
    """
    return _forward(q_BTHK, k_BSGK, v_BSGK, mask_B1TS)[0]


def _forward(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask_B1TS: Array) -> tuple[Array, tuple[Saved, Array]]:
    groups = k_BSGK.shape[2]
    q_BGNK = _rows(q_BTHK, groups)
    k_BGSK = k_BSGK.swapaxes(1, 2)
    v_BGSK = v_BSGK.swapaxes(1, 2)
    share_BGNS = _shares(q_BGNK, k_BGSK, mask_B1TS)
    rounded_BGNS = share_BGNS.astype(v_BGSK.dtype)
    out_BGNK = _product(rounded_BGNS, v_BGSK, 3, 2)
    out_BTHK = _heads(out_BGNK, q_BTHK.shape).astype(q_BTHK.dtype)
    return out_BTHK, ((q_BGNK, k_BGSK, v_BGSK, share_BGNS, out_BGNK), mask_B1TS)


def _shares(q_BGNK: Array, k_BGSK: Array, mask_B1TS: Array) -> Array:
    """Softmax of the masked scores, float32 [B, G, N, S]; a group's N rows are its heads' tokens."""
    batch, groups, rows, width = q_BGNK.shape
    tokens, keys = mask_B1TS.shape[2:]
    score_BGNS = _product(q_BGNK, k_BGSK, 3, 3) * width**-0.5
    score_BGMTS = score_BGNS.reshape(batch, groups, rows // tokens, tokens, keys)
    mask_B11TS = mask_B1TS[:, :, None]
    score_BGMTS = jnp.where(mask_B11TS, score_BGMTS, _MASKED)
    top = jnp.max(score_BGMTS, axis=-1, keepdims=True)
    power = jnp.exp(score_BGMTS - top)
    share = power / jnp.sum(power, axis=-1, keepdims=True)
    return share.reshape(score_BGNS.shape)


def _backward(residuals: tuple[Saved, Array], dout_BTHK: Array) -> tuple[Array, Array, Array, None]:
    (q_BGNK, k_BGSK, v_BGSK, share_BGNS, out_BGNK), _ = residuals
    dtype = q_BGNK.dtype
    groups = k_BGSK.shape[1]
    dout_BGNK = _rows(dout_BTHK, groups)
    dv_BGSK = _product(share_BGNS.astype(dtype), dout_BGNK, 2, 2)
    dshare_BGNS = _product(dout_BGNK, v_BGSK, 3, 3)
    # Summed over the width of a head; the sum of shares times their gradients, over all keys, is the same number.
    mean_BGN1 = jnp.sum(dout_BGNK.astype(jnp.float32) * out_BGNK, axis=-1, keepdims=True)
    scale = q_BGNK.shape[-1] ** -0.5
    dscore_BGNS = share_BGNS * (dshare_BGNS - mean_BGN1) * scale
    dscore_BGNS = dscore_BGNS.astype(dtype)
    dq_BGNK = _product(dscore_BGNS, k_BGSK, 3, 2)
    dk_BGSK = _product(dscore_BGNS, q_BGNK, 2, 2)
    dq_BTHK = _heads(dq_BGNK, dout_BTHK.shape).astype(dtype)
    dk_BSGK = dk_BGSK.swapaxes(1, 2).astype(dtype)
    dv_BSGK = dv_BGSK.swapaxes(1, 2).astype(dtype)
    return dq_BTHK, dk_BSGK, dv_BSGK, None


def _rows(x_BTHK: Array, groups: int) -> Array:
    """[B, T, H, K] to [B, G, H / G * T, K]: the heads that share keys lie one after the other."""
    batch, tokens, heads, width = x_BTHK.shape
    x_BHTK = x_BTHK.swapaxes(1, 2)
    return x_BHTK.reshape(batch, groups, heads // groups * tokens, width)


def _heads(x_BGNK: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `_rows`; `shape` is [B, T, H, K]."""
    batch, tokens, heads, width = shape
    x_BHTK = x_BGNK.reshape(batch, heads, tokens, width)
    return x_BHTK.swapaxes(1, 2)


def _product(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """Products summed over one axis of either operand, batched over the first two; float32."""
    axes = (((left_axis,), (right_axis,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


attend_by_products.defvjp(_forward, _backward)
