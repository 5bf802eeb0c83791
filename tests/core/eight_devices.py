"""Run by `test_sharding.py` in a process of its own with eight virtual CPU devices; prints `<part>: ok`."""

import os
import sys
from dataclasses import replace

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from hidecmoe_jax.core import sharding  # noqa: E402
from hidecmoe_jax.core.errors import ConfigError  # noqa: E402
from hidecmoe_jax.experts.bank import Bank, bank_axes  # noqa: E402
from hidecmoe_jax.experts.routing import Routing, Voice  # noqa: E402
from hidecmoe_jax.models.config import LlavaConfig  # noqa: E402
from hidecmoe_jax.models.llava import (  # noqa: E402
    Batch,
    Model,
    Prompt,
    answer_loss,
    init_model,
    logits,
    model_axes,
    model_sites,
    vision_features,
)

PICTURES, LENGTH, SLOTS, RANK = 8, 24, 2, 4
full = LlavaConfig()
CONFIG = replace(
    full,
    vision=replace(full.vision, image_size=16, width=32, layers=2, heads=4, hidden=64, projection=16),
    text=replace(full.text, vocabulary=64, width=32, layers=1, heads=4, hidden=64, projection=16),
    decoder=replace(full.decoder, vocabulary=64, width=32, hidden=48, layers=2, heads=4, kv_heads=2, head_width=8),
)


def problem():
    """A model, a bank and a batch, drawn in numpy; four patches stand at the front of every prompt."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_model(CONFIG, jax.random.key(0)).params)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(scale=0.2, size=s.shape), jnp.float32), shapes)
    layers, sites = CONFIG.decoder.layers, model_sites(CONFIG)
    draw = lambda *shape: jnp.asarray(rng.normal(scale=0.2, size=shape), jnp.float32)  # noqa: E731
    bank = Bank(
        {k: draw(layers, d, SLOTS, RANK) for k, (d, _) in sites.items()},
        {k: draw(layers, SLOTS, RANK, f) for k, (_, f) in sites.items()},
        jnp.zeros((layers, SLOTS), jnp.int32),
        2.0,
    )
    gain = jnp.asarray(rng.uniform(size=(layers, PICTURES, SLOTS)), jnp.float32)
    tokens = rng.integers(5, 64, size=(PICTURES, LENGTH)).astype(np.int32)
    tokens[:, :4] = CONFIG.image_token
    where = np.tile(np.arange(18, 22, dtype=np.int32), (PICTURES, 1))
    answer = np.take_along_axis(tokens, where + 1, axis=1)
    batch = (jnp.asarray(tokens), jnp.asarray(where), jnp.asarray(answer), draw(PICTURES, 16, 16, 3), gain)
    return params, bank, batch


def forward(params, bank, batch):
    """Loss per answer token, logits, and the gradient of the bank, the projector and the decoder."""
    tokens, where, answer, pixels, gain = batch

    def loss(live):
        model = Model({**params, "projector": live["projector"], "decoder": live["decoder"]}, CONFIG)
        patches, _ = vision_features(model, pixels)
        prompt = Prompt(tokens, jnp.ones(tokens.shape, bool), patches[:, None])
        voices = (Voice(bank.with_factors(live["bank"]), Routing(gain)),)
        total, count, _ = answer_loss(model, Batch(prompt, where, answer, jnp.ones(where.shape, bool)), voices)
        return total / count.astype(jnp.float32), logits(model, prompt, voices)

    live = {"bank": bank.factors, "projector": params["projector"], "decoder": params["decoder"]}
    (value, scores), slope = jax.value_and_grad(loss, has_aux=True)(live)
    return value, scores, slope


def check_model() -> None:
    params, bank, batch = problem()
    run = jax.jit(forward)
    value, scores, slope = run(params, bank, batch)

    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    cut_params = jax.device_put(params, sharding.shardings(model_axes(CONFIG), params, mesh))
    cut_bank = jax.device_put(bank, sharding.shardings(bank_axes(bank), bank, mesh))
    rows = jax.NamedSharding(mesh, sharding.partition(("batch",)))
    *parts, gain = batch
    gain_axes = sharding.partition(("layer", "batch", "slot"))
    cut_batch = (
        *jax.device_put(tuple(parts), rows),
        jax.device_put(gain, jax.NamedSharding(mesh, gain_axes)),
    )
    kernel = cut_params["decoder"]["layers"]["q_proj"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 16, 16)}, kernel.sharding
    assert {s.data.shape for s in cut_bank.b["down_proj"].addressable_shards} == {(2, SLOTS, RANK, 16)}
    assert {s.data.shape for s in cut_batch[0].addressable_shards} == {(2, LENGTH)}

    program = run.lower(cut_params, cut_bank, cut_batch).compile()
    assert "all-reduce" in program.as_text()  # the work is shared, not repeated on every device
    cut_value, cut_scores, cut_slope = program(cut_params, cut_bank, cut_batch)
    np.testing.assert_allclose(cut_value, value, atol=2e-6)
    np.testing.assert_allclose(cut_scores, scores, atol=1e-5)
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(cut_slope), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-6)


def check_refusal() -> None:
    mesh = sharding.make_mesh(fsdp=8)
    tree, axes = {"norm": {"scale": jnp.ones((12,))}}, {"norm": {"scale": ("width",)}}
    try:
        sharding.shardings(axes, tree, mesh)
    except ConfigError as error:
        assert "norm/scale: axis 'width' of length 12" in str(error) and "8" in str(error)
        return
    raise AssertionError("12 was cut into 8 pieces")


if __name__ == "__main__":
    {"model": check_model, "refusal": check_refusal}[sys.argv[1]]()
    print(f"{sys.argv[1]}: ok")
