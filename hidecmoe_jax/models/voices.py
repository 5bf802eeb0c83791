"""Voices inside a decoder: one layer's slice of a bank with its routing, its weights, and what it adds at a site.

Functions that build Linen modules (`slot_weights`, `add_experts`) are called from a block's compact method: their
modules become children of the block, so that `nn.tabulate` lists experts and token routers beside the linears.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from hidecmoe_jax.experts.routing import Experts, TokenRouter, Voice

KINDS = 3  # image, text and answer tokens, in the order in which a tally counts them


@struct.dataclass
class LayerVoice:
    """One layer's slice of a voice, as a block takes it; as the input of a scan every leaf has a leading layer axis."""

    a: dict[str, Array]
    b: dict[str, Array]
    gain_BS: Array
    router_BDS: Array | None
    key: Array | None
    scale: float = struct.field(pytree_node=False)
    top_k: int = struct.field(pytree_node=False)
    dropout: float = struct.field(pytree_node=False)
    softmax_group: str = struct.field(pytree_node=False, default="")
    site_routers: dict[str, Array] | None = None


@struct.dataclass
class Tally:
    """Use of a voice's slots in the feed-forward part, by token kind [L, S, KINDS].

    Attributes:
      mass: float32, summed weights.
      chance: float32, summed router softmax before any slot was dropped; the weights where there is no router.
      count: int32, tokens with a weight above zero.
    """

    mass: Array
    chance: Array
    count: Array


def check_voices(voices: Sequence[Voice], batch: int) -> None:
    """Raises AssertionError, while tracing, where a voice's routing does not fit its bank or the batch."""
    for voice in voices:
        bank = voice.bank
        routing = voice.routing
        chex.assert_shape(
            routing.gain_LBS, (bank.layers, {1, batch}, bank.slots),
            custom_message="gains are [layers and slots of the bank, batch or 1 between them]",
        )  # fmt: skip
        chex.assert_type(routing.gain_LBS, float, custom_message="gains are floats; a mask is no gain")
        if routing.router_LBDS is not None:
            chex.assert_shape(
                routing.router_LBDS, (bank.layers, {1, batch}, None, bank.slots),
                custom_message="token routers are [layers of the bank, batch or 1, width, slots of the bank]",
            )  # fmt: skip
        for router_LDS in (routing.site_routers or {}).values():
            chex.assert_shape(router_LDS, (bank.layers, None, bank.slots))


def segments(layers: int, voices: Sequence[Voice]) -> list[tuple[int, int]]:
    """Ranges of layers that the same voices cover, in order."""
    boundaries = {0, layers}
    for voice in voices:
        first = voice.bank.first_layer
        last = first + voice.bank.layers
        if not 0 <= first <= last <= layers:
            raise ValueError(f"bank covers layers {first}..{last}, the decoder has 0..{layers}")
        boundaries |= {first, last}
    ordered = sorted(boundaries)
    return list(zip(ordered[:-1], ordered[1:], strict=True))


def voice_slice(voice: Voice, start: int, stop: int) -> LayerVoice | None:
    """The voice's arrays for decoder layers start..stop, layer axis first; None where it covers none of them."""
    bank = voice.bank
    routing = voice.routing
    low = start - bank.first_layer
    high = stop - bank.first_layer
    if low < 0 or high > bank.layers:
        return None
    leaves = (bank.a, bank.b, routing.gain_LBS, routing.router_LBDS, routing.site_routers)
    if (low, high) != (0, bank.layers):
        leaves = jax.tree.map(lambda leaf: leaf[low:high], leaves)
    a, b, gain, router, site_routers = leaves
    layer_keys = None
    if voice.key is not None:
        # Keyed by the decoder's layer, so that the segments' boundaries do not change the dropout.
        layers = jnp.arange(start, stop)
        layer_keys = jax.vmap(lambda layer: jax.random.fold_in(voice.key, layer))(layers)
    return LayerVoice(
        a=a, b=b, gain_BS=gain, router_BDS=router, key=layer_keys, scale=bank.scale, top_k=routing.top_k,
        dropout=voice.dropout, softmax_group=routing.softmax_group, site_routers=site_routers,
    )  # fmt: skip


def slot_weights(x: Array, voices: Sequence[LayerVoice], part: str) -> list[tuple[Array, Array]]:
    """(weights, chances) of every voice's slots; voices of one softmax group share one softmax.

    Args:
      x: [B, T, D], the input of the token routers.
      part: of the block, `attention` or `feed_forward`; the token routers are named after it.
    """
    groups: dict[object, list[int]] = {}
    for index, voice in enumerate(voices):
        # A voice without a group is a group of its own.
        groups.setdefault(voice.softmax_group or index, []).append(index)
    by_voice: dict[int, tuple[Array, Array]] = {}
    for indices in groups.values():
        group = [voices[index] for index in indices]
        gain = _concat_slots([voice.gain_BS for voice in group])
        router = _concat_slots([voice.router_BDS for voice in group])
        weight = gain
        chance = gain
        if router is not None:
            token_router = TokenRouter(group[0].top_k, name=f"{part}_router{indices[0]}")
            weight, chance = token_router(x, gain, router)
        slot_counts = [voice.gain_BS.shape[-1] for voice in group]
        ends = np.cumsum(slot_counts)[:-1]
        weights = jnp.split(weight, ends, axis=-1)
        chances = jnp.split(chance, ends, axis=-1)
        for place, index in enumerate(indices):
            by_voice[index] = (weights[place], chances[place])
    return [by_voice[index] for index in range(len(voices))]


def _concat_slots(leaves: Sequence[Array | None]) -> Array | None:
    """Slots of several voices side by side; a batch axis of one is broadcast."""
    if len(leaves) == 1 or leaves[0] is None:
        return leaves[0]
    batch = max(leaf.shape[0] for leaf in leaves)
    per_sample = [jnp.broadcast_to(leaf, (batch, *leaf.shape[1:])) for leaf in leaves]
    return jnp.concatenate(per_sample, axis=-1)


def add_experts(y: Array, x: Array, site: str, weighted: Sequence[tuple[LayerVoice, Array]]) -> Array:
    """`y`, the output of the site's linear for `x`, plus the output of every voice's experts at `site`."""
    for index, (voice, weight) in enumerate(weighted):
        if site not in voice.a:
            continue
        if voice.site_routers is not None:
            router_DS = voice.site_routers[site]
            token_router = TokenRouter(router_DS.shape[1], name=f"{site}_router{index}")
            weight, _ = token_router(x, voice.gain_BS, router_DS[None])
        experts = Experts(voice.scale, name=f"{site}_experts{index}")
        dropped = _dropout(x, voice, site)
        y = y + experts(dropped, voice.a[site], voice.b[site], weight)
    return y


def _dropout(x: Array, voice: LayerVoice, site: str) -> Array:
    if voice.key is None or voice.dropout == 0.0:
        return x
    # crc32, not hash(): Python salts strings, and the draw must be the same in every process.
    key = jax.random.fold_in(voice.key, zlib.crc32(site.encode()))
    # 16 random bits decide as well as 32 (the rate is off by at most 2^-17) and cost a CPU half the time.
    bits = jax.random.bits(key, x.shape, jnp.uint16)
    keep = bits >= round(voice.dropout * 2**16)
    return jnp.where(keep, x / (1 - voice.dropout), jnp.zeros_like(x))


def tally_layer(weight: Array, chance: Array, kinds_BT: Array) -> Tally:
    """Sums one layer's slot weights over tokens by kind (a kind outside 0..KINDS-1 is padding and is left out)."""
    is_kind = kinds_BT[..., None] == jnp.arange(KINDS)
    of_kind = is_kind.astype(jnp.float32)

    def per_token(leaf: Array) -> Array:
        # Gains [B, S] hold for every token; a router's weights [B, T, S] are per token already.
        leaf = leaf if leaf.ndim == 3 else leaf[:, None, :]
        return jnp.broadcast_to(leaf, (*kinds_BT.shape, leaf.shape[-1]))

    def summed(leaf: Array) -> Array:
        return jnp.einsum("bts,btk->sk", leaf, of_kind.astype(leaf.dtype))

    weights = per_token(weight)
    mass = summed(weights)
    chances = summed(per_token(chance))
    count = summed((weights > 0).astype(jnp.int32))
    return Tally(mass, chances, count)
