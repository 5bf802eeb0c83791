"""Runs over a base in int8: what is learned, recorded and refused, and what answering holds."""

import importlib.util
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL_LORA, TINY, run_config, write_base, write_stream

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.abstract import bytes_of
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.int8 import Int8, dequantised
from hidecmoe_jax.methods.base import trainable, with_experts_folded, with_trainable
from hidecmoe_jax.models.config import llava_7b
from hidecmoe_jax.models.llava import Prompt, decoder_layers, logits, with_decoder_layers
from hidecmoe_jax.models.quantised import is_quantised, quantise_model, template_of
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.runs import int8 as check
from hidecmoe_jax.runs.assistant import load
from hidecmoe_jax.runs.config import from_mapping, load_config, to_mapping, write_config
from hidecmoe_jax.runs.scale import Choice, Scale, choose
from hidecmoe_jax.runs.session import identity_of, open_session
from hidecmoe_jax.runs.stream_loop import learn

pytestmark = pytest.mark.skipif(importlib.util.find_spec("qwix") is None, reason="the extra int8 is not installed")
GIB = 2**30
IN_INT8 = Scale(bits=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, and a config with one task over it in int8."""
    root = tmp_path_factory.mktemp("int8")
    base = write_base(root / "base")
    config = run_config(base, "hide", tasks=write_stream(root, ("birds",)), lora=SMALL_LORA)
    return base, replace(config, scale=IN_INT8)


def widened(model):
    """The model with the numbers that its int8 kernels stand for."""
    layers = jax.tree.map(
        lambda leaf: dequantised(leaf) if isinstance(leaf, Int8) else leaf, decoder_layers(model),
        is_leaf=lambda leaf: isinstance(leaf, Int8),
    )  # fmt: skip
    return with_decoder_layers(model, layers)


def test_gradients_of_experts_are_those_over_the_dequantised_base(world):
    base, config = world
    model = quantise_model(load_model(base))
    assert is_quantised(model)
    method = config.method
    stage = next(stage for stage in method.stages(0) if stage.trains)
    learner = stage.prepare(model, method.init(model, 4), 0, jax.random.key(0))
    leaves = trainable(learner)
    drawn = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), leaves)
    session = open_session(config)
    data = session.material(session.stream.tasks[0].train[:4], (0,), "birds")
    batch = data.batch(np.arange(4))

    def loss(leaves, model):
        return stage.loss(model, with_trainable(learner, leaves), batch, jax.random.key(3)).total

    step = jax.jit(jax.value_and_grad(loss))
    ours = step(drawn, model)
    exact = step(drawn, widened(model))
    np.testing.assert_allclose(ours[0], exact[0], rtol=1e-6)
    for path, gradient in trees.flatten(ours[1]).items():
        other = trees.flatten(exact[1])[path]
        # Rounding of float32, which CPUs take in orders of their own: up to 1.2e-5 measured.
        assert np.abs(gradient - other).max() <= 2e-5 * max(np.abs(other).max(), 1e-3), path


def test_experts_stay_beside_a_base_that_cannot_take_them_up(world):
    base, config = world
    model = quantise_model(load_model(base))
    learner = config.method.init(model, 4)
    bank = next(iter(learner.past.values()))
    factors = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), bank.factors)
    bank = bank.with_factors(factors)
    gain_LS = jnp.linspace(0.2, 1.0, bank.owner_LS.size).reshape(bank.owner_LS.shape)
    folded = with_experts_folded(model, bank, gain_LS)
    prompt = Prompt(jnp.array([[1, 9, 7, 12]]), jnp.ones((1, 4), bool))
    exact = with_experts_folded(widened(model), bank, gain_LS)
    difference = jax.jit(logits)(folded, prompt) - jax.jit(logits)(exact, prompt)
    assert np.abs(difference).max() < 1e-4
    assert np.abs(jax.jit(logits)(model, prompt) - jax.jit(logits)(exact, prompt)).max() > 1e-2
    # No byte of the base is there twice.
    kernels = [leaf for leaf in jax.tree.leaves(folded.params) if leaf.dtype == jnp.int8]
    assert {id(leaf) for leaf in kernels} <= {id(leaf) for leaf in jax.tree.leaves(model.params)}


@pytest.mark.slow
def test_a_run_records_its_check_and_answers_from_int8(world, tmp_path):
    base, config = world
    learn(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    found = record["sessions"][0]["int8"]
    assert found["records"] == 7 and 0 < abs(found["loss_int8"] - found["loss"]) < check.WARN_ABOVE
    # The base is that of its folder, whatever lay in memory.
    assert record["identity"]["base"] == trees.digest(load_model(base).params)
    assert load_config(tmp_path / "run" / "config.yaml").scale == IN_INT8
    assistant = load(tmp_path / "run")
    assert is_quantised(assistant.serving.model)
    assert not record["changes"]


def test_bits_are_part_of_what_a_run_is_and_nothing_else_of_scale(tmp_path):
    class NoTasks:
        tasks = ()

    plain = from_mapping({})
    int8 = from_mapping({"scale": {"bits": 8, "base": "sharded"}})
    assert "scale" not in to_mapping(plain)
    assert identity_of(int8, NoTasks(), "d")["config"] != identity_of(plain, NoTasks(), "d")["config"]
    here = replace(int8, scale=IN_INT8)
    assert identity_of(int8, NoTasks(), "d") == identity_of(here, NoTasks(), "d")
    write_config(int8, tmp_path)
    assert load_config(tmp_path / "config.yaml").scale == IN_INT8


def test_a_base_that_loses_too_much_is_refused(world, monkeypatch):
    _, config = world
    monkeypatch.setattr(check, "REFUSE_ABOVE", 0.0)
    with pytest.raises(ConfigError, match="loses too much in int8") as refused:
        open_session(config)
    assert "--set scale.bits=16" in str(refused.value)


def test_bytes_of_a_large_base_and_the_placement_that_follows():
    seven = llava_7b()
    whole = bytes_of(template_of(seven, 16).params)
    int8 = bytes_of(template_of(seven, 8).params)
    assert 14.3e9 < whole < 14.4e9
    # Seven kernels of 32 layers; what is not quantised stays.
    assert 6.4e9 < whole - int8 < 6.5e9
    # 16 devices of 16 GB: half of a device holds the base in int8, and answering needs no second copy.
    assert choose(Scale(), seven, devices=16, memory=15.5 * GIB).base == "sharded"
    assert choose(IN_INT8, seven, devices=16, memory=15.5 * GIB) == Choice(
        (16, 1, 1), "replicated", "replicated", "full"
    )
    assert bytes_of(template_of(TINY, 8).params) < bytes_of(template_of(TINY, 16).params)
