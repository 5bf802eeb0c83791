"""The LLaMA decoder (arXiv 2302.13971) with sites at which experts add to the output of its linears.

A block has seven linears and one parallel site around its feed-forward part. The stack is an explicit scan over layer
indices: where voices cover only some layers it is divided into segments that share the same stacked parameters, so
folded layers below and routed layers above compile to two scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from hidecmoe_jax.core.int8 import Int8, int8_product, spread_axes
from hidecmoe_jax.core.layout import Layout, Recompute, constrain
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.models.attention import attend_as, rotary_table, rotate
from hidecmoe_jax.models.config import DecoderConfig
from hidecmoe_jax.models.execution import PLAIN, Execution
from hidecmoe_jax.models.layers import RMSNorm, axes_of, dense, init_stack, small_normal
from hidecmoe_jax.models.stack import Cache, Store, check_inputs, covering, recomputed, store_layer
from hidecmoe_jax.models.voices import (
    LayerVoice,
    Rows,
    Tally,
    add_experts,
    check_voices,
    pick,
    segments,
    slot_weights,
    tallied_weights,
    tally_layer,
)

SITES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SITE_AXES = {
    "q_proj": ("width", "heads"), "k_proj": ("width", "heads"), "v_proj": ("width", "heads"),
    "o_proj": ("heads", "width"), "gate_proj": ("width", "hidden"), "up_proj": ("width", "hidden"),
    "down_proj": ("hidden", "width"),
}  # fmt: skip
STREAM_AXES = ("batch", None, None)
HEADS_AXES = ("batch", None, "heads", None)
HIDDEN_AXES = ("batch", None, "hidden")
# Voices of a layer with the weights of their slots.
Weighted = Sequence[tuple[LayerVoice, Array]]


def site_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Input and output width of every site, in `SITES` order."""
    width = config.width
    hidden = config.hidden
    queries = config.heads * config.head_width
    keys = config.kv_heads * config.head_width
    return {
        "q_proj": (width, queries), "k_proj": (width, keys), "v_proj": (width, keys), "o_proj": (queries, width),
        "gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width),
    }  # fmt: skip


class DecoderBlock(nn.Module):
    """One block; x [B, T, D] -> (x, (weights, chances) of every voice as a `Tally` counts them, cache of `store`).

    Without `store` attention reads the new keys and values alone, and the cache is None. `table` is the `rotary_table`
    of the positions, computed once for all layers. With `rows`, keys and values are those of all positions and
    everything else is computed at these alone: x [B, Q, D] and the weights are theirs. `real_BS` is as `attend_as`
    takes it.
    """

    config: DecoderConfig
    param_dtype: str
    layout: Layout | None = None
    execution: Execution = PLAIN

    @nn.compact
    def __call__(
        self,
        x: Array,
        positions_BT: Array,
        mask_B1TS: Array | None,
        voices: Sequence[LayerVoice],
        store: Store | None = None,
        table: tuple[Array, Array] | None = None,
        rows: Rows | None = None,
        real_BS: Array | None = None,
    ) -> tuple[Array, list[tuple[Array, Array]], Any]:
        c = self.config
        if table is None:
            table = rotary_table(positions_BT, c.head_width, c.rope_theta)
        with jax.named_scope("attention"):
            norm1 = RMSNorm(c.epsilon, self.param_dtype, name="norm1")
            h = self._pinned(norm1(x), STREAM_AXES, "normed")
            attention_weights = slot_weights(h, voices, "attention")
            weighted = _with_weights(voices, attention_weights)
            picked = _with_weights(voices, attention_weights, rows)
            x = pick(rows, x)
            q, k, v = self._heads(h, table, weighted, picked, rows)
            cache = None
            if store is not None:
                k, v, cache = store(k, v)
            if rows is not None and mask_B1TS is not None:
                mask_B1TS = pick(rows, mask_B1TS[:, 0])[:, None]
            real_BS = real_BS if rows is None else None
            attended = attend_as(self.execution.attention, q, k, v, mask_B1TS, real_BS=real_BS, layout=self.layout)
            attended = checkpoint_name(attended, "attended")
            x = x + self._site("o_proj", attended, picked, rows)
            x = self._pinned(x, STREAM_AXES, "middle")
        with jax.named_scope("feed_forward"):
            norm2 = RMSNorm(c.epsilon, self.param_dtype, name="norm2")
            h = norm2(x)
            # Token routers decide again here: their input is another one than before attention.
            weights = slot_weights(h, voices, "feed_forward")
            branch = self._feed_forward(h, _with_weights(voices, weights), rows)
            self.sow("intermediates", "branch", branch)
            x = constrain(self.layout, x + branch, STREAM_AXES)
        return x, tallied_weights(voices, attention_weights, weights), cache

    def _heads(
        self, h: Array, table: tuple[Array, Array], weighted: Weighted, picked: Weighted, rows: Rows | None
    ) -> tuple[Array, Array, Array]:
        """Queries of the rows, keys and values of all positions; [B, T, heads, head width]."""
        head_width = self.config.head_width
        normed = pick(rows, h)
        q = self._site("q_proj", normed, picked, rows).reshape((*normed.shape[:2], -1, head_width))
        turned = (pick(rows, table[0]), pick(rows, table[1]))
        q = self._pinned(rotate(q, turned), HEADS_AXES, "q")
        heads = (*h.shape[:2], -1, head_width)
        k = self._site("k_proj", h, weighted).reshape(heads)
        k = self._pinned(rotate(k, table), HEADS_AXES, "k")
        v = self._site("v_proj", h, weighted).reshape(heads)
        v = self._pinned(v, HEADS_AXES, "v")
        return q, k, v

    def _feed_forward(self, h: Array, weighted: Weighted, rows: Rows | None) -> Array:
        """Output of the gated feed-forward part and of the experts parallel to it."""
        gate = self._pinned(self._site("gate_proj", h, weighted, rows), HIDDEN_AXES, "gate")
        gate = jax.nn.silu(gate)
        up = self._pinned(self._site("up_proj", h, weighted, rows), HIDDEN_AXES, "up")
        down = self._site("down_proj", gate * up, weighted, rows)
        # The site `ffn` is parallel to the whole feed-forward part, so it reads the part's input.
        return add_experts(down, h, "ffn", weighted, rows)

    def _site(self, name: str, h: Array, weighted: Weighted, rows: Rows | None = None) -> Array:
        """Output of a linear and its experts, in the dtype of `h`."""
        kernel = self.variables.get("params", {}).get(name, {}).get("kernel")
        if isinstance(kernel, Int8):
            out = int8_product(h, kernel)
        else:
            _, features = site_shapes(self.config)[name]
            linear = dense(
                features, SITE_AXES[name], h.dtype, param_dtype=self.param_dtype, name=name, sums_float32=True
            )
            out = linear(h)
        # Rounded once, after the sum of the linear and its experts.
        return add_experts(out, h, name, weighted, rows).astype(h.dtype)

    def _pinned(self, y: Array, axes: tuple, name: str) -> Array:
        """`y` laid out by its axes, under the name by which a recompute policy may keep it."""
        y = constrain(self.layout, y, axes)
        return checkpoint_name(y, name)


def _with_weights(
    voices: Sequence[LayerVoice], weights: Sequence[tuple[Array, Array]], rows: Rows | None = None
) -> list[tuple[LayerVoice, Array]]:
    """Every voice with its slot weights, without the chances; weights of tokens are those of the rows."""
    weighted = []
    for voice, (weight, _) in zip(voices, weights, strict=True):
        of_tokens = weight.ndim == 3
        weighted.append((voice, pick(rows, weight) if of_tokens else weight))
    return weighted


class Embedding(nn.Module):
    """Token table [V, D]."""

    config: DecoderConfig
    param_dtype: str

    @nn.compact
    def __call__(self, ids_BT: Array) -> Array:
        init = small_normal(("vocab", "width"))
        shape = (self.config.vocabulary, self.config.width)
        dtype = jnp.dtype(self.param_dtype)
        table = self.param("table", init, shape, dtype)
        return table[ids_BT]


def _modules(config: DecoderConfig, param_dtype: str) -> dict[str, tuple[nn.Module, tuple]]:
    """{name in the parameter tree: (module, example inputs)}, in the order that initialisation keys are drawn in."""
    x = jnp.zeros((1, 2, config.width))
    positions = jnp.zeros((1, 2), jnp.int32)
    embedding = Embedding(config, param_dtype)
    block = DecoderBlock(config, param_dtype)
    norm = RMSNorm(config.epsilon, param_dtype)
    modules = {
        "embedding": (embedding, (positions,)),
        "layers": (block, (x, positions, None, ())),
        "norm": (norm, (x,)),
    }
    if not config.tied:
        head = dense(config.vocabulary, ("width", "vocab"), x.dtype, param_dtype=param_dtype)
        modules["head"] = (head, (x,))
    return modules


def init_decoder(config: DecoderConfig, key: Array, param_dtype: str = "float32") -> dict:
    """Random parameters {embedding, layers [L, ...], norm, head unless tied}."""
    params = {}
    # Keys are drawn by a module's place in this order.
    modules = _modules(config, param_dtype)
    for index, name in enumerate(modules):
        module, inputs = modules[name]
        module_key = jax.random.fold_in(key, index)
        if name == "layers":
            params[name] = init_stack(module, config.layers, module_key, *inputs)
        else:
            variables = module.init(module_key, *inputs)
            variables = nn.unbox(variables)
            params[name] = variables["params"]
    return params


def decoder_axes(config: DecoderConfig) -> dict:
    """Logical axis names with the tree of `init_decoder`."""
    axes = {}
    modules = _modules(config, "float32")
    for name, (module, inputs) in modules.items():
        is_stacked = name == "layers"
        axes[name] = axes_of(module, *inputs, stacked=is_stacked)
    return axes


@lru_cache(maxsize=8)
def _block_axes(config: DecoderConfig) -> dict:
    """Logical axis names of one layer's parameters."""
    axes = decoder_axes(config)["layers"]
    return jax.tree.map(lambda names: names[1:], axes, is_leaf=lambda node: isinstance(node, tuple))


def whole_layer(params: dict, config: DecoderConfig, layout: Layout | None) -> dict:
    """One layer's parameters, pinned twice: as the slice of the stack lies, and gathered.

    The first pin makes the compiler gather this layer inside the scan, where it would gather the whole stack before it.
    """
    if layout is None:
        return params
    axes = spread_axes(_block_axes(config), params)
    params = constrain(layout, params, axes)
    return constrain(layout, params, axes, gathered=True)


def block_table(config: DecoderConfig, voices: Sequence[Voice] = (), *, tokens: int = 2) -> str:
    """`nn.tabulate` of one decoder block: its linears and norms, and the experts and token routers of `voices`.

    Args:
      voices: as the decoder takes them; those that do not cover the first layer of the first voice are left out.
    """
    layer = voices[0].bank.first_layer if voices else 0
    layer_voices = []
    for stacked in covering(voices, layer, layer + 1):
        layer_voice = jax.tree.map(lambda leaf: leaf[0], stacked)
        layer_voices.append(layer_voice)
    batch = max((voice.gain_BS.shape[0] for voice in layer_voices), default=1)
    x = jnp.zeros((batch, tokens, config.width))
    positions = jnp.zeros((batch, tokens), jnp.int32)
    block = DecoderBlock(config, "float32")
    # A fixed width: the table is for people, and must not depend on the terminal.
    console = {"width": 160, "force_terminal": False}
    tabulate = nn.tabulate(block, jax.random.key(0), console_kwargs=console)
    return tabulate(x, positions, None, layer_voices)


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
    recompute: Recompute = "none",
    layout: Layout | None = None,
    execution: Execution = PLAIN,
    at_BQ: Array | None = None,
    real_BS: Array | None = None,
) -> tuple[Array, Cache | None, list[list[Tally]]]:
    """Runs the stack. Returns hidden states before the final norm, the filled cache, and tallies by segment and voice.

    With a cache, new keys and values are written from `cache.slot` on and attention reads all its slots under the mask.

    Args:
      at_BQ: positions whose states are returned, [B, Q, D]; of all others the last layer computes keys and values
        alone, unless tokens are tallied or weights gathered. None for all positions.
      real_BS: as `attend_as` takes it.
    """
    check_inputs(config, x_BTD, positions_BT, mask_B1TS)
    check_voices(voices, x_BTD.shape[0])
    block = DecoderBlock(config, "float32", layout, execution)
    table = rotary_table(positions_BT, config.head_width, config.rope_theta)
    tallies = []

    def step(carry: tuple[Array, Cache | None], inputs: tuple[Array, list[LayerVoice]], rows: Rows | None = None):
        x, cache = carry
        index, layer_voices = inputs
        # Indexed inside the scan instead of scanned over: segments then share one stack without slicing copies of it.
        params = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, index, keepdims=False), layers)
        params = whole_layer(params, config, layout)
        store = None if cache is None else partial(store_layer, cache, index)
        x, weights, cache = block.apply(
            {"params": params}, x, positions_BT, mask_B1TS, layer_voices, store, table, rows, real_BS
        )
        tally = None
        if kinds_BT is not None:
            tally = [tally_layer(weight, chance, kinds_BT) for weight, chance in weights]
        return (x, cache), tally

    rows = None
    # Tokens of all positions are tallied in the last layer too, and gathered weights arrive in one loop over layers.
    is_whole = kinds_BT is not None or (layout is not None and layout.gathers)
    if at_BQ is not None and config.layers and not is_whole:
        rows = Rows(at_BQ, x_BTD.shape[1])
    each = recomputed(step, recompute, execution)
    x = x_BTD
    for start, stop in segments(config.layers, voices, alone=rows is not None):
        layer_voices = covering(voices, start, stop)
        inputs = (jnp.arange(start, stop), layer_voices)
        if rows is not None and stop == config.layers:
            first = jax.tree.map(lambda leaf: leaf[0], inputs)
            last = recomputed(partial(step, rows=rows), recompute, execution)
            (x, cache), tally = last((x, cache), first)
        else:
            (x, cache), tally = jax.lax.scan(each, (x, cache), inputs)
        tallies.append(tally)
    if at_BQ is not None and rows is None:
        x = pick(Rows(at_BQ, x.shape[1]), x)
    if kinds_BT is None:
        tallies = [None] * len(segments(config.layers, voices))
    return x, cache, tallies
