"""Generation: one jitted program, a prefill of a batch of unequal prompts and a loop over new tokens.

Keys and values are in a cache; a sample that has ended gets padding until all have ended. The voices' gains are
computed before prefill and reused for every token. Random draws are keyed by sample id and step, so a sample's text
does not depend on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.layout import Layout, constrain
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.models.decode import run_token, split_cache, split_layers
from hidecmoe_jax.models.llama import run_layers
from hidecmoe_jax.models.llava import Model, Prompt, decoder_layers, embed, final_norm, head, hidden, last_positions
from hidecmoe_jax.models.stack import CACHE_AXES, Cache


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
                value = getattr(self, name)
                raise ConfigError("sampling cannot draw tokens", where=name, why=f"got {value}, allowed: {rule}")


class Generated(struct.PyTreeNode):
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
        token_B = jnp.argmax(logits_BV, axis=-1)
        return token_B.astype(jnp.int32)
    scaled_BV = logits_BV / sampling.temperature
    if sampling.top_p != 1.0:
        scaled_BV = _nucleus(scaled_BV, sampling.top_p)
    draw = jax.vmap(jax.random.categorical)
    token_B = draw(keys_B, scaled_BV)
    return token_B.astype(jnp.int32)


def _nucleus(logits_BV: Array, top_p: float) -> Array:
    """Logits of the smallest set of tokens whose probability reaches `top_p`, -inf for all others."""
    ascending_BV = jnp.sort(logits_BV, axis=-1)
    ordered_BV = ascending_BV[:, ::-1]
    share_BV = jax.nn.softmax(ordered_BV, axis=-1)
    # A token belongs to the nucleus if those before it have less than `top_p`: the one that reaches it is included.
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    in_nucleus_BV = before_BV < top_p
    candidates_BV = jnp.where(in_nucleus_BV, ordered_BV, jnp.inf)
    smallest_B1 = jnp.min(candidates_BV, axis=-1, keepdims=True)
    is_probable_BV = logits_BV >= smallest_B1
    return jnp.where(is_probable_BV, logits_BV, -jnp.inf)


def _empty_cache(model: Model, batch: int, capacity: int) -> Cache:
    c = model.config.decoder
    shape = (c.layers, batch, capacity, c.kv_heads, c.head_width)
    dtype = jnp.dtype(model.config.dtype)
    zeros = jnp.zeros(shape, dtype)
    zeros = constrain(model.layout, zeros, CACHE_AXES)
    slot = jnp.zeros((), jnp.int32)
    return Cache(zeros, zeros, slot)


def _next_token_logits(
    model: Model, voices: Sequence[Voice], cache: Cache
) -> tuple[Callable[[Array, Array, Array, Any], tuple[Array, Any]], Any]:
    """A function (token [B], position [B], filled slots [B, S], cache) to (logits [B, V], cache), and its cache."""
    config = model.config.decoder
    voices = (*model.constant, *voices)
    if model.execution.decode == "apart":
        apart = split_layers(decoder_layers(model), config, voices)
        cache = split_cache(cache, config)

        def layers(x_B1D: Array, positions_B1: Array, mask_B11S: Array, cache: Any) -> tuple[Array, Any]:
            inputs = {"positions_B1": positions_B1, "mask_B11S": mask_B11S}
            return run_token(apart, config, x_B1D, cache=cache, execution=model.execution, **inputs)
    else:

        def layers(x_B1D: Array, positions_B1: Array, mask_B11S: Array, cache: Any) -> tuple[Array, Any]:
            x_B1D, cache, _ = run_layers(
                decoder_layers(model), config, x_B1D, positions_BT=positions_B1, mask_B1TS=mask_B11S, voices=voices,
                cache=cache, layout=model.layout,
            )  # fmt: skip
            return x_B1D, cache

    def next_logits(tokens_B: Array, position_B: Array, keys_BS: Array, cache: Any) -> tuple[Array, Any]:
        tokens_B1 = tokens_B[:, None]
        mask_B1 = jnp.ones_like(tokens_B1, bool)
        x_B1D = embed(model, Prompt(tokens_B1, mask_B1))
        x_B1D, cache = layers(x_B1D, position_B[:, None], keys_BS[:, None, None, :], cache)
        normed_B1D = final_norm(model, x_B1D)
        return head(model, normed_B1D[:, 0]), cache

    return next_logits, cache


def _two_best(logits_BV: Array, layout: Layout | None) -> tuple[Array, Array]:
    """The two largest logits of every sample, [B] each."""
    if layout is None:
        best_B2, _ = jax.lax.top_k(logits_BV, 2)
        return best_B2[:, 0], best_B2[:, 1]
    # The same by maxima: the compiler does not split a top-k over devices, and gathers the logits of all samples.
    best_B = jnp.max(logits_BV, axis=-1)
    where_B = jnp.argmax(logits_BV, axis=-1)
    where_B1 = where_B[:, None]
    is_best_BV = jnp.arange(logits_BV.shape[-1]) == where_B1
    others_BV = jnp.where(is_best_BV, -jnp.inf, logits_BV)
    return best_B, jnp.max(others_BV, axis=-1)


def _next_token(
    logits_BV: Array, ended_B: Array, sampling: Sampling, keys_B: Array, layout: Layout | None
) -> tuple[Array, Array]:
    """Token of every sample and the gap between its two best logits; padding and 0 for samples that have ended."""
    if sampling.ids is not None:
        # Rows of the table beyond the tokenizer were never trained.
        vocabulary = logits_BV.shape[-1]
        in_vocabulary = jnp.arange(vocabulary) < sampling.ids
        logits_BV = jnp.where(in_vocabulary, logits_BV, -jnp.inf)
    best_B, second_B = _two_best(logits_BV, layout)
    token_B = choose(logits_BV, sampling, keys_B)
    token_B = jnp.where(ended_B, sampling.pad_token, token_B)
    margin_B = best_B - second_B
    margin_B = jnp.where(ended_B, 0.0, margin_B)
    return token_B, margin_B


def _filled_slots(prompt_keys_BS: Array, length: int, last: Array) -> Array:
    """Slots of the cache that hold a real token: of the prompt, or generated ones from `length` to `last`."""
    slots = jnp.arange(prompt_keys_BS.shape[1])
    is_after_prompt = slots >= length
    is_generated = is_after_prompt & (slots <= last)
    return prompt_keys_BS | is_generated[None]


def _blank_texts(batch: int, sampling: Sampling) -> tuple[Array, Array, Array, Array]:
    """State of the loop before the first token: none has ended, tokens are padding, lengths and margins are 0."""
    shape = (batch, sampling.max_new_tokens)
    tokens_BN = jnp.full(shape, sampling.pad_token, jnp.int32)
    lengths_B = jnp.zeros((batch,), jnp.int32)
    ended_B = lengths_B > 0
    margins_BN = jnp.zeros(shape, jnp.float32)
    return ended_B, tokens_BN, lengths_B, margins_BN


def generate(
    model: Model, prompt: Prompt, voices: Sequence[Voice], *, sampling: Sampling, key: Array, sample_ids_B: Array
) -> Generated:
    """Generates up to `max_new_tokens` tokens after every prompt. Pure; jit it with `sampling` static.

    Args:
      key: base key; the draw of a token uses `fold_in(fold_in(key, sample id), step)`.
      sample_ids_B: int32 ids that name the samples.
    """
    batch, length = prompt.tokens_BT.shape
    steps = sampling.max_new_tokens
    chex.assert_shape(sample_ids_B, (batch,), custom_message="one id for every sample")
    chex.assert_type(sample_ids_B, int)
    cache = _empty_cache(model, batch, length + steps)
    last_B1 = last_positions(prompt)[:, None]
    h_B1D, cache, _ = hidden(model, prompt, voices, cache=cache, at_BQ=last_B1)
    first_logits = head(model, h_B1D[:, 0])
    sample_keys = jax.vmap(lambda sample_id: jax.random.fold_in(key, sample_id))(sample_ids_B)
    count_B = jnp.sum(prompt.mask_BT.astype(jnp.int32), axis=1)
    prompt_keys_BS = jnp.pad(prompt.mask_BT, ((0, 0), (0, steps)))
    next_logits, cache = _next_token_logits(model, voices, cache)

    def body(state):
        step, logits, cache, ended, tokens, lengths, margins = state
        step_keys = jax.vmap(lambda sample_key: jax.random.fold_in(sample_key, step))(sample_keys)
        token, margin = _next_token(logits, ended, sampling, step_keys, model.layout)
        margins = margins.at[:, step].set(margin)
        ended = ended | (token == sampling.eos_token)
        # After `ended` is set: the end token itself is not a part of the text.
        shown = jnp.where(ended, sampling.pad_token, token)
        tokens = tokens.at[:, step].set(shown)
        goes_on = ~ended
        lengths = lengths + goes_on.astype(jnp.int32)
        # New tokens are cached after the prompt's columns, whatever padding those hold.
        slot = length + step
        keys_BS = _filled_slots(prompt_keys_BS, length, slot)
        cache = cache.replace(slot=slot)
        positions = count_B + step
        logits, cache = next_logits(token, positions, keys_BS, cache)
        return step + 1, logits, cache, ended, tokens, lengths, margins

    def unfinished(state):
        step, _, _, ended, *_ = state
        return (step < steps) & ~jnp.all(ended)

    first_step = jnp.zeros((), jnp.int32)
    start = (first_step, first_logits, cache, *_blank_texts(batch, sampling))
    _, _, _, ended, tokens, lengths, margins = jax.lax.while_loop(unfinished, body, start)
    return Generated(tokens, lengths, ended, margins)
