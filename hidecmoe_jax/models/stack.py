"""Parts of running a stack of decoder blocks that know nothing of what a block computes: the cache of keys and values,
which voices cover which layers, checks of the inputs, and what the backward pass computes again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
from flax import struct
from jax import Array

from hidecmoe_jax.core.layout import Recompute
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.models.config import DecoderConfig
from hidecmoe_jax.models.execution import Execution
from hidecmoe_jax.models.voices import LayerVoice, voice_slice

# Activations that the policy `named` keeps for the backward pass; the others of a layer follow from them cheaply.
SAVED = ("normed", "q", "k", "v", "attended", "middle", "gate", "up")
CACHE_AXES = ("layer", "batch", None, "heads", None)
# Stores the new keys and values of a layer; returns those that attention reads, and the cache.
Store = Callable[[Array, Array], tuple[Array, Array, Any]]


class Cache(struct.PyTreeNode):
    """Keys and values [L, B, S, G, K] of all layers and the slot the next tokens are written to."""

    k: Array
    v: Array
    slot: Array


def recomputed(step: Callable, recompute: Recompute, execution: Execution) -> Callable:
    """The step of a scan over layers, whose backward pass computes some of its activations again."""
    if recompute == "none":
        return step
    named = SAVED if recompute == "named" else ()
    policy = jax.checkpoint_policies.save_only_these_names(*named, *execution.saved)
    # No barrier against common subexpressions is needed inside a scan, and it costs time.
    return jax.checkpoint(step, prevent_cse=False, policy=policy)


def covering(voices: Sequence[Voice], start: int, stop: int) -> list[LayerVoice]:
    """Slices for the layers start..stop of the voices that cover them."""
    slices = []
    for voice in voices:
        layer_voice = voice_slice(voice, start, stop)
        if layer_voice is not None:
            slices.append(layer_voice)
    return slices


def check_inputs(config: DecoderConfig, x_BTD: Array, positions_BT: Array, mask_B1TS: Array) -> None:
    """Raises AssertionError, while tracing, where the decoder's inputs do not fit each other."""
    batch, tokens, _ = x_BTD.shape
    chex.assert_shape(x_BTD, (batch, tokens, config.width), custom_message="the decoder takes [B, T, width]")
    chex.assert_shape(positions_BT, (batch, tokens))
    chex.assert_shape(mask_B1TS, ({1, batch}, 1, tokens, None))
    chex.assert_type(mask_B1TS, bool)


def store_layer(cache: Cache, index: Array, k: Array, v: Array) -> tuple[Array, Array, Cache]:
    """Writes one layer's new keys and values; returns all of that layer's, and the cache with them."""
    start = (index, 0, cache.slot, 0, 0)
    new_k = k[None].astype(cache.k.dtype)
    full_k = jax.lax.dynamic_update_slice(cache.k, new_k, start)
    new_v = v[None].astype(cache.v.dtype)
    full_v = jax.lax.dynamic_update_slice(cache.v, new_v, start)
    layer_k = full_k[index]
    layer_v = full_v[index]
    return layer_k, layer_v, cache.replace(k=full_k, v=full_v)
