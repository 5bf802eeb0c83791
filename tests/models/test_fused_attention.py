"""Fused kernels of attention: who chooses them, who is refused, and that in Pallas, interpreted, against products."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from test_execution import distance, drawn

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.layout import layout_of
from hidecmoe_jax.core.sharding import make_mesh
from hidecmoe_jax.models.attention import attend_as
from hidecmoe_jax.models.execution import ON_CPU, PLAIN, execution_for
from hidecmoe_jax.models.fused_attention import fits_cudnn

pytestmark = pytest.mark.lax_types


@pytest.mark.parametrize(
    ("backend", "dtype", "attention", "form"),
    [
        ("cpu", "float32", "auto", ON_CPU.attention),
        ("cpu", "bfloat16", "auto", ON_CPU.attention),
        ("cpu", "float32", "xla", "library"),
        ("gpu", "float32", "auto", PLAIN.attention),
        ("gpu", "bfloat16", "auto", PLAIN.attention),
        ("gpu", "bfloat16", "cudnn", "cudnn"),
        ("gpu", "bfloat16", "xla", "library"),
        ("tpu", "bfloat16", "auto", "pallas"),
        ("tpu", "float32", "pallas", "pallas"),
        ("tpu", "bfloat16", "xla", "library"),
    ],
)
def test_the_processor_and_the_user_choose_in_one_place(backend, dtype, attention, form):
    chosen = execution_for(backend, attention=attention, dtype=dtype)
    assert chosen.attention == form
    # Nothing else of the execution follows from it.
    assert replace(chosen, attention="library") == replace(execution_for(backend), attention="library")


@pytest.mark.parametrize(
    ("backend", "dtype", "attention", "why"),
    [
        ("cpu", "bfloat16", "cudnn", "it is for GPUs, the run is on a CPU"),
        ("tpu", "bfloat16", "cudnn", "it is for GPUs, the run is on a TPU"),
        ("gpu", "bfloat16", "pallas", "it is for TPUs, the run is on a GPU"),
        ("gpu", "float32", "cudnn", "base.dtype is float32"),
    ],
)
def test_a_kernel_that_the_processor_has_not_is_refused(backend, dtype, attention, why):
    with pytest.raises(ConfigError) as refused:
        execution_for(backend, attention=attention, dtype=dtype)
    assert why in str(refused.value) and "--set scale.attention=" in str(refused.value)


def test_shapes_that_cudnn_does_not_take_stay_with_the_library():
    keys = jnp.zeros((1, 16, 2, 64))
    assert fits_cudnn(jnp.zeros((1, 16, 4, 64)), keys)
    for shape in ((1, 15, 4, 64), (1, 16, 4, 60), (1, 16, 4, 256)):
        assert not fits_cudnn(jnp.zeros(shape), keys)


@pytest.mark.parametrize("layout", [layout_of(make_mesh()), pytest.param(None, marks=pytest.mark.slow)])
def test_the_kernel_in_pallas_masks_and_weighs_as_products_do(layout):
    tokens, keys = 7, 10
    q, k, v = drawn(0, 2, tokens, 4, 8), drawn(1, 2, keys, 2, 8), drawn(2, 2, keys, 2, 8)
    # A cache longer than the prompt; padding on the left of one sample and on the right of the other.
    slots = jnp.arange(keys)
    real = (slots >= jnp.array([[0], [3]])) & (slots < jnp.array([[5], [7]]))
    mask = real[:, None, None] & (slots <= jnp.arange(tokens)[:, None])
    # What rows of padding give is read by nobody.
    shown = drawn(3, 2, tokens, 32) * real[:, :tokens, None]

    def program(form, **given):
        return jax.jit(jax.value_and_grad(lambda q, k, v: jnp.sum(attend_as(form, q, k, v, mask, **given) * shown),
                                          argnums=(0, 1, 2)))  # fmt: skip

    expected = program("products")(q, k, v)
    with pltpu.force_tpu_interpret_mode():
        found = program("pallas", real_BS=real, layout=layout)(q, k, v)
    assert distance(found[0], expected[0]) < 1e-5
    assert distance(found[1], expected[1]) < 1e-5
    # Positions of padding get no gradient.
    assert not np.any(np.asarray(found[1][1])[~np.asarray(real)])


def test_queries_that_are_not_the_first_positions_are_left_to_the_library():
    q, k, v = drawn(0, 2, 1, 4, 8), drawn(1, 2, 10, 2, 8), drawn(2, 2, 10, 2, 8)
    mask = jnp.arange(10) < jnp.array([4, 9])[:, None, None, None]
    for form in ("pallas", "cudnn"):
        np.testing.assert_array_equal(attend_as(form, q, k, v, mask), attend_as("library", q, k, v, mask))
