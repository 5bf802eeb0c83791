"""Generation: one jitted program, a prefill of a batch of unequal prompts and a loop over new tokens.

Keys and values are in a cache; a sample that has ended gets padding until all have ended. The voices' gains are
computed before prefill and reused for every token. Random draws are keyed by sample id and step, so a sample's text
does not depend on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.models.llama import Cache, run_layers
from hidecmoe_jax.models.llava import Model, Prompt, decoder_layers, embed, final_norm, head, hidden


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; `temperature` 0 is greedy, `top_p` keeps the smallest set of tokens with that mass.

    `ids` is the number of ids that may be generated: a model's table is often padded beyond its tokenizer (None: all).

    Raises:
      ConfigError: a value outside its range.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    eos_token: int = 2
    pad_token: int = 0
    ids: int | None = None

    def __post_init__(self):
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (self.temperature >= 0.0, "0 (greedy) or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0, at most 1"),
        }
        for name, (in_range, rule) in allowed.items():
            if not in_range:
                raise ConfigError(
                    "sampling cannot draw tokens", where=name, why=f"got {getattr(self, name)}, allowed: {rule}"
                )


@struct.dataclass
class Generated:
    """Generated tokens.

    Attributes:
      tokens_BN: int32, `pad_token` after the end.
      lengths_B: int32, generated tokens without the end token.
      ended_B: bool, False where `max_new_tokens` cut the text.
      margin_BN: float32, gap between the two best logits at each step (for parity checks), 0 after the end.
    """

    tokens_BN: Array
    lengths_B: Array
    ended_B: Array
    margin_BN: Array


def choose(logits_BV: Array, sampling: Sampling, keys_B: Array) -> Array:
    """The next token of every sample, int32 [B]."""
    chex.assert_rank(logits_BV, 2)
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    scaled = logits_BV / sampling.temperature
    if sampling.top_p == 1.0:
        return jax.vmap(jax.random.categorical)(keys_B, scaled).astype(jnp.int32)
    ordered = jnp.sort(scaled, axis=-1)[:, ::-1]
    share = jax.nn.softmax(ordered, axis=-1)
    # A token belongs to the nucleus if those before it have less than `top_p`: the one that reaches it is included.
    before = jnp.cumsum(share, axis=-1) - share
    in_nucleus = before < sampling.top_p
    candidates = jnp.where(in_nucleus, ordered, jnp.inf)
    smallest = jnp.min(candidates, axis=-1, keepdims=True)
    nucleus = jnp.where(scaled >= smallest, scaled, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, nucleus).astype(jnp.int32)


def _empty_cache(model: Model, batch: int, capacity: int) -> Cache:
    c = model.config.decoder
    shape = (c.layers, batch, capacity, c.kv_heads, c.head_width)
    zeros = jnp.zeros(shape, jnp.dtype(model.config.dtype))
    return Cache(zeros, zeros, jnp.zeros((), jnp.int32))


def _next_logits(
    model: Model, tokens_B: Array, position_B: Array, keys_BS: Array, voices: Sequence[Voice], cache: Cache
) -> tuple[Array, Cache]:
    """Logits after one more token per sample, and the cache with it."""
    tokens_B1 = tokens_B[:, None]
    x = embed(model, Prompt(tokens_B1, jnp.ones_like(tokens_B1, bool)))
    x, cache, _ = run_layers(
        decoder_layers(model),
        model.config.decoder,
        x,
        positions_BT=position_B[:, None],
        mask_B1TS=keys_BS[:, None, None, :],
        voices=voices,
        cache=cache,
    )
    return head(model, final_norm(model, x)[:, 0]), cache


def generate(
    model: Model,
    prompt: Prompt,
    voices: Sequence[Voice],
    *,
    sampling: Sampling,
    key: Array,
    sample_ids_B: Array,
) -> Generated:
    """Generates up to `max_new_tokens` tokens after every prompt. Pure; jit it with `sampling` static.

    Args:
      key: base key; the draw of a token uses `fold_in(fold_in(key, sample id), step)`.
      sample_ids_B: int32 ids that name the samples.
    """
    batch, length = prompt.tokens_BT.shape
    steps = sampling.max_new_tokens
    capacity = length + steps
    chex.assert_shape(sample_ids_B, (batch,), custom_message="one id for every sample")
    chex.assert_type(sample_ids_B, int)
    h, cache, _ = hidden(model, prompt, voices, cache=_empty_cache(model, batch, capacity))
    # The last real token, whichever side the padding is on.
    last_B = length - 1 - jnp.argmax(prompt.mask_BT[:, ::-1], axis=1)
    last_h = jnp.take_along_axis(h, last_B[:, None, None], axis=1)
    first_logits = head(model, last_h[:, 0])
    sample_keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(sample_ids_B)
    count_B = jnp.sum(prompt.mask_BT.astype(jnp.int32), axis=1)
    prompt_keys = jnp.pad(prompt.mask_BT, ((0, 0), (0, steps)))

    def body(state):
        step, logits, cache, ended, tokens, lengths, margins = state
        keys = jax.vmap(lambda k: jax.random.fold_in(k, step))(sample_keys)
        if sampling.ids is not None:
            # Rows of the table beyond the tokenizer were never trained.
            in_vocabulary = jnp.arange(logits.shape[-1]) < sampling.ids
            logits = jnp.where(in_vocabulary, logits, -jnp.inf)
        best, _ = jax.lax.top_k(logits, 2)
        token = jnp.where(ended, sampling.pad_token, choose(logits, sampling, keys))
        margin = best[:, 0] - best[:, 1]
        margin = jnp.where(ended, 0.0, margin)
        margins = margins.at[:, step].set(margin)
        ended = ended | (token == sampling.eos_token)
        # After `ended` is set: the end token itself is not a part of the text.
        shown = jnp.where(ended, sampling.pad_token, token)
        tokens = tokens.at[:, step].set(shown)
        lengths = lengths + (~ended).astype(jnp.int32)
        # New tokens are cached after the prompt's columns, whatever padding those hold.
        slots = jnp.arange(capacity)
        generated = (slots >= length) & (slots <= length + step)
        keys_BS = prompt_keys | generated[None]
        cache = cache.replace(slot=length + step)
        logits, cache = _next_logits(model, token, count_B + step, keys_BS, voices, cache)
        return step + 1, logits, cache, ended, tokens, lengths, margins

    def unfinished(state):
        return (state[0] < steps) & ~jnp.all(state[3])

    blank = jnp.full((batch, steps), sampling.pad_token, jnp.int32)
    zeros = jnp.zeros((batch,), jnp.int32)
    start = (
        jnp.zeros((), jnp.int32),
        first_logits,
        cache,
        zeros > 0,
        blank,
        zeros,
        jnp.zeros((batch, steps), jnp.float32),
    )
    _, _, _, ended, tokens, lengths, margins = jax.lax.while_loop(unfinished, body, start)
    return Generated(tokens, lengths, ended, margins)
