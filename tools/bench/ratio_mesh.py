"""What eight devices exchange in a training step, read from the compiled program's text, in elements."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from ratio_work import Size, drawn_batch, drawn_model, lesson, rates, stacked

from hidecmoe_jax.core.layout import Layout, layout_of, place, replicate, split_batch
from hidecmoe_jax.core.sharding import make_mesh
from hidecmoe_jax.methods.base import trainable
from hidecmoe_jax.models.llava import decoder_layers, model_axes
from hidecmoe_jax.studies.planning.collectives import collectives_of, elements_by_kind
from hidecmoe_jax.train.step import begin, take_step

DEVICES = 8


def _program(size: Size, layout: Layout) -> tuple[str, int, int]:
    """Text of the compiled step, elements of the decoder's layers and of what trains."""
    model = drawn_model(size.config)
    params = place(layout, model.params, model_axes(model.config))
    model = model.replace(params=params, layout=layout)
    learner, stage, tune = lesson(model, size, DEVICES)
    learner = replicate(layout, learner)
    state = replicate(layout, begin(learner, tune))
    batch = split_batch(layout, stacked(drawn_batch(size, DEVICES)), axis=1)
    key = replicate(layout, jax.random.key(0))
    speeds = replicate(layout, rates())
    lowered = take_step.lower(state, model, learner, batch, speeds, key, stage=stage, tune=tune)
    layers = sum(leaf.size for leaf in jax.tree.leaves(decoder_layers(model)))
    trained = sum(jnp.size(leaf) for leaf in jax.tree.leaves(trainable(learner)))
    return lowered.compile().as_text(), layers, trained


def mesh(size: Size, kind: str) -> dict:
    """Row 14."""
    # Two layers: loops are counted as often as they run, so depth changes no ratio.
    decoder = replace(size.config.decoder, layers=2)
    config = replace(size.config, decoder=decoder, dtype="float32", param_dtype="float32")
    size = replace(size, config=config)
    sharded, layers, trained = _program(size, layout_of(make_mesh(fsdp=DEVICES), "sharded"))
    exchanged = collectives_of(sharded)
    inside = elements_by_kind(exchanged)
    outside = elements_by_kind(item for item in exchanged if not item.in_loop)["all-gather"]
    reduced = inside["all-reduce"] + inside["reduce-scatter"]
    whole, _, _ = _program(size, layout_of(make_mesh(data=DEVICES)))
    replicated = elements_by_kind(collectives_of(whole))
    row = {
        "gathered": (inside["all-gather"] - outside) / layers,
        # The loss and the number of answer tokens are the two scalars beside the trained leaves.
        "base reduced": (reduced - trained - 2) / layers,
        "gathered when replicated": replicated["all-gather"],
        "reduced / trained when replicated": replicated["all-reduce"] / trained,
    }
    return {14: row}
