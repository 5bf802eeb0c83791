"""The bench of transfer: how a new expert begins and what stands beside it, against matrices worked out in NumPy."""

import numpy as np
import pytest

from hidecmoe_jax.experts.bank import Bank

LAYERS, WIDTH, RANK, OUT = 2, 5, 2, 4


@pytest.fixture(scope="module")
def ways(bench):
    """The module of ways."""
    return bench("transfer_ways")


def expert(seed: int) -> Bank:
    """An expert of drawn factors."""
    draw = np.random.default_rng(seed)
    a_LD1R = draw.normal(size=(LAYERS, WIDTH, 1, RANK)).astype(np.float32)
    b_L1RF = draw.normal(size=(LAYERS, 1, RANK, OUT)).astype(np.float32)
    return Bank({"q_proj": a_LD1R}, {"q_proj": b_L1RF}, np.zeros((LAYERS, 1), np.int32), scale=2.0)


def update(one: Bank, layer: int) -> np.ndarray:
    """The product of an expert's factors in a layer, without its scale."""
    return np.asarray(one.a["q_proj"])[layer, :, 0] @ np.asarray(one.b["q_proj"])[layer, 0]


def test_the_mean_start_is_the_nearest_matrix_of_its_rank_to_the_mean_update(ways):
    experts = [expert(seed) for seed in range(3)]
    start = ways.mean_of(experts, 0.5)
    for layer in range(LAYERS):
        mean = 0.5 * sum(update(one, layer) for one in experts) / 3
        sizes = np.linalg.svd(mean, compute_uv=False)
        # Eckart and Young: no matrix of rank R is nearer than what the sizes beyond R leave.
        left = np.linalg.norm(mean - update(start, layer))
        assert sizes[RANK:].max() > 0.1
        np.testing.assert_allclose(left, np.sqrt((sizes[RANK:] ** 2).sum()), rtol=1e-4)
    a_LD1R = np.asarray(start.a["q_proj"])
    b_L1RF = np.asarray(start.b["q_proj"])
    np.testing.assert_allclose((a_LD1R**2).sum(axis=1)[:, 0], (b_L1RF**2).sum(axis=3)[:, 0], rtol=1e-4)


def test_a_start_takes_the_nearest_expert_and_nothing_where_there_is_none(ways):
    fresh = expert(9)
    earlier = [expert(0), expert(1)]
    quarter = ways.started(ways.WAYS["nearest-quarter"], fresh, earlier, 1)
    np.testing.assert_allclose(update(quarter, 1), update(earlier[1], 1) / 4, rtol=1e-5)
    directions = ways.started(ways.WAYS["nearest-directions"], fresh, earlier, 1)
    np.testing.assert_array_equal(directions.a["q_proj"], earlier[1].a["q_proj"])
    np.testing.assert_array_equal(directions.b["q_proj"], fresh.b["q_proj"])
    for way in ways.WAYS.values():
        assert ways.started(way, fresh, [], None) is fresh


def test_first_gains_sum_to_the_mean_or_name_the_nearest(ways):
    bank = Bank({}, {}, np.zeros((LAYERS, 4), np.int32), scale=1.0)
    expected = {"isolated": [0, 0, 0, 0], "mean-beside": [1 / 3, 1 / 3, 1 / 3, 0], "gains": [0, 0, 0, 0],
                "damped-beside": [1 / 6, 1 / 6, 1 / 6, 0], "nearest-gain": [0, 1, 0, 0],
                "nearest-start": [0, 0, 0, 0]}  # fmt: skip
    for name, gain_S in expected.items():
        way = ways.WAYS[name]
        gain_LS = ways.first_gains(way, bank, 3, 1 if way.picks else None)
        np.testing.assert_allclose(gain_LS, np.tile(np.float32(gain_S), (LAYERS, 1)))
    crowd = Bank({}, {}, np.zeros((LAYERS, 9), np.int32), scale=1.0)
    np.testing.assert_allclose(ways.first_gains(ways.WAYS["damped-beside"], crowd, 9, None), 1 / 9, rtol=1e-6)


def test_what_was_measured_is_read_again(bench, tmp_path):
    folder = bench("transfer").Folder(tmp_path)
    facts = {"way": "isolated", "seed": 0, "task": "digits"}
    assert folder.cell(facts) is None
    folder.add(facts | {"score": 86.0})
    folder.add(facts | {"seed": 1, "score": 80.0})
    assert folder.cell(facts)["score"] == 86.0
    assert folder.cell(facts | {"task": "counting"}) is None
    folder.save(facts, expert(3))
    again = folder.load(facts, expert(4))
    for factor, sites in expert(3).factors.items():
        np.testing.assert_array_equal(again.factors[factor]["q_proj"], sites["q_proj"])
