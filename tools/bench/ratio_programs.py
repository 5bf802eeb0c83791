"""Ratios of compiled programs: compilation with and without a loop over layers, memory of saved activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from ratio_timing import clock_of
from ratio_work import Size, drawn_batch, drawn_model

from hidecmoe_jax.experts.routing import Voice, all_slots
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.models.llama import run_layers
from hidecmoe_jax.models.llava import Model, answer_loss, decoder_layers, embed, positions_of

DEPTH = 32


def _thin(size: Size, layers: int) -> Size:
    """The size with so many layers; narrow, for compilation does not depend on widths."""
    decoder = replace(size.config.decoder, layers=layers, width=64, hidden=96, heads=4, kv_heads=4, head_width=16)
    config = replace(size.config, decoder=replace(decoder, vocabulary=128), image_token=100, dtype="float32")
    vision = replace(config.vision, image_size=16, patch_size=8, width=32, layers=2, heads=2, hidden=64)
    config = replace(config, vision=vision, param_dtype="float32")
    return replace(size, config=config, tokens=32, answers=8)


def _unrolled(model: Model, batch) -> jax.Array:
    """Sum of the last hidden states, layer after layer in the program's text."""
    decoder = replace(model.config.decoder, layers=1)
    x = embed(model, batch.prompt)
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
    for layer in range(model.config.layers):
        one = jax.tree.map(lambda leaf, at=layer: leaf[at : at + 1], decoder_layers(model))
        x, _, _ = run_layers(one, decoder, x, positions_BT=positions_of(batch.prompt.mask_BT), mask_B1TS=causal)
    return jnp.sum(x)


def _scanned(model: Model, batch) -> jax.Array:
    """The same number by the library's loop over layers."""
    x = embed(model, batch.prompt)
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
    positions = positions_of(batch.prompt.mask_BT)
    x, _, _ = run_layers(
        decoder_layers(model), model.config.decoder, x, positions_BT=positions, mask_B1TS=causal
    )  # fmt: skip
    return jnp.sum(x)


def _compiled(function: Callable, model: Model, batch, kind: str) -> tuple[float, float]:
    """(seconds of the compiler, the program's result)."""

    def gradient(params: dict, batch):
        return jax.value_and_grad(lambda params: function(model.replace(params=params), batch))(params)

    # Once before: what the compiler sets up on its first call is no part of either.
    jax.jit(lambda x: x + 1).lower(1.0).compile()
    lowered = jax.jit(gradient).lower(model.params, batch)
    clock = clock_of(kind)
    start = clock()
    program = lowered.compile()
    seconds = clock() - start
    return seconds, float(program(model.params, batch)[0])


def compile_times(size: Size, kind: str) -> dict:
    """Row 13: value and gradient of a stack, unrolled and scanned; both give one number."""
    thin = _thin(size, 3 if size.name == "smallest" else DEPTH)
    model = drawn_model(thin.config)
    batch = drawn_batch(thin, 1)
    unrolled, first = _compiled(_unrolled, model, batch, kind)
    scanned, second = _compiled(_scanned, model, batch, kind)
    apart = abs(first - second) / max(abs(first), 1e-6)
    name = "CPU time" if kind == "cpu" else "time"
    row = {name: unrolled / scanned, "layers": thin.config.layers, "apart": apart}
    row |= {"seconds unrolled": unrolled, "seconds scanned": scanned}
    return {13: row}


def activation_bytes(size: Size, recompute: str) -> int:
    """Temporary memory of value and gradient of the experts."""
    model = drawn_model(size.config, recompute)
    batch = drawn_batch(size, size.train[0])
    bank = Lora(rank=size.rank).blank(model, 1)

    def loss(factors: dict, model: Model, batch) -> jax.Array:
        mixed = bank.with_factors(factors)
        return answer_loss(model, batch, [Voice(mixed, all_slots(bank))])[0]

    lowered = jax.jit(jax.value_and_grad(loss)).lower(bank.factors, model, batch)
    return int(lowered.compile().memory_analysis().temp_size_in_bytes)


def memory(size: Size, kind: str) -> dict:
    """Row 15 on a small model, always of a size that a CPU compiles in seconds."""
    small = size
    if size.name == "7b":
        from ratio_work import size_of

        small = size_of("toy")
    deep = replace(small, config=replace(small.config, decoder=replace(small.config.decoder, layers=8)))
    named = activation_bytes(deep, "named")
    plain = activation_bytes(deep, "none")
    return {15: {"bytes": named / plain, "named bytes": named, "plain bytes": plain}}
