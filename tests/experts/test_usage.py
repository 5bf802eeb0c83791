"""Evenness of a load and loudness of experts, against numbers made by hand and the full product of the factors."""

import jax.numpy as jnp
import numpy as np
import pytest

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.usage import UNAVAILABLE, Load, dead_experts, evenness, sum_loads, update_norms


def told(rows, top_k=1):
    return evenness(Load(jnp.array(rows, jnp.int32), top_k))


def test_share_and_entropy_are_those_of_the_most_uneven_layer():
    share, entropy = told([[5, 5, UNAVAILABLE], [9, 1, UNAVAILABLE]])
    assert share == pytest.approx(0.9)
    assert entropy == pytest.approx(-(0.9 * np.log(0.9) + 0.1 * np.log(0.1)) / np.log(2))
    assert told([[7, 7, 7]]) == pytest.approx((1 / 3, 1.0))
    assert told([[0, 8, 0]]) == pytest.approx((1.0, 0.0))


def test_with_several_experts_a_token_collapse_and_evenness_keep_their_ends():
    assert told([[6, 6, 0, 0]], 2) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert told([[3, 3, 3, 3]], 2) == pytest.approx((0.5, 1.0))
    # Two experts of which each token takes two: nothing can be told.
    assert (
        told([[6, 6]], 2) is None and told([[6, 6, UNAVAILABLE, UNAVAILABLE]], 2) is None and told([[0, 0, 0]]) is None
    )


def test_loads_of_micro_batches_are_summed_and_silent_slots_stay_so():
    loads = Load(jnp.array([[[1, UNAVAILABLE, 0]], [[2, UNAVAILABLE, 5]]], jnp.int32), 1)
    np.testing.assert_array_equal(sum_loads(loads).count_LS, [[3, UNAVAILABLE, 5]])


def test_update_norm_is_that_of_the_whole_update():
    rng = np.random.default_rng(0)
    a = {site: rng.normal(size=(2, 5, 3, 2)).astype(np.float32) for site in ("x", "y")}
    b = {site: rng.normal(size=(2, 3, 2, 4)).astype(np.float32) for site in ("x", "y")}
    bank = Bank(a, b, jnp.zeros((2, 3), jnp.int32), 0.5)
    update = np.concatenate([np.einsum("ldsr,lsrf->lsdf", a[site], b[site]) for site in a], axis=2)
    np.testing.assert_allclose(update_norms(bank), 0.5 * np.linalg.norm(update, axis=(2, 3)), rtol=1e-6)


def test_an_expert_without_an_update_or_without_tokens_is_dead():
    norm, chosen = np.array([[1.0, 1e-9, np.nan], [2.0, 3.0, 0.1]]), np.array([[5, 5, 0], [0, 1, 1]])
    assert dead_experts(norm, chosen) == [(0, 1, "its update is zero"), (1, 0, "no token chose it")]
    assert dead_experts(norm) == [(0, 1, "its update is zero")]
    assert dead_experts(np.zeros((1, 2))) == [(0, 0, "its update is zero"), (0, 1, "its update is zero")]
