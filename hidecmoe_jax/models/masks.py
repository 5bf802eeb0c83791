"""Which keys a query reads, and the positions of tokens, also in rows that several samples share."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts.routing import Voice


def positions_of(mask_BT: Array, segment_BT: Array | None = None) -> Array:
    """Positions counted over real tokens only, so padding on either side changes nothing. int32 [B, T].

    With the segments of a `Prompt` they are counted anew from the first token of every sample.
    """
    if segment_BT is not None:
        return _packed_positions(segment_BT)
    one_if_real_BT = mask_BT.astype(jnp.int32)
    counted_BT = jnp.cumsum(one_if_real_BT, axis=1)
    # Padding on the left counts 0 tokens, and -1 is no position.
    return jnp.maximum(counted_BT - 1, 0)


def _packed_positions(segment_BT: Array) -> Array:
    place_T = jnp.arange(segment_BT.shape[1], dtype=jnp.int32)
    is_first_BT = segment_BT[:, 1:] != segment_BT[:, :-1]
    first_BT = jnp.where(jnp.pad(is_first_BT, ((0, 0), (1, 0))), place_T, 0)
    return place_T - jax.lax.cummax(first_BT, axis=1)


def causal_mask(keys_BS: Array, length: int, segment_BT: Array | None = None) -> Array:
    """Whether each of `length` queries reads a key, bool [B, 1, T, S]: itself and earlier ones among `keys_BS`; with
    segments those of its own sample alone."""
    slots_1S = jnp.arange(keys_BS.shape[1])[None, :]
    tokens_T1 = jnp.arange(length)[:, None]
    causal_TS = slots_1S <= tokens_T1
    keys_B11S = keys_BS[:, None, None, :]
    mask_B1TS = keys_B11S & causal_TS[None, None]
    if segment_BT is None:
        return mask_B1TS
    is_own_BTS = segment_BT[:, :, None] == segment_BT[:, None, :]
    return mask_B1TS & is_own_BTS[:, None]


def require_constant(voices: Sequence[Voice]) -> None:
    """Refuses experts that are weighed for each sample where several samples share a row, which has one weight.

    Raises:
      ConfigError: names the setting.
    """
    if any(voice.routing.gain_LBS.shape[1] != 1 for voice in voices):
        raise ConfigError(
            "samples cannot share a row", where="tune.pack",
            why="the method weighs experts for each sample, and a row has one weight",
            remedy="--set tune.pack=0",
        )  # fmt: skip
