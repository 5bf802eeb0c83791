"""The last layer at chosen positions alone: numbers of a whole layer, and fewer operations by the compiler's count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as ref
import pytest
from test_execution import CONFIG, EXACT, distance, drawn, dropped_mixture, site_routed, token_routed
from test_llava_model import answered

from hidecmoe_jax.models.execution import ON_CPU, PLAIN
from hidecmoe_jax.models.llama import run_layers
from hidecmoe_jax.models.llava import Prompt, answer_loss, hidden, last_positions

# In no order, one of them twice; the second sample begins with two positions of padding.
AT = jnp.array([[6, 0, 3, 3], [4, 2, 6, 5]])


def programs(voices, execution):
    """Value and gradient of a sum over states at `AT`: the last layer computes these alone, or all and then these."""
    params = ref.tiny_model(replace(ref.TINY, decoder=CONFIG)).params["decoder"]["layers"]
    x = drawn(1, 2, 7, CONFIG.width)
    real = jnp.arange(7) >= jnp.array([0, 2])[:, None]
    positions = jnp.maximum(jnp.cumsum(real, 1) - 1, 0)
    mask = jnp.tril(jnp.ones((7, 7), bool))[None, None] & real[:, None, None]
    shown = drawn(2, 2, 4, CONFIG.width)

    def states(trained, x, **at):
        inputs = {"positions_BT": positions, "mask_B1TS": mask, "voices": voices(trained)}
        recompute = "full" if execution.recompute else "none"
        return run_layers(params, CONFIG, x, execution=execution, recompute=recompute, **inputs, **at)[0]

    def ours(trained, x):
        return jnp.sum(states(trained, x, at_BQ=AT) * shown)

    def whole(trained, x):
        return jnp.sum(jnp.take_along_axis(states(trained, x), AT[..., None], axis=1) * shown)

    return ours, whole, x


@pytest.mark.parametrize(
    ("case", "execution"),
    [
        (dropped_mixture, ON_CPU),
        # Its states are those of every prefill, in test_generation.py, and its gradient is JAX's own.
        pytest.param(token_routed, PLAIN, marks=pytest.mark.slow),
        pytest.param(site_routed, ON_CPU, marks=pytest.mark.slow),
    ],
)
def test_states_and_gradients_are_those_of_a_whole_last_layer(case, execution):
    trained, voices = case()
    ours, whole, x = programs(voices, execution)
    found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(trained, x)
    expected = jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(trained, x)
    assert distance(found[0], expected[0]) < EXACT
    assert distance(found[1], expected[1]) < EXACT


def operations(function, *inputs) -> float:
    return jax.jit(function).lower(*inputs).compile().cost_analysis()["flops"]


def of_queries(decoder) -> int:
    """Operations of a position in the linears of a layer that do not make keys or values."""
    attention = 2 * decoder.width * decoder.heads * decoder.head_width
    return 2 * (attention + 3 * decoder.width * decoder.hidden)


def test_the_compiler_counts_the_last_layer_at_the_positions_alone():
    # One layer, because the compiler counts the body of a loop once; wide, so that linears outweigh the rest.
    model = ref.tiny_model(ref.tiny_config(layers=1, width=64, hidden=160))
    tokens = jnp.full((2, 32), 9)
    prompt = Prompt(tokens, jnp.ones((2, 32), bool))
    whole = operations(lambda model: hidden(model, prompt)[0], model)
    last = operations(lambda model: hidden(model, prompt, at_BQ=last_positions(prompt)[:, None])[0], model)
    saved = 2 * 31 * of_queries(model.config.decoder)
    assert saved <= whole - last <= 1.15 * saved


def test_a_training_loss_computes_the_last_layer_at_answers_and_tallies_need_it_whole():
    model = ref.tiny_model(ref.tiny_config(layers=1, width=64, hidden=160))
    batch = answered([0, 1, 2, 3])
    samples, columns = batch.where_BA.shape
    tokens = batch.prompt.tokens_BT.shape[1]

    def loss(tally):
        return lambda model: answer_loss(model, batch, tally=tally)[0]

    saved = samples * (tokens - columns) * of_queries(model.config.decoder)
    assert operations(loss(True), model) - operations(loss(False), model) >= saved > 0
    np.testing.assert_allclose(jax.jit(loss(True))(model), jax.jit(loss(False))(model), rtol=1e-6)
