"""The sum of experts against loops in numpy, its linearity, and the isolation of slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expert_cases import (
    DECODER,
    LINEARS,
    MIX,
    PAIR,
    RANK,
    SITES,
    few,
    forward,
    model,
    naive,
    prompt,
    random_bank,
    row,
)
from hypothesis import given
from hypothesis import strategies as st

from hidecmoe_jax.core.sharding import RULES
from hidecmoe_jax.experts import bank as bank_module
from hidecmoe_jax.experts.bank import (
    EMPTY,
    FUSED,
    apply_experts,
    bank_axes,
    multiplied_slots,
    owned_slots,
    sums_of_chosen,
)
from hidecmoe_jax.experts.routing import Routing, Voice, constant
from hidecmoe_jax.models.llava import logits

BATCH, TOKENS = 3, 4
KINDS = {
    "constant": (1,),
    "per sample": (BATCH,),
    "per token": (BATCH, TOKENS),
    "constant per token": (1, TOKENS),
}


def _x(seed: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(BATCH, TOKENS, width)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", ["q_proj", "down_proj", "ffn"])
@few
@given(seed=st.integers(0, 1000))
def test_apply_experts_equals_a_loop_over_experts(kind: str, site: str, seed: int):
    bank = random_bank(row(0, 1, EMPTY, 2), seed=seed, sites={site: SITES[site]})
    weight = np.random.default_rng(seed + 1).uniform(0, 1, (*KINDS[kind], 4)).astype(np.float32)
    x = _x(seed, SITES[site][0])
    y = apply_experts(jnp.asarray(x), bank.a[site][1], bank.b[site][1], jnp.asarray(weight), bank.scale)
    np.testing.assert_allclose(y, naive(x, bank, site, 1, weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("samples", "most"), [(BATCH, 1), (BATCH, 2), (1, 1)])
def test_the_experts_that_a_sample_uses_can_be_taken_out_of_the_bank(samples: int, most: int):
    bank = random_bank(row(0, 1, EMPTY, 2), sites={"up_proj": SITES["up_proj"]})
    weight = np.zeros((samples, 4), np.float32)
    for number, weights in enumerate(weight):
        weights[[(number + 1) % 4, 0][:most]] = 0.25 + number
    x = _x(0, SITES["up_proj"][0])
    y = sums_of_chosen(jnp.asarray(x), bank.a["up_proj"][1], bank.b["up_proj"][1], weight, bank.scale, most)
    np.testing.assert_allclose(y, naive(x, bank, "up_proj", 1, weight), rtol=1e-4, atol=1e-5)


def test_experts_are_taken_out_of_the_bank_for_long_prompts_and_many_ranks_alone():
    def multiplied(tokens: int, slots: int, rank: int, most: int | None = 1) -> int:
        return multiplied_slots((8, tokens, 4096), slots, rank, 4096, most)

    assert multiplied(640, slots=16, rank=32) == 1
    # A new token reads more by it, a thin bank saves next to nothing, and where all may be used there is no choice.
    assert multiplied(1, slots=16, rank=32) == 16
    assert multiplied(640, slots=8, rank=2) == 8
    assert multiplied(640, slots=16, rank=32, most=None) == 16
    assert multiplied(640, slots=16, rank=32, most=16) == 16


def test_an_answer_is_the_same_whether_or_not_a_gate_chooses_one_task(monkeypatch):
    monkeypatch.setattr(bank_module, "OPERATIONS_A_BYTE", 1)  # products are all that counts, even here
    bank = random_bank(row(0, 1, 2, 3))
    gain_BS = np.eye(4, dtype=np.float32)[[2, 0, 3]]
    gain_LBS = jnp.broadcast_to(gain_BS, (bank.layers, *gain_BS.shape))

    base = model()

    def output(most: int | None) -> jax.Array:
        return logits(base, prompt(BATCH, TOKENS), (Voice(bank, Routing(gain_LBS, most=most)),))

    assert "top_k" in str(jax.make_jaxpr(lambda: output(1))())
    np.testing.assert_allclose(output(1), output(None), rtol=1e-4, atol=1e-5)


@few
@given(seed=st.integers(0, 1000), alpha=st.floats(-3, 3, width=32), beta=st.floats(-3, 3, width=32))
def test_apply_experts_is_linear_in_the_input_and_in_the_weights(seed: int, alpha: float, beta: float):
    bank, width = random_bank(row(0, 1, 2, EMPTY), seed=seed), PAIR["up_proj"][0]
    a, b = bank.a["up_proj"][0], bank.b["up_proj"][0]
    x, z = _x(seed, width), _x(seed + 1, width)
    v, w = np.random.default_rng(seed).uniform(0, 1, (2, BATCH, 4)).astype(np.float32)
    alpha, beta = np.float32(alpha), np.float32(beta)

    def y(x, w):
        return np.asarray(apply_experts(jnp.asarray(x), a, b, jnp.asarray(w), 2.0))

    np.testing.assert_allclose(y(alpha * x + beta * z, w), alpha * y(x, w) + beta * y(z, w), atol=1e-4)
    np.testing.assert_allclose(y(x, alpha * v + beta * w), alpha * y(x, v) + beta * y(x, w), atol=1e-4)


def test_apply_experts_answers_in_the_dtype_of_its_input():
    bank = random_bank(row(0, 1, 2, 3), sites=MIX)
    x = jnp.asarray(_x(0, 16))
    y = apply_experts(x.astype(jnp.bfloat16), bank.a["q_proj"][0], bank.b["q_proj"][0], jnp.ones((1, 4)), 2.0)
    exact = apply_experts(x, bank.a["q_proj"][0], bank.b["q_proj"][0], jnp.ones((1, 4)), 2.0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05 * float(jnp.abs(exact).max()))


def test_gradients_of_silent_slots_are_exactly_zero():
    base, ask = model(), prompt()
    bank = random_bank(row(0, 1, 2, EMPTY), sites=MIX)
    gain = jnp.asarray([[[0.0, 1.0, 0.0, 0.0]]] * 3)

    @jax.jit
    def gradient(factors):
        def loss(factors):
            voice = Voice(bank.with_factors(factors), Routing(gain))
            return jnp.sum(jnp.square(logits(base, ask, (voice,))))

        return jax.grad(loss)(factors)

    found = gradient(bank.factors)
    for site in MIX:
        a, b = np.asarray(found["a"][site]), np.asarray(found["b"][site])
        assert not a[:, :, [0, 2, 3]].any() and not b[:, [0, 2, 3]].any(), site
        assert a[:, :, 1].any() and b[:, 1].any(), site


def test_gains_of_one_sample_do_not_reach_its_batch_mates():
    base, ask, bank = model(), prompt(batch=3), random_bank(row(0, 1, 2, EMPTY))
    gain = np.random.default_rng(0).uniform(0, 1, (3, 3, 4)).astype(np.float32)
    together = forward(base, ask, (Voice(bank, Routing(jnp.asarray(gain))),))
    for i in range(3):
        alone = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], ask)
        single = forward(base, alone, (Voice(bank, Routing(jnp.asarray(gain[:, i : i + 1]))),))
        np.testing.assert_allclose(together[i], single[0], atol=1e-4)


def test_decoder_with_a_voice_equals_a_decoder_with_summed_kernels():
    base, ask, bank = model(), prompt(), random_bank(row(0, 1, EMPTY, 2), sites=LINEARS)
    gain = np.random.default_rng(5).uniform(0, 1, (3, 4)).astype(np.float32)
    layers = dict(base.params["decoder"]["layers"])
    for site in LINEARS:
        a, b = np.asarray(bank.a[site], np.float64), np.asarray(bank.b[site], np.float64)
        update = bank.scale * np.einsum("ldsr,ls,lsrf->ldf", a, gain, b)
        kernel = layers[site]["kernel"]
        layers[site] = {"kernel": jnp.asarray(np.asarray(kernel) + update, jnp.float32)}
    dense = base.replace(params={"decoder": {**base.params["decoder"], "layers": layers}})
    spoken = forward(base, ask, (Voice(bank, constant(jnp.asarray(gain))),))
    np.testing.assert_allclose(spoken, forward(dense, ask, ()), atol=1e-4)


def test_owned_slots_finds_the_slot_of_every_layer():
    bank = random_bank([[4, EMPTY, FUSED], [EMPTY, 4, FUSED], [EMPTY, EMPTY, EMPTY]])
    assert owned_slots(bank, 4).tolist() == [0, 1, -1]
    assert owned_slots(bank, FUSED).tolist() == [2, 2, -1]
    assert owned_slots(bank, 9).tolist() == [-1, -1, -1]


def test_owned_slots_refuses_an_owner_with_two_slots_of_a_layer():
    bank = random_bank([[0, 1], [1, 1], [0, 1]])
    with pytest.raises(ValueError, match="owner 1 holds 2 slots of layer 1"):
        owned_slots(bank, 1)


def test_factors_are_all_float_leaves_and_go_back_in():
    bank = random_bank(row(0, 1))
    doubled = bank.with_factors(jax.tree.map(lambda leaf: 2 * leaf, bank.factors))
    floats = [leaf for leaf in jax.tree.leaves(bank) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert len(jax.tree.leaves(bank.factors)) == len(floats) == 2 * len(bank.sites)
    np.testing.assert_array_equal(doubled.b["up_proj"], 2 * bank.b["up_proj"])
    assert (doubled.rank, doubled.slots, doubled.layers) == (RANK, 2, DECODER.layers)


def test_bank_axes_name_every_axis_with_a_known_rule():
    bank = random_bank(row(0, 1), sites=SITES)
    axes = jax.tree.leaves(bank_axes(bank), is_leaf=lambda names: isinstance(names, tuple))
    for leaf, names in zip(jax.tree.leaves(bank), axes, strict=True):
        assert len(names) == leaf.ndim
        assert set(names) <= set(RULES)
