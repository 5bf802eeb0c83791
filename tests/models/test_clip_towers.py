"""The CLIP pair against the same formulas in numpy float64."""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as ref
import pytest

from hidecmoe_jax.models import clip
from hidecmoe_jax.models.config import VisionConfig
from hidecmoe_jax.models.layers import LayerNorm, RMSNorm, activation

VISION, TEXT = ref.TINY.vision, ref.TINY.text


@functools.cache
def tower(config):
    return ref.drawn(lambda: clip.init_tower(config, jax.random.key(0)))


def pictures(count=2, size=VISION.image_size, seed=5):
    return np.random.default_rng(seed).normal(size=(count, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_vision_tower_is_the_formula(name):
    config = replace(VISION, activation=name)
    params, batch = tower(config), pictures()
    patches, pooled = clip.vision_tower(params, config, jnp.asarray(batch))
    for row, picture in enumerate(batch):
        states, expected = ref.vision(ref.f64(params), config, picture)
        np.testing.assert_allclose(patches[row], states[-2][1:], atol=1e-5)
        np.testing.assert_allclose(pooled[row], expected, atol=1e-5)


@pytest.mark.parametrize("feature_layer", [-1, -2, 0])
def test_feature_layers_count_hidden_states_from_the_stem(feature_layer):
    params, batch = tower(VISION), pictures(1)
    patches, pooled = clip.vision_tower(params, VISION, jnp.asarray(batch), feature_layer=feature_layer)
    states, expected = ref.vision(ref.f64(params), VISION, batch[0])
    np.testing.assert_allclose(patches[0], states[feature_layer][1:], atol=1e-5)
    np.testing.assert_allclose(pooled[0], expected, atol=1e-5)  # whichever layer LLaVA reads, anchors read the last


def test_a_margin_that_fills_no_patch_is_left_out():
    config = replace(VISION, image_size=13)
    params, batch = tower(config), pictures(1, 13)
    inner, _ = clip.vision_tower(params, VISION, jnp.asarray(batch[:, :12, :12]))
    whole, _ = clip.vision_tower(params, config, jnp.asarray(batch))
    np.testing.assert_array_equal(inner, whole)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 24, 24, 3\).*\[N, 12, 12, 3\]"):
        clip.vision_tower(tower(VISION), VISION, jnp.asarray(pictures(1, 24)))


def test_the_two_gelus_are_their_formulas():
    x = np.linspace(-5, 5, 41)
    for name in ("quick_gelu", "gelu"):
        np.testing.assert_allclose(activation(name, jnp.asarray(x, jnp.float32)), ref.act(name, x), atol=1e-6)
    assert np.abs(ref.act("gelu", x) - ref.act("quick_gelu", x)).max() > 0.01


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_text_tower_pools_at_the_first_end_of_text(name):
    config = replace(TEXT, activation=name)
    params = tower(config)
    rows = np.array([[7, 9, 30, 2, 2, 2], [7, 2, 31, 5, 2, 8], [7, 9, 11, 12, 13, 2]], np.int32)
    before, after = clip.text_tower(params, config, jnp.asarray(rows))
    for row, length in enumerate((4, 2, 6)):
        pooled, projected = ref.text(ref.f64(params), config, rows[row, :length])
        np.testing.assert_allclose(before[row], pooled, atol=1e-5)
        np.testing.assert_allclose(after[row], projected, atol=1e-5)


def test_what_follows_the_end_of_text_changes_nothing():
    params = tower(TEXT)
    one = jnp.asarray([[7, 9, 2, 2, 2, 2]], jnp.int32)
    other = jnp.asarray([[7, 9, 2, 17, 30, 2, 1, 0]], jnp.int32)
    for a, b in zip(clip.text_tower(params, TEXT, one), clip.text_tower(params, TEXT, other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_text_longer_than_the_tower_is_refused():
    with pytest.raises(ValueError, match="11 tokens.*at most 10"):
        clip.text_tower(tower(TEXT), TEXT, jnp.zeros((1, 11), jnp.int32))


def test_towers_compute_in_bfloat16_and_pool_in_float32():
    params = tower(VISION)
    patches, pooled = clip.vision_tower(params, VISION, jnp.asarray(pictures()), dtype="bfloat16")
    assert patches.dtype == jnp.bfloat16 and pooled.dtype == jnp.float32
    exact, _ = clip.vision_tower(params, VISION, jnp.asarray(pictures()))
    assert np.abs(np.asarray(patches, np.float32) - np.asarray(exact)).max() < 0.15
    before, after = clip.text_tower(tower(TEXT), TEXT, jnp.asarray([[7, 9, 2]], jnp.int32), dtype="bfloat16")
    assert before.dtype == after.dtype == jnp.float32


@pytest.mark.parametrize("norm", [LayerNorm(1e-5), RMSNorm(1e-5)])
def test_norms_of_bfloat16_are_float32_inside(norm):
    x = jnp.asarray(np.random.default_rng(0).normal(3.0, 1.0, size=(4, 64)), jnp.bfloat16)
    params = ref.drawn(lambda: nn.unbox(norm.init(jax.random.key(0), x))["params"])
    low = norm.apply({"params": params}, x)
    full = norm.apply({"params": params}, x.astype(jnp.float32))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(low), np.asarray(full.astype(jnp.bfloat16)))


@pytest.mark.parametrize("config", [VISION, TEXT, VisionConfig()])
def test_tower_axes_have_the_tree_of_the_parameters(config):
    params = jax.eval_shape(lambda: clip.init_tower(config, jax.random.key(0)))
    axes = clip.tower_axes(config)
    named = jax.tree.map(lambda p, names: len(p.shape) == len(names), params, axes)
    assert all(jax.tree.leaves(named))
    assert axes["layers"]["q_proj"]["kernel"] == ("layer", "width", "heads")


def test_parameters_are_stored_in_their_own_dtype():
    params = jax.eval_shape(lambda: clip.init_tower(VISION, jax.random.key(0), "bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    patches, _ = jax.eval_shape(lambda p, x: clip.vision_tower(p, VISION, x), params, jnp.asarray(pictures(1)))
    assert patches.dtype == jnp.float32
