"""Fusion and merging against formulas in numpy and against the routed forward."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from expert_cases import LAYERS, LINEARS, SITES, few, forward, model, prompt, random_bank, row, same_bytes
from hypothesis import given
from hypothesis import strategies as st

from hidecmoe_jax.core.trees import digest
from hidecmoe_jax.experts import fold, surgery
from hidecmoe_jax.experts.bank import EMPTY, FUSED, owned_slots
from hidecmoe_jax.experts.routing import Voice, constant

SITE = "up_proj"
ONE = {SITE: LINEARS[SITE]}
ALL = range(LAYERS)


def _np(bank, site: str = SITE) -> tuple[np.ndarray, np.ndarray]:
    """a [L, S, D, R] and b [L, S, R, F] in float64."""
    return np.asarray(bank.a[site], np.float64).transpose(0, 2, 1, 3), np.asarray(bank.b[site], np.float64)


@few
@given(
    tasks=st.permutations([0, 1, 2]).flatmap(lambda order: st.integers(1, 3).map(lambda n: order[:n])),
    layers=st.sets(st.integers(3, 5), min_size=1).map(sorted),
    eps=st.lists(st.floats(-2, 2, width=16), min_size=3, max_size=3),
)
def test_factor_sum_writes_the_summed_factors_and_nothing_else(tasks, layers, eps):
    bank = random_bank(row(0, EMPTY, 1, 2), sites=ONE, first_layer=3)
    fused = surgery.fuse(bank, tasks, mode="factor_sum", slot=1, layers=layers, eps=eps[: len(tasks)])
    a, b = _np(bank)
    slot = {0: 0, 1: 2, 2: 3}
    found_a, found_b = _np(fused)
    for layer in ALL:
        inside = layer + 3 in layers
        expected_a = sum(a[layer, slot[t]] for t in tasks) if inside else 0 * a[0, 0]
        expected_b = sum(e * b[layer, slot[t]] for e, t in zip(eps, tasks, strict=False)) if inside else 0 * b[0, 0]
        np.testing.assert_allclose(found_a[layer, 1], expected_a, atol=1e-6)
        np.testing.assert_allclose(found_b[layer, 1], expected_b, atol=1e-6)
        assert int(fused.owner_LS[layer, 1]) == (FUSED if inside else EMPTY)
    for task in (0, 1, 2):
        assert same_bytes(surgery.extract(fused, task), surgery.extract(bank, task))
    assert fused.rank == bank.rank and fused.slots == bank.slots


def test_factor_sum_has_cross_terms_and_rank_of_one_expert():
    bank = random_bank(row(EMPTY, 0, 1, 2), sites=ONE)
    bank = surgery.fuse(bank, [0, 1, 2], mode="factor_sum", slot=0, layers=ALL)
    fused = fold.delta(bank, surgery.fusion_gains(bank, [0, 1, 2], mode="factor_sum", layers=ALL))[SITE]
    a, b = _np(bank)
    pairs = sum(a[:, i] @ b[:, j] for i in (1, 2, 3) for j in (1, 2, 3))
    np.testing.assert_allclose(fused, bank.scale * pairs, atol=1e-4)
    assert [np.linalg.matrix_rank(np.asarray(layer), tol=1e-3) for layer in fused] == [bank.rank] * LAYERS
    own = np.stack([(a[0, i] @ b[0, i]).ravel() for i in (1, 2, 3)], axis=1)
    rest = np.linalg.lstsq(own, np.asarray(fused[0], np.float64).ravel(), rcond=None)[1]
    assert rest[0] > 0.1 * float(jnp.sum(jnp.square(fused[0])))  # no gains on the sources make it


@pytest.mark.parametrize(("count", "ratio"), [(2, 1.41), (3, 1.73), (6, 2.47)])
def test_factor_sum_of_random_experts_is_louder_by_the_root_of_their_number(count: int, ratio: float):
    tasks = list(range(count))
    bank = random_bank(row(EMPTY, *tasks, layers=4), sites={"q_proj": (96, 80)}, rank=8)
    bank = surgery.fuse(bank, tasks, mode="factor_sum", slot=0, layers=range(4))

    def size(mode: str) -> float:
        gain = surgery.fusion_gains(bank, tasks, mode=mode, layers=range(4))
        return float(jnp.linalg.norm(fold.delta(bank, gain)["q_proj"]))

    assert abs(size("factor_sum") / size("product_sum") - ratio) < 0.08


@few
@given(seed=st.integers(0, 1000), eps=st.lists(st.floats(-2, 2, width=16), min_size=2, max_size=2))
def test_product_fusions_are_concatenations(seed: int, eps: list[float]):
    bank = random_bank(row(0, EMPTY, 1, 2), sites=ONE, seed=seed)
    a, b = _np(bank)
    a_cat = np.concatenate([a[:, 3], a[:, 0]], axis=2)
    b_cat = np.concatenate([eps[0] * b[:, 3], eps[1] * b[:, 0]], axis=1)
    total = fold.delta(bank, surgery.fusion_gains(bank, [2, 0], mode="product_sum", layers=ALL, eps=eps))
    mean = fold.delta(bank, surgery.fusion_gains(bank, [2, 0], mode="product_mean", layers=ALL, eps=eps))
    np.testing.assert_allclose(total[SITE], bank.scale * a_cat @ b_cat, atol=1e-5)
    np.testing.assert_allclose(mean[SITE], bank.scale * a_cat @ b_cat / 2, atol=1e-5)
    for mode in ("product_sum", "product_mean"):
        assert surgery.fuse(bank, [2, 0], mode=mode, slot=None, layers=ALL) is bank


@pytest.mark.parametrize("mode", surgery.FUSIONS)
def test_fusion_of_one_expert_is_that_expert(mode: str):
    sources = random_bank(row(EMPTY, 0, 1), sites=ONE)
    bank = surgery.fuse(sources, [1], mode=mode, slot=0, layers=ALL)
    gain = surgery.fusion_gains(bank, [1], mode=mode, layers=ALL)
    alone = jnp.asarray(np.asarray(bank.owner_LS) == 1, jnp.float32)
    assert same_bytes(fold.delta(bank, gain), fold.delta(bank, alone))
    twice = surgery.fuse(sources, [1], mode=mode, slot=0, layers=ALL, eps=[2.0])
    doubled = surgery.fusion_gains(twice, [1], mode=mode, layers=ALL, eps=[2.0])
    once = fold.delta(bank, alone)[SITE]
    np.testing.assert_allclose(fold.delta(twice, doubled)[SITE], 2 * once, rtol=1e-6)


def test_gains_silence_sources_and_rows_outside_the_layers():
    bank = random_bank([[EMPTY, 0, 1], [EMPTY, 0, EMPTY], [EMPTY, 0, 1]], sites=ONE)
    bank = surgery.fuse(bank, [0, 1], mode="factor_sum", slot=0, layers=[0, 1])
    modes = surgery.FUSIONS
    found = {mode: surgery.fusion_gains(bank, [0, 1], mode=mode, layers=[0, 1]).tolist() for mode in modes}
    assert found["factor_sum"] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert found["product_sum"] == [[0, 1, 1], [0, 1, 0], [0, 0, 0]]
    assert found["product_mean"] == [[0, 0.5, 0.5], [0, 0.5, 0], [0, 0, 0]]
    np.testing.assert_array_equal(bank.b[SITE][1, 0], bank.b[SITE][1, 1])


def test_fusing_again_replaces_and_streaming_adds():
    bank = random_bank(row(EMPTY, 0, 1, 2), sites=ONE)
    whole = surgery.fuse(bank, [0, 1, 2], mode="factor_sum", slot=0, layers=ALL)
    first = surgery.fuse(bank, [0, 1], mode="factor_sum", slot=0, layers=ALL)
    assert same_bytes(surgery.fuse(first, [0, 1, 2], mode="factor_sum", slot=0, layers=ALL), whole)
    dropped = surgery.retire(surgery.retire(first, 0), 1)
    streamed = surgery.fuse(dropped, [FUSED, 2], mode="factor_sum", slot=0, layers=ALL)
    assert same_bytes(surgery.extract(streamed, FUSED), surgery.extract(whole, FUSED))


def test_a_layer_without_sources_becomes_empty():
    bank = surgery.fuse(random_bank(row(EMPTY, 0, 1), sites=ONE), [0], mode="factor_sum", slot=0, layers=ALL)
    again = surgery.fuse(surgery.thin(bank, 0, [1]), [0], mode="factor_sum", slot=0, layers=ALL)
    assert owned_slots(again, FUSED).tolist() == [0, -1, 0]
    assert not np.asarray(again.a[SITE])[1, :, 0].any() and not np.asarray(again.b[SITE])[1, 0].any()
    gain = surgery.fusion_gains(again, [0], mode="factor_sum", layers=ALL)
    assert gain.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("first", [0, 1])
def test_merged_kernels_answer_as_the_routed_forward(first: int):
    base, ask = model(), prompt()
    bank = random_bank(row(0, 1, EMPTY, 2, layers=LAYERS - first), sites=LINEARS, first_layer=first)
    gain = np.random.default_rng(1).uniform(0, 1, bank.owner_LS.shape).astype(np.float32)
    layers = base.params["decoder"]["layers"]
    before = digest(layers)
    merged = fold.merge_into_base(layers, bank, gain)
    with_experts_folded = base.replace(params={"decoder": {**base.params["decoder"], "layers": merged}})
    routed = forward(base, ask, (Voice(bank, constant(gain)),))
    np.testing.assert_allclose(forward(with_experts_folded, ask, ()), routed, atol=1e-5, rtol=1e-5)
    assert digest(layers) == before
    assert same_bytes(merged["norm1"], layers["norm1"])
    assert same_bytes(merged[SITE]["kernel"][:first], layers[SITE]["kernel"][:first])


def test_merging_casts_once_after_a_float32_sum():
    bank = random_bank(row(0, 1), sites={"q_proj": LINEARS["q_proj"]})
    kernel = np.random.default_rng(0).normal(size=(LAYERS, 16, 16)).astype(np.float32)
    kernel = jnp.asarray(kernel, jnp.bfloat16)
    gain = jnp.full((LAYERS, 2), 0.01, jnp.float32)
    new = fold.merge_into_base({"q_proj": {"kernel": kernel}}, bank, gain)["q_proj"]["kernel"]
    exact = np.asarray(kernel, np.float32) + np.asarray(fold.delta(bank, gain)["q_proj"])
    assert new.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(new, np.float32), exact, rtol=2**-8)
    silent = fold.merge_into_base({"q_proj": {"kernel": kernel}}, bank, 0 * gain)["q_proj"]["kernel"]
    assert same_bytes(silent, kernel)


def _fused():
    bank = random_bank(row(EMPTY, 0, 1, EMPTY), sites=ONE)
    return surgery.fuse(bank, [0], mode="factor_sum", slot=0, layers=[0, 1])


def _merge(bank):
    return fold.merge_into_base(model().params["decoder"]["layers"], bank, jnp.ones((LAYERS, 1)))


def _fuse(bank=None, tasks=(0, 1), slot=0, layers=(0,), mode="factor_sum", eps=None):
    bank = random_bank(row(EMPTY, 0, 1, EMPTY), sites=ONE) if bank is None else bank
    return surgery.fuse(bank, tasks, mode=mode, slot=slot, layers=layers, eps=eps)


REFUSED = {
    "no slot": (lambda: _fuse(slot=None), "slot is None"),
    "a task's slot": (lambda: _fuse(slot=2, layers=(1,)), "slot 2: task 1 owns it in layer 1"),
    "a slot too many": (lambda: _fuse(slot=4), "slot 4 is not in the bank, which has 4"),
    "two fusions": (lambda: _fuse(_fused(), slot=3, layers=(1,)), "another slot holds a fusion in layer 1"),
    "a stranger": (lambda: _fuse(tasks=(0, 8)), "task 8 owns no slot"),
    "a task twice": (lambda: _fuse(tasks=(0, 0)), r"each once, got \[0, 0\]"),
    "no task": (lambda: _fuse(tasks=()), "at least one task"),
    "eps of another length": (lambda: _fuse(eps=[1.0]), "2 tasks needs as many eps, got 1"),
    "an unknown mode": (lambda: _fuse(mode="mean"), "'mean'; known: factor_sum, product_sum, product_mean"),
    "a foreign layer": (lambda: _fuse(layers=(3,)), "layer 3 "),
    "gains of what is not fused": (
        lambda: surgery.fusion_gains(_fused(), [0], mode="factor_sum", layers=[1, 2]),
        r"layer 2 holds no fusion of tasks \[0\]",
    ),
    "gains of another shape": (lambda: fold.delta(_fused(), jnp.ones((3, 3))), r"gains are \(3, 3\)"),
    "a parallel site": (
        lambda: _merge(random_bank(row(0), sites=SITES)),
        "'ffn' needs a kernel .* got None",
    ),
    "too few layers": (
        lambda: _merge(random_bank(row(0), sites=ONE, first_layer=1)),
        r"needs a kernel \[>= 4, ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misuse_is_refused_with_the_numbers(case: str):
    act, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        act()
