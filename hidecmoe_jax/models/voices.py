"""Voices inside a decoder: one layer's slice of a bank with its routing, its weights, and what it adds at a site.

Functions that build Linen modules (`slot_weights`, `add_experts`) are called from a block's compact method: their
modules become children of the block, so that `nn.tabulate` lists experts and token routers beside the linears.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from hidecmoe_jax.experts.routing import Experts, TokenRouter, Voice
from hidecmoe_jax.models.execution import STAYS

ATTENTION_SITES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
KINDS = 3  # image, text and answer tokens, in the order in which a tally counts them


class LayerVoice(struct.PyTreeNode):
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
    null: float | None = struct.field(pytree_node=False, default=None)
    always_BS: Array | None = None
    most: int | None = struct.field(pytree_node=False, default=None)


class Tally(struct.PyTreeNode):
    """Use of a voice's slots, by token kind [L, S, KINDS]: in the feed-forward part, or in the attention part where the
    voice has no site in the other.

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
    batch_or_one = {1, batch}
    for voice in voices:
        bank = voice.bank
        routing = voice.routing
        chex.assert_shape(
            routing.gain_LBS, (bank.layers, batch_or_one, bank.slots),
            custom_message="gains are [layers and slots of the bank, batch or 1 between them]",
        )  # fmt: skip
        chex.assert_type(routing.gain_LBS, float, custom_message="gains are floats; a mask is no gain")
        if routing.router_LBDS is not None:
            chex.assert_shape(
                routing.router_LBDS, (bank.layers, batch_or_one, None, bank.slots),
                custom_message="token routers are [layers of the bank, batch or 1, width, slots of the bank]",
            )  # fmt: skip
        if routing.always_LBS is not None:
            chex.assert_shape(routing.always_LBS, (bank.layers, batch_or_one, bank.slots))
        site_routers = routing.site_routers or {}
        for router_LDS in site_routers.values():
            chex.assert_shape(router_LDS, (bank.layers, None, bank.slots))


def segments(layers: int, voices: Sequence[Voice], *, alone: bool = False) -> list[tuple[int, int]]:
    """Ranges of layers that the same voices cover, in order; with `alone` the last layer is a range of its own."""
    boundaries = {0, layers}
    if alone:
        boundaries.add(layers - 1)
    for voice in voices:
        first = voice.bank.first_layer
        last = first + voice.bank.layers
        if not 0 <= first <= last <= layers:
            raise ValueError(f"bank covers layers {first}..{last}, the decoder has 0..{layers}")
        boundaries |= {first, last}
    ordered = sorted(boundaries)
    starts = ordered[:-1]
    stops = ordered[1:]
    return list(zip(starts, stops, strict=True))


def voice_slice(voice: Voice, start: int, stop: int) -> LayerVoice | None:
    """The voice's arrays for decoder layers start..stop, layer axis first; None where it covers none of them."""
    bank = voice.bank
    routing = voice.routing
    low = start - bank.first_layer
    high = stop - bank.first_layer
    if low < 0 or high > bank.layers:
        return None
    leaves = (bank.a, bank.b, routing.gain_LBS, routing.router_LBDS, routing.site_routers, routing.always_LBS)
    covers_bank = low == 0 and high == bank.layers
    if not covers_bank:
        leaves = jax.tree.map(lambda leaf: leaf[low:high], leaves)
    a, b, gain, router, site_routers, always = leaves
    layer_keys = None
    if voice.key is not None:
        # Keyed by the decoder's layer, so that the segments' boundaries do not change the dropout.
        layers = jnp.arange(start, stop)
        key_of_layer = partial(jax.random.fold_in, voice.key)
        layer_keys = jax.vmap(key_of_layer)(layers)
    return LayerVoice(
        a=a, b=b, gain_BS=gain, router_BDS=router, key=layer_keys, scale=bank.scale, top_k=routing.top_k,
        dropout=voice.dropout, softmax_group=routing.softmax_group, site_routers=site_routers, null=routing.null,
        always_BS=always, most=routing.most,
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
        name = voice.softmax_group or index
        indices = groups.setdefault(name, [])
        indices.append(index)
    by_voice: dict[int, tuple[Array, Array]] = {}
    for indices in groups.values():
        group = [voices[index] for index in indices]
        gains = [voice.gain_BS for voice in group]
        routers = [voice.router_BDS for voice in group]
        gain = _concat_slots(gains)
        router = _concat_slots(routers)
        weight = gain
        chance = gain
        if router is not None:
            first = group[0]
            always = _concat_slots([voice.always_BS for voice in group])
            token_router = TokenRouter(first.top_k, first.null, name=f"{part}_router{indices[0]}")
            weight, chance = token_router(x, gain, router, always)
        slot_counts = [gain_BS.shape[-1] for gain_BS in gains]
        ends = np.cumsum(slot_counts)
        # Split before every voice but the first.
        starts = ends[:-1]
        weights = jnp.split(weight, starts, axis=-1)
        chances = jnp.split(chance, starts, axis=-1)
        for index, voice_weight, voice_chance in zip(indices, weights, chances, strict=True):
            by_voice[index] = (voice_weight, voice_chance)
    # Back from the order of groups to that of the voices.
    return [by_voice[index] for index in range(len(voices))]


def _concat_slots(leaves: Sequence[Array | None]) -> Array | None:
    """Slots of several voices side by side; a batch axis of one is broadcast."""
    first = leaves[0]
    if len(leaves) == 1 or first is None:
        return first
    batch = max(leaf.shape[0] for leaf in leaves)
    per_sample = []
    for leaf in leaves:
        shape = (batch, *leaf.shape[1:])
        per_sample.append(jnp.broadcast_to(leaf, shape))
    return jnp.concatenate(per_sample, axis=-1)


class Rows(struct.PyTreeNode):
    """Positions of a sequence that a layer computes, where it does not compute all.

    Attributes:
      at_BQ: int32, the positions; `tokens`: length of the sequence.
    """

    at_BQ: Array
    tokens: int = struct.field(pytree_node=False)


def pick(rows: Rows | None, x: Array) -> Array:
    """[B, T, ...] to [B, Q, ...], where a batch axis of 1 is broadcast; unchanged without rows."""
    if rows is None:
        return x
    at = rows.at_BQ
    trailing = (1,) * (x.ndim - 2)
    x = jnp.broadcast_to(x, (at.shape[0], *x.shape[1:]))
    return jnp.take_along_axis(x, at.reshape(*at.shape, *trailing), axis=1)


def add_experts(
    y: Array, x: Array, site: str, weighted: Sequence[tuple[LayerVoice, Array]], rows: Rows | None = None
) -> Array:
    """`y`, the output of the site's linear for `x`, plus the output of every voice's experts at `site`.

    Args:
      rows: positions that `x` holds; None where it holds all.
    """
    for index, (voice, weight) in enumerate(weighted):
        if site not in voice.a:
            continue
        if voice.site_routers is not None:
            router_DS = voice.site_routers[site]
            slots = router_DS.shape[1]
            token_router = TokenRouter(slots, name=f"{site}_router{index}")
            weight, _ = token_router(x, voice.gain_BS, router_DS[None])
        experts = Experts(voice.scale, voice.most, name=f"{site}_experts{index}")
        dropped = _dropout(x, voice, site, rows)
        a_DSR = voice.a[site]
        b_SRF = voice.b[site]
        added = experts(dropped, a_DSR, b_SRF, weight)
        y = y + added.astype(y.dtype)
    return y


def _dropout(x: Array, voice: LayerVoice, site: str, rows: Rows | None) -> Array:
    rate = voice.dropout
    if voice.key is None or rate == 0.0:
        return x
    # crc32, not hash(): Python salts strings, and the draw must be the same in every process.
    site_number = zlib.crc32(site.encode())
    key = jax.random.fold_in(voice.key, site_number)
    # 16 random bits decide as well as 32 (the rate is off by at most 2^-17) and cost a CPU half the time.
    # Drawn for all positions, so that a position has its mask whichever others are computed.
    tokens = x.shape[1] if rows is None else rows.tokens
    bits = jax.random.bits(key, (x.shape[0], tokens, x.shape[2]), jnp.uint16)
    bits = pick(rows, bits)
    limit = round(rate * 2**16)
    stays = checkpoint_name(bits >= limit, STAYS)
    # Divided by the chance to stay, so that the expectation is `x`.
    enlarged = x / (1 - rate)
    return jnp.where(stays, enlarged, jnp.zeros_like(x))


def tallied_weights(
    voices: Sequence[LayerVoice],
    attention: Sequence[tuple[Array, Array]],
    feed_forward: Sequence[tuple[Array, Array]],
) -> list[tuple[Array, Array]]:
    """(weights, chances) of every voice as a `Tally` counts them, from those of both parts of a block."""
    by_voice = []
    for voice, in_attention, in_feed_forward in zip(voices, attention, feed_forward, strict=True):
        only_attention = voice.a.keys() <= ATTENTION_SITES
        by_voice.append(in_attention if only_attention else in_feed_forward)
    return by_voice


def tally_layer(weight: Array, chance: Array, kinds_BT: Array) -> Tally:
    """Sums one layer's slot weights over tokens by kind (a kind outside 0..KINDS-1 is padding and is left out)."""
    kinds_BT1 = kinds_BT[..., None]
    is_kind_BTK = kinds_BT1 == jnp.arange(KINDS)
    of_kind_BTK = is_kind_BTK.astype(jnp.float32)

    def per_token(leaf: Array) -> Array:
        # Gains [B, S] hold for every token; a router's weights [B, T, S] are per token already.
        if leaf.ndim == 2:
            leaf = leaf[:, None, :]
        slots = leaf.shape[-1]
        return jnp.broadcast_to(leaf, (*kinds_BT.shape, slots))

    def summed(leaf_BTS: Array) -> Array:
        of_kind = of_kind_BTK.astype(leaf_BTS.dtype)
        return jnp.einsum("bts,btk->sk", leaf_BTS, of_kind)

    weight_BTS = per_token(weight)
    mass = summed(weight_BTS)
    chance_BTS = per_token(chance)
    chances = summed(chance_BTS)
    is_used_BTS = weight_BTS > 0
    count = summed(is_used_BTS.astype(jnp.int32))
    return Tally(mass, chances, count)
