"""CKA against its defining properties and known values, and the features it compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.models.llava import Prompt, init_model, layer_features
from hidecmoe_jax.studies.layer_similarity import cka, cka_matrices

FEATURES = jax.jit(layer_features)


@pytest.fixture(scope="module")
def model():
    config = LlavaConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2, hidden=32, projection=8),
        text=TextConfig(vocabulary=32, context=8, width=16, layers=1, heads=2, hidden=32, projection=8),
        decoder=DecoderConfig(vocabulary=32, width=16, hidden=32, layers=3, heads=2, kv_heads=2, head_width=8),
    )
    return init_model(config, jax.random.key(0))


def rows(seed, n=300, d=24):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_set_is_like_itself_turned_and_scaled(legacy):
    x = rows(0)
    turn = np.linalg.qr(rows(1, 24, 24))[0]
    assert cka(x, 3.0 * x @ turn, legacy=legacy) == pytest.approx(1.0, abs=1e-9)


def test_the_debiased_form_is_near_zero_for_unrelated_sets_and_half_for_half_shared():
    assert abs(cka(rows(0, 800), rows(1, 800))) < 0.02
    x, y = rows(0, 800), rows(1, 800)
    assert cka(x, x + y) == pytest.approx(0.5, abs=0.05)


def test_the_legacy_form_calls_unrelated_sets_alike():
    # The published setting: 50 rows of 4096 numbers. This is why the report labels it.
    assert cka(rows(0, 50, 4096), rows(1, 50, 4096), legacy=True) == pytest.approx(0.993, abs=0.002)


def test_linear_form_against_the_features_own_formula():
    # Biased linear CKA is ||Y'X||^2 / (||X'X|| ||Y'Y||); the debiased form tends to it as rows outgrow columns.
    x = rows(2, 4000, 3)
    y = x @ rows(3, 3, 3) + 0.5 * rows(4, 4000, 3)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    norm = np.linalg.norm
    expected = norm(y0.T @ x0) ** 2 / (norm(x0.T @ x0) * norm(y0.T @ y0))
    assert cka(x, y) == pytest.approx(expected, abs=2e-3)


def test_unequal_or_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="at least 4 rows"):
        cka(rows(0, 3), rows(1, 3))
    with pytest.raises(ValueError, match="got 10 and 12"):
        cka(rows(0, 10), rows(1, 12))


def test_matrices_are_symmetric_with_ones_on_the_diagonal():
    features = np.stack([np.stack([rows(10 * task + layer, 60, 5) for layer in range(2)]) for task in range(3)])
    found = cka_matrices(features)
    assert found.shape == (2, 3, 3)
    assert np.allclose(found, found.transpose(0, 2, 1)) and np.allclose(found[:, range(3), range(3)], 1.0)


def test_layer_features_leave_out_padding_and_see_each_layers_own_branch(model):
    ids = np.random.default_rng(0).integers(5, 32, (2, 6)).astype(np.int32)
    short = Prompt(jnp.asarray(ids), jnp.ones((2, 6), bool))
    padded = Prompt(jnp.pad(short.tokens_BT, ((0, 0), (0, 3))), jnp.pad(short.mask_BT, ((0, 0), (0, 3))))
    found = np.asarray(FEATURES(model, short, ()))
    assert found.shape == (3, 2, 16)
    assert np.allclose(found, FEATURES(model, padded, ()), atol=1e-6)
    layers = model.params["decoder"]["layers"]
    silent = layers | {"down_proj": {"kernel": layers["down_proj"]["kernel"].at[1].set(0.0)}}
    muted = model.replace(params=model.params | {"decoder": model.params["decoder"] | {"layers": silent}})
    changed = np.asarray(FEATURES(muted, short, ()))
    assert np.array_equal(changed[0], found[0]) and not changed[1].any() and changed[2].any()
