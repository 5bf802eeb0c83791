"""Ratio of a training step over a base in int8 to one over the same base in the dtype that it is loaded in."""

from __future__ import annotations

from ratio_peers import largest_step, own_trainer
from ratio_timing import control_of, interleaved
from ratio_work import Size, drawn_model, drawn_pixels, drawn_tokens

from hidecmoe_jax.models.quantised import quantise_model


def int8_step(size: Size, kind: str) -> dict:
    """Row 18: one training step, tower included, with as many samples as fit over the larger base."""
    model = drawn_model(size.config, "none" if kind == "cpu" else "named")
    count, plain, first = largest_step(model, size)
    tokens = drawn_tokens(size, count, size.tokens)
    int8 = own_trainer(quantise_model(model), size, tokens, drawn_pixels(size.config, count))
    int8_first = int8()
    seconds = interleaved({"plain": plain, "int8": int8}, size.rounds, kind)
    row = {"CPU time" if kind == "cpu" else "speed": seconds["plain"] / seconds["int8"]}
    row |= {"samples": count, "seconds": seconds, "control": control_of(seconds)}
    row["first losses"] = {"plain": first, "int8": int8_first}
    return {18: row}
