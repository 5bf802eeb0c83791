"""Kernels in int8: how far they are from the numbers they stand for, and products against a dequantised kernel."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hidecmoe_jax.core.abstract import bytes_of
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.int8 import dequantised, int8_product, quantised, shapes_of, spread_axes

needs_qwix = pytest.mark.skipif(importlib.util.find_spec("qwix") is None, reason="the extra int8 is not installed")


def drawn(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@needs_qwix
def test_a_value_is_within_half_a_step_of_its_number():
    # Channels of very different size: each has a step of its own.
    kernel = drawn(0, 2, 24, 40) * jnp.logspace(-3, 3, 40)
    int8 = quantised(kernel)
    assert int8.values.dtype == jnp.int8 and int8.scale.shape == (2, 1, 40)
    step = np.max(np.abs(kernel), axis=1, keepdims=True) / 127.5
    np.testing.assert_allclose(int8.scale, step, rtol=1e-6)
    assert np.all(np.abs(dequantised(int8) - kernel) <= 0.5001 * step)
    assert bytes_of(int8) == bytes_of(shapes_of(kernel)) == 2 * 24 * 40 + 4 * 2 * 40


@needs_qwix
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_and_its_gradient_are_those_of_the_dequantised_kernel(dtype):
    int8 = jax.tree.map(lambda leaf: leaf[0], quantised(drawn(0, 1, 24, 40)))
    wide = np.asarray(dequantised(int8), np.float64)
    x = drawn(1, 2, 5, 24).astype(dtype)
    shown = drawn(2, 2, 5, 40)
    total, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(int8_product(x, int8) * shown)))(x)
    assert gradient.dtype == dtype
    exact = np.asarray(x.astype(jnp.float32), np.float64)
    np.testing.assert_allclose(total, np.sum(exact @ wide * np.asarray(shown)), rtol=1e-5)
    # A cotangent is rounded to bfloat16 before the product, as everywhere; int8 values are not rounded at all.
    tolerance = 1e-6 if dtype == "float32" else 6e-3
    expected = np.asarray(shown, np.float64) @ wide.T
    off = np.linalg.norm(np.asarray(gradient.astype(jnp.float32)) - expected) / np.linalg.norm(expected)
    assert off < tolerance


def test_a_scale_is_never_split_along_the_width():
    axes = {"kernel": ("layer", "width", "heads"), "norm": ("layer", "width")}
    tree = {"kernel": shapes_of(jax.ShapeDtypeStruct((2, 8, 4), jnp.float32)), "norm": jnp.ones((2, 8))}
    spread = spread_axes(axes, tree)
    assert spread["norm"] == ("layer", "width")
    assert spread["kernel"].values == ("layer", "width", "heads")
    assert spread["kernel"].scale == ("layer", None, "heads")


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ConfigError, match="pip install qwix==0.1.8"):
        quantised(drawn(0, 1, 4, 4))
