"""One token a sample through layers whose weights are arrays of their own.

A compiled loop over stacked weights takes a layer's slice at every token. Where the compiler cannot read the slice in
place, as the one for CPUs cannot, it writes a copy and reads that again: three times the traffic. Here the stack is
taken apart once, before the loop over tokens, in which every weight is then read where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
from flax import struct
from jax import Array

from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.models.attention import rotary_table
from hidecmoe_jax.models.config import DecoderConfig
from hidecmoe_jax.models.execution import PLAIN, Execution
from hidecmoe_jax.models.llama import DecoderBlock
from hidecmoe_jax.models.stack import Cache, covering
from hidecmoe_jax.models.voices import LayerVoice


class SplitCache(struct.PyTreeNode):
    """Keys and values of every layer, [B, S, G, K] each, and the slot the next tokens are written to."""

    k: tuple[Array, ...]
    v: tuple[Array, ...]
    slot: Array


class Layer(struct.PyTreeNode):
    """Weights of one layer, and the voices that cover it."""

    params: dict
    voices: list[LayerVoice]


def split_layers(layers: dict, config: DecoderConfig, voices: Sequence[Voice]) -> list[Layer]:
    """The stack taken apart, which copies it."""
    apart = []
    for index in range(config.layers):
        params = _layer(layers, index)
        layer_voices = _layer(covering(voices, index, index + 1), 0)
        apart.append(Layer(params, layer_voices))
    return apart


def split_cache(cache: Cache, config: DecoderConfig) -> SplitCache:
    """The cache taken apart, which copies it."""
    keys = tuple(cache.k[index] for index in range(config.layers))
    values = tuple(cache.v[index] for index in range(config.layers))
    return SplitCache(keys, values, cache.slot)


def _layer(tree: object, index: int) -> object:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def run_token(
    layers: Sequence[Layer],
    config: DecoderConfig,
    x_B1D: Array,
    *,
    positions_B1: Array,
    mask_B11S: Array,
    cache: SplitCache,
    execution: Execution = PLAIN,
) -> tuple[Array, SplitCache]:
    """Runs one token a sample through all layers: its states before the final norm, and the cache with it."""
    block = DecoderBlock(config, "float32", None, execution)
    table = rotary_table(positions_B1, config.head_width, config.rope_theta)
    keys = []
    values = []
    x = x_B1D
    for layer, k, v in zip(layers, cache.k, cache.v, strict=True):
        store = partial(_store, k, v, cache.slot)
        x, _, (k, v) = block.apply({"params": layer.params}, x, positions_B1, mask_B11S, layer.voices, store, table)
        keys.append(k)
        values.append(v)
    return x, cache.replace(k=tuple(keys), v=tuple(values))


def _store(k: Array, v: Array, slot: Array, new_k: Array, new_v: Array) -> tuple[Array, Array, tuple[Array, Array]]:
    """Writes new keys and values of a layer from `slot` on; returns all of them, twice."""
    start = (0, slot, 0, 0)
    k = jax.lax.dynamic_update_slice(k, new_k.astype(k.dtype), start)
    v = jax.lax.dynamic_update_slice(v, new_v.astype(v.dtype), start)
    return k, v, (k, v)
