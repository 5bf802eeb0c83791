"""The LLaMA decoder (arXiv 2302.13971) with places where experts speak.

A block has seven linears and one parallel place around its feed-forward part; each is a *site*, and one
function lets the voices speak at a site. The stack is an explicit scan over layer indices: where voices cover
only some layers the stack is cut into segments that share the same stacked parameters, so folded layers below
and routed layers above compile to two scans.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from hidecmoe_jax.experts.bank import apply_experts
from hidecmoe_jax.experts.routing import Voice, slot_gates
from hidecmoe_jax.models.config import DecoderConfig
from hidecmoe_jax.models.layers import Linear, RMSNorm, attend, axes_of, init_stack

SITES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = 3  # image, text and answer tokens, as the tally splits them


@struct.dataclass
class LayerVoice:
    """One layer's cut of a voice: what a block needs to let it speak."""

    a: dict[str, Array]
    b: dict[str, Array]
    gain_BS: Array
    router_BDS: Array | None
    key: Array | None
    scale: float = struct.field(pytree_node=False)
    top_k: int = struct.field(pytree_node=False)
    dropout: float = struct.field(pytree_node=False)
    gate: str = struct.field(pytree_node=False, default="")
    site_routers: dict[str, Array] | None = None


@struct.dataclass
class Cache:
    """Keys and values [L, B, S, G, K] of all layers and the slot the next tokens are written to."""

    k: Array
    v: Array
    slot: Array


@struct.dataclass
class Tally:
    """What each voice's slots were used for in the feed-forward part, by token kind [L, S, KINDS].

    Attributes:
      mass: float32, summed weights.
      chance: float32, summed router softmax before any slot was dropped; the weights where there is no router.
      count: int32, tokens with a weight above zero.
    """

    mass: Array
    chance: Array
    count: Array


def site_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Input and output width of every site, in `SITES` order."""
    d, f = config.width, config.hidden
    q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
    return dict(zip(SITES, ((d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)), strict=True))


def _dropped(x: Array, voice: LayerVoice, site: str) -> Array:
    if voice.key is None or voice.dropout == 0.0:
        return x
    # 16 random bits decide as well as 32 (the rate is off by at most 2^-17) and cost a CPU half the time.
    key = jax.random.fold_in(voice.key, zlib.crc32(site.encode()))
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= round(voice.dropout * 2**16)
    return jnp.where(keep, x / (1 - voice.dropout), jnp.zeros_like(x))


def gates(x: Array, voices: Sequence[LayerVoice]) -> list[tuple[Array, Array]]:
    """(weights, chances) of every voice's slots; voices that name one gate are weighed in one softmax."""
    together: dict[object, list[int]] = {}
    for place, voice in enumerate(voices):
        together.setdefault(voice.gate or place, []).append(place)
    found: dict[int, tuple[Array, Array]] = {}
    for places in together.values():
        group = [voices[place] for place in places]
        gain, router = _joined([v.gain_BS for v in group]), _joined([v.router_BDS for v in group])
        weight, chance = slot_gates(x, gain, router, group[0].top_k)
        cuts = np.cumsum([v.gain_BS.shape[-1] for v in group])[:-1]
        parts = zip(jnp.split(weight, cuts, axis=-1), jnp.split(chance, cuts, axis=-1), strict=True)
        found |= dict(zip(places, parts, strict=True))
    return [found[place] for place in range(len(voices))]


def _joined(leaves: Sequence[Array | None]) -> Array | None:
    """Slots of several voices side by side; an axis of one sample is spread over the batch."""
    if len(leaves) == 1 or leaves[0] is None:
        return leaves[0]
    rows = max(leaf.shape[0] for leaf in leaves)
    return jnp.concatenate([jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])) for leaf in leaves], axis=-1)


def speak(y: Array, x: Array, site: str, voices: Sequence[tuple[LayerVoice, Array]]) -> Array:
    """Adds every voice's experts at `site` to `y` = W x."""
    for voice, weight in voices:
        if site in voice.a:
            if voice.site_routers is not None:
                router_DS = voice.site_routers[site]
                weight, _ = slot_gates(x, voice.gain_BS, router_DS[None], router_DS.shape[1])
            y = y + apply_experts(_dropped(x, voice, site), voice.a[site], voice.b[site], weight, voice.scale)
    return y


def rotate(x_BTHK: Array, positions_BT: Array, theta: float) -> Array:
    """Rotary positions, half-split pairing (dimension i with i + K/2), angles in float32."""
    half = x_BTHK.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BT[:, :, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    low, high = x_BTHK[..., :half].astype(jnp.float32), x_BTHK[..., half:].astype(jnp.float32)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x_BTHK.dtype)


class DecoderBlock(nn.Module):
    """One block; x [B, T, D] -> (x, (weights, chances) of every voice at the feed-forward gate, what `store` kept)."""

    config: DecoderConfig
    param_dtype: str

    @nn.compact
    def __call__(self, x, positions_BT, mask_B1TS, voices: Sequence[LayerVoice], store):
        c = self.config
        names = {"q_proj": ("width", "heads"), "k_proj": ("width", "heads"), "v_proj": ("width", "heads")}
        names |= {"o_proj": ("heads", "width"), "down_proj": ("hidden", "width")}
        names |= {"gate_proj": ("width", "hidden"), "up_proj": ("width", "hidden")}
        shapes = site_shapes(c)

        def site(name: str, h: Array, weighted) -> Array:
            y = Linear(shapes[name][1], names[name], param_dtype=self.param_dtype, name=name)(h)
            return speak(y, h, name, weighted)

        with jax.named_scope("attention"):
            h = RMSNorm(c.epsilon, self.param_dtype, name="norm1")(x)
            weighted = [(voice, weight) for voice, (weight, _) in zip(voices, gates(h, voices), strict=True)]
            heads = (*h.shape[:2], -1, c.head_width)
            q = rotate(site("q_proj", h, weighted).reshape(heads), positions_BT, c.rope_theta)
            k = rotate(site("k_proj", h, weighted).reshape(heads), positions_BT, c.rope_theta)
            k, v, kept = store(k, site("v_proj", h, weighted).reshape(heads))
            x = x + site("o_proj", attend(q, k, v, mask_B1TS), weighted)
        with jax.named_scope("feed_forward"):
            h = RMSNorm(c.epsilon, self.param_dtype, name="norm2")(x)
            weighed = gates(h, voices)
            weighted = [(voice, weight) for voice, (weight, _) in zip(voices, weighed, strict=True)]
            up = jax.nn.silu(site("gate_proj", h, weighted)) * site("up_proj", h, weighted)
            branch = speak(site("down_proj", up, weighted), h, "ffn", weighted)
            self.sow("intermediates", "branch", branch)
            x = x + branch
        return x, weighed, kept


class Embedding(nn.Module):
    """Token table [V, D]."""

    config: DecoderConfig
    param_dtype: str

    @nn.compact
    def __call__(self, ids_BT: Array) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "width"))
        shape = (self.config.vocabulary, self.config.width)
        return self.param("table", init, shape, jnp.dtype(self.param_dtype))[ids_BT]


def _no_store(k: Array, v: Array):
    return k, v, None


def _parts(config: DecoderConfig, param_dtype: str):
    x, positions = jnp.zeros((1, 2, config.width)), jnp.zeros((1, 2), jnp.int32)
    parts = {
        "embedding": (Embedding(config, param_dtype), (positions,)),
        "layers": (DecoderBlock(config, param_dtype), (x, positions, None, (), _no_store)),
        "norm": (RMSNorm(config.epsilon, param_dtype), (x,)),
    }
    if not config.tied:
        parts["head"] = (Linear(config.vocabulary, ("width", "vocab"), param_dtype=param_dtype), (x,))
    return parts


def init_decoder(config: DecoderConfig, key: Array, param_dtype: str = "float32") -> dict:
    """Random parameters {embedding, layers [L, ...], norm, head unless tied}."""
    params = {}
    for index, (name, (module, inputs)) in enumerate(_parts(config, param_dtype).items()):
        own = jax.random.fold_in(key, index)
        if name == "layers":
            params[name] = init_stack(module, config.layers, own, *inputs)
        else:
            params[name] = nn.unbox(module.init(own, *inputs))["params"]
    return params


def decoder_axes(config: DecoderConfig) -> dict:
    """Logical axis names with the tree of `init_decoder`."""
    parts = _parts(config, "float32")
    return {name: axes_of(module, *inputs, stacked=name == "layers") for name, (module, inputs) in parts.items()}


def segments(layers: int, voices: Sequence[Voice]) -> list[tuple[int, int]]:
    """Runs of layers that the same voices cover, in order."""
    cuts = {0, layers}
    for voice in voices:
        first, last = voice.bank.first_layer, voice.bank.first_layer + voice.bank.layers
        if not 0 <= first <= last <= layers:
            raise ValueError(f"bank covers layers {first}..{last}, the decoder has 0..{layers}")
        cuts |= {first, last}
    ordered = sorted(cuts)
    return list(zip(ordered[:-1], ordered[1:], strict=True))


def _cut(voice: Voice, start: int, stop: int) -> LayerVoice | None:
    """The voice's arrays for layers start..stop, layer axis first; None where it covers none of them."""
    bank, routing = voice.bank, voice.routing
    low, high = start - bank.first_layer, stop - bank.first_layer
    if low < 0 or high > bank.layers:
        return None
    whole = low == 0 and high == bank.layers
    leaves = (bank.a, bank.b, routing.gain_LBS, routing.router_LBDS, routing.site_routers)
    if not whole:
        leaves = jax.tree.map(lambda leaf: leaf[low:high], leaves)
    a, b, gain, router, at_sites = leaves
    keys = (
        None
        if voice.key is None
        else jax.vmap(lambda layer: jax.random.fold_in(voice.key, layer))(jnp.arange(start, stop))
    )
    return LayerVoice(a, b, gain, router, keys, bank.scale, routing.top_k, voice.dropout, routing.gate, at_sites)


def _count(weight: Array, chance: Array, kinds_BT: Array) -> Tally:
    """Sums one layer's slot weights over tokens by kind (a kind outside 0..KINDS-1 is padding and is left out)."""
    of_kind = (kinds_BT[..., None] == jnp.arange(KINDS)).astype(jnp.float32)

    def spread(leaf: Array) -> Array:
        leaf = leaf if leaf.ndim == 3 else leaf[:, None, :]
        return jnp.broadcast_to(leaf, (*kinds_BT.shape, leaf.shape[-1]))

    def summed(leaf: Array) -> Array:
        return jnp.einsum("bts,btk->sk", leaf, of_kind.astype(leaf.dtype))

    return Tally(summed(spread(weight)), summed(spread(chance)), summed((spread(weight) > 0).astype(jnp.int32)))


def run_layers(
    layers: dict,
    config: DecoderConfig,
    x_BTD: Array,
    *,
    positions_BT: Array,
    mask_B1TS: Array,
    voices: Sequence[Voice] = (),
    cache: Cache | None = None,
    kinds_BT: Array | None = None,
    remat: bool = False,
) -> tuple[Array, Cache | None, list[list[Tally]]]:
    """Walks the stack. Returns hidden states before the final norm, the filled cache, and tallies by segment and voice.

    With a cache, new keys and values are written from `cache.slot` on and attention reads all its slots under the mask.
    """
    block = DecoderBlock(config, "float32")
    tallies = []

    def step(carry, inputs):
        x, cache = carry
        index, heard = inputs
        params = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, index, keepdims=False), layers)

        def store(k: Array, v: Array):
            if cache is None:
                return k, v, None
            start = (index, 0, cache.slot, 0, 0)
            full_k = jax.lax.dynamic_update_slice(cache.k, k[None].astype(cache.k.dtype), start)
            full_v = jax.lax.dynamic_update_slice(cache.v, v[None].astype(cache.v.dtype), start)
            return full_k[index], full_v[index], cache.replace(k=full_k, v=full_v)

        x, weights, cache = block.apply({"params": params}, x, positions_BT, mask_B1TS, heard, store)
        counted = None if kinds_BT is None else [_count(*weighed, kinds_BT) for weighed in weights]
        return (x, cache), counted

    step = jax.checkpoint(step, prevent_cse=False) if remat else step
    x = x_BTD
    for start, stop in segments(config.layers, voices):
        heard = [cut for cut in (_cut(v, start, stop) for v in voices) if cut is not None]
        (x, cache), counted = jax.lax.scan(step, (x, cache), (jnp.arange(start, stop), heard))
        tallies.append(counted)
    return x, cache, tallies


def branch_means(
    layers: dict,
    config: DecoderConfig,
    x_BTD: Array,
    *,
    positions_BT: Array,
    mask_B1TS: Array,
    voices: Sequence[Voice],
    real_BT: Array,
) -> Array:
    """Feed-forward output of every layer before it joins the residual, averaged over real tokens: float32 [L, B, D].

    The voices must cover the whole stack. This is what similarity studies of layers look at; nothing is cached.
    """
    block = DecoderBlock(config, "float32")
    share_BT1 = (real_BT / jnp.maximum(jnp.sum(real_BT, axis=1, keepdims=True), 1)).astype(jnp.float32)[..., None]

    def step(x, inputs):
        params, heard = inputs
        (x, _, _), seen = block.apply(
            {"params": params}, x, positions_BT, mask_B1TS, heard, _no_store, mutable=["intermediates"]
        )
        (branch,) = seen["intermediates"]["branch"]
        return x, jnp.sum(branch.astype(jnp.float32) * share_BT1, axis=1)

    return jax.lax.scan(step, x_BTD, (layers, [_cut(voice, 0, config.layers) for voice in voices]))[1]
