"""Laws of the gate: sums, masks, ties, and the finite gradient of a softmax over nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from expert_cases import LAYERS, few, forward, model, prompt, random_bank, row
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hidecmoe_jax.experts.bank import EMPTY
from hidecmoe_jax.experts.routing import (
    Routing,
    Voice,
    all_slots,
    balance_loss,
    constant,
    routed_weights,
    softmax_top_k,
)

ROWS, SLOTS = 3, 5
LOGITS = hnp.arrays(np.float32, (ROWS, SLOTS), elements=st.floats(-80, 80, width=32))
HEARD = hnp.arrays(bool, (ROWS, SLOTS))


def _truth(logits: np.ndarray, heard: np.ndarray, top_k: int) -> np.ndarray:
    """One row at a time: order the heard slots, keep the first ones, softmax over them."""
    out = np.zeros(logits.shape)
    for i, (line, ear) in enumerate(zip(logits.astype(np.float64), heard, strict=True)):
        kept = sorted(np.flatnonzero(ear), key=lambda s: (-line[s], s))[:top_k]
        if kept:
            power = np.exp(line[kept] - line[kept].max())
            out[i, kept] = power / power.sum()
    return out


@few
@given(logits=LOGITS, heard=HEARD, top_k=st.integers(1, SLOTS + 2))
def test_softmax_top_k_equals_a_sort_and_a_softmax(logits, heard, top_k):
    found = np.asarray(softmax_top_k(jnp.asarray(logits), jnp.asarray(heard), top_k))
    np.testing.assert_allclose(found, _truth(logits, heard, top_k), rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=-1), heard.any(axis=-1), rtol=1e-6)
    assert not found[~heard].any()
    assert ((found > 0).sum(axis=-1) <= top_k).all()


@few
@given(logits=LOGITS, shift=st.floats(-50, 50, width=32))
def test_softmax_top_k_does_not_see_a_common_shift(logits, shift):
    logits = np.round(logits)  # so that the shift neither makes nor breaks a tie
    heard = np.ones(logits.shape, bool)
    moved = logits + np.round(np.float32(shift))
    np.testing.assert_allclose(
        softmax_top_k(jnp.asarray(logits), heard, 2), softmax_top_k(jnp.asarray(moved), heard, 2), atol=1e-6
    )


def test_all_slots_kept_is_the_plain_softmax():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, SLOTS)), jnp.float32)
    np.testing.assert_allclose(
        softmax_top_k(logits, jnp.ones_like(logits, bool), SLOTS), jax.nn.softmax(logits), rtol=1e-6
    )


def test_equal_logits_keep_the_first_slots_and_no_more():
    found = softmax_top_k(jnp.zeros((1, SLOTS)), jnp.asarray([[False, True, True, True, True]]), 2)
    np.testing.assert_array_equal(found, [[0, 0.5, 0.5, 0, 0]])


def test_nothing_heard_gives_zeros_and_a_finite_gradient():
    logits = jnp.asarray([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    heard = jnp.asarray([[False, False, False], [True, False, True]])
    assert not np.asarray(softmax_top_k(logits, heard, 2))[0].any()
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda z: softmax_top_k(z, heard, 2)))(logits))
    assert np.isfinite(jacobian).all()
    assert not jacobian[0].any() and jacobian[1].any()


def test_gate_gradient_equals_differences_where_the_kept_set_does_not_change():
    logits = jnp.asarray([[0.3, -1.0, 2.0, 1.0]])
    heard = jnp.asarray([[True, True, True, False]])
    pull = jnp.asarray([[1.0, 5.0, -2.0, 9.0]])

    @jax.jit
    def value(z):
        return jnp.sum(softmax_top_k(z, heard, 2) * pull)

    slope = np.asarray(jax.jit(jax.grad(value))(logits))[0]
    step = 1e-2
    for s in range(4):
        nudge = jnp.zeros((1, 4)).at[0, s].set(step)
        assert abs(slope[s] - float(value(logits + nudge) - value(logits - nudge)) / (2 * step)) < 1e-3


@few
@given(seed=st.integers(0, 1000), top_k=st.integers(1, 4))
def test_router_weights_are_gain_times_the_gate_over_heard_slots(seed, top_k):
    rng = np.random.default_rng(seed)
    x, router = rng.normal(size=(2, 3, 6)), rng.normal(size=(1, 6, 4))
    gain = rng.uniform(0, 2, (2, 4)) * (rng.uniform(size=(2, 4)) > 0.4)
    x, router, gain = (v.astype(np.float32) for v in (x, router, gain))
    found = np.asarray(routed_weights(jnp.asarray(x), jnp.asarray(gain), jnp.asarray(router), top_k)[0])
    for i in range(2):
        heard = np.broadcast_to(gain[i] > 0, (3, 4))
        expected = _truth(x[i] @ router[0], heard, top_k) * gain[i]
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def test_weights_without_a_router_are_the_gains():
    gain = jnp.asarray([[0.0, 0.25, 1.0]])
    assert routed_weights(jnp.zeros((2, 3, 6)), gain, None, 0)[0] is gain


def test_everyone_and_constant_give_one_row_for_all_samples():
    bank = random_bank(row(0, EMPTY, 1))
    np.testing.assert_array_equal(all_slots(bank, 0.5).gain_LBS, np.full((LAYERS, 1, 3), 0.5))
    gain = np.arange(LAYERS * 3, dtype=np.float32).reshape(LAYERS, 3)
    np.testing.assert_array_equal(constant(gain).gain_LBS[:, 0], gain)


def test_a_layer_without_audible_experts_is_the_base_even_with_a_router():
    base, ask, bank = model(), prompt(), random_bank(row(0, 1, EMPTY))
    router = jnp.asarray(np.random.default_rng(0).normal(size=(LAYERS, 1, 16, 3)), jnp.float32)
    silent = Routing(jnp.zeros((LAYERS, 1, 3)), router, top_k=2)
    np.testing.assert_array_equal(forward(base, ask, (Voice(bank, silent),)), forward(base, ask, ()))


def test_balance_loss_is_the_switch_formula_and_one_for_an_even_load():
    rng = np.random.default_rng(3)
    count, chance = rng.integers(0, 50, (3, SLOTS)), rng.random((3, SLOTS)).astype(np.float32)
    heard = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    expected = []
    for c, p, h in zip(count, chance.astype(np.float64), heard, strict=True):
        f, p = c[h] / max(c[h].sum(), 1), p[h] / max(p[h].sum(), 1e-30)
        expected.append(h.sum() * (f * p).sum())
    found = balance_loss(jnp.asarray(count), jnp.asarray(chance), jnp.asarray(heard))
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-6)
    even = balance_loss(jnp.full((2, 4), 7), jnp.full((2, 4), 0.25), jnp.ones((2, 4), bool))
    np.testing.assert_allclose(even, 1.0, rtol=1e-6)
    slope = jax.grad(lambda p: balance_loss(jnp.asarray(count), p, jnp.asarray(heard)))(jnp.asarray(chance))
    assert np.isfinite(slope).all() and not np.asarray(slope)[~heard].any()


def test_voices_of_one_gate_weigh_as_one_bank():
    whole = random_bank(row(0, 1, 2, 3))
    parts = [
        whole.replace(
            a={site: a[:, :, cut] for site, a in whole.a.items()},
            b={site: b[:, cut] for site, b in whole.b.items()},
            owner_LS=whole.owner_LS[:, cut],
        )
        for cut in (slice(0, 3), slice(3, 4))
    ]
    width = model().config.decoder.width
    router = jnp.asarray(np.random.default_rng(0).normal(size=(LAYERS, 1, width, 4)), jnp.float32)
    gain = jnp.asarray(np.array([1.0, 0.0, 0.5, 1.5], np.float32)) * jnp.ones((LAYERS, 1, 1))
    one = (Voice(whole, Routing(gain, router, 2)),)
    two = tuple(
        Voice(bank, Routing(gain[..., cut], router[..., cut], 2, softmax_group="pool"))
        for bank, cut in zip(parts, (slice(0, 3), slice(3, 4)), strict=True)
    )
    apart = tuple(Voice(v.bank, v.routing.replace(softmax_group="")) for v in two)
    np.testing.assert_allclose(forward(model(), prompt(), one), forward(model(), prompt(), two), atol=1e-5)
    assert np.abs(np.asarray(forward(model(), prompt(), one) - forward(model(), prompt(), apart))).max() > 1e-3
