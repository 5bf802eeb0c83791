"""Merged experts against numpy: every rule restated on its own, vectors worked out by hand, dense decompositions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expert_cases import LAYERS, RANK, random_bank, row, same_bytes

from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import EMPTY, FUSED, Bank
from hidecmoe_jax.experts.combine import FACTOR_MODES, MODES, SVD_MODES, combine, cosine, distance

SITE = "q_proj"
WIDE = {SITE: (12, 10)}
TWO = {SITE: (12, 10), "down_proj": (7, 9)}
WEIGHTS = (0.7, 1.3)
EVEN = (0.5, 0.5)
KEY = jax.random.key(5)


def _bank(*owners: int, sites=WIDE, **more) -> Bank:
    return random_bank(row(*(owners or (0, 1, 2))), sites=sites, **more)


def _updates(bank: Bank, site: str = SITE) -> np.ndarray:
    """scale * a b of every slot, float64 [L, S, D, F]."""
    a, b = np.asarray(bank.a[site], np.float64), np.asarray(bank.b[site], np.float64)
    return bank.scale * np.einsum("ldsr,lsrf->lsdf", a, b)


def _update(bank: Bank, site: str = SITE) -> np.ndarray:
    return _updates(bank, site)[:, 0]


def _np_trim(x: np.ndarray, density: float) -> np.ndarray:
    flat = x.ravel().copy()
    order = np.argsort(-np.abs(flat))
    flat[order[max(1, int(density * flat.size)) :]] = 0
    return flat.reshape(x.shape)


def _np_elect(parts: list[np.ndarray], weights) -> np.ndarray:
    """Entry by entry in a loop: mass of each sign, then the mean of the weighted entries with the winning one."""
    out = np.zeros_like(parts[0])
    for at in np.ndindex(out.shape):
        entries = [(part[at], weight) for part, weight in zip(parts, weights, strict=True)]
        up, down = (sum(abs(e) for e, _ in entries if side * e > 0) for side in (1, -1))
        side = 1 if up >= down else -1
        loud = [weight * e for e, weight in entries if side * e > 0]
        out[at] = np.mean(loud) if loud else 0.0
    return out


def _np_ties(parts, weights, density: float) -> np.ndarray:
    return _np_elect([_np_trim(part, density) for part in parts], weights)


def _np_best(x: np.ndarray, rank: int) -> np.ndarray:
    left, size, right = np.linalg.svd(x, full_matrices=False)
    return (left[:, :rank] * size[:rank]) @ right[:rank]


def _of_vectors(*rows: list[float]) -> Bank:
    """Experts of one layer whose a [D, 1] are the given rows, and whose b is a lone 1."""
    a = jnp.asarray(rows, jnp.float32).T[None, :, :, None]
    count = len(rows)
    owner = jnp.arange(count, dtype=jnp.int32)[None]
    return Bank(a={SITE: a}, b={SITE: jnp.ones((1, count, 1, 1))}, owner_LS=owner, scale=1.0)


@pytest.mark.parametrize("suffix", ["", "_svd"])
def test_ties_by_hand(suffix: str):
    # Trimmed to 3 of 6: [5, 0, -3, 0, 4, 0], [-2, 6, 0, 0, 3, 0], [0, -7, 0, 8, -9, 0].
    bank = _of_vectors([5, 1, -3, 0.5, 4, 0], [-2, 6, 1, 0, 3, 0.5], [1, -7, 0, 8, -9, 0.1])
    merged = combine(bank, (0, 1, 2), mode="ties" + suffix, weights=(1.0, 1.0, 1.0), density=0.5)
    np.testing.assert_allclose(_update(merged)[0, :, 0], [5, -7, -3, 8, -9, 0], atol=1e-5)
    assert merged.owner_LS.tolist() == [[FUSED]]


def test_ties_takes_the_mean_of_those_that_agree_and_a_draw_is_positive():
    bank = _of_vectors([4, -2, 3, 0], [2, -4, -3, 0], [-1, 5, 0, 0])
    merged = combine(bank, (0, 1, 2), mode="ties", weights=(1.0, 1.0, 1.0), density=1.0)
    np.testing.assert_allclose(_update(merged)[0, :, 0], [3, -3, 3, 0], atol=1e-6)
    louder = combine(bank, (0, 1, 2), mode="ties_svd", weights=(2.0, 4.0, 0.0), density=1.0)
    np.testing.assert_allclose(_update(louder)[0, :, 0], [8, -10, 6, 0], atol=1e-5)  # signs elected without weights


def test_linear_is_the_product_of_root_weighted_sums():
    bank = _bank(sites=TWO)
    merged = combine(bank, (2, 0), mode="linear", weights=WEIGHTS)
    for site in TWO:
        a, b = np.asarray(bank.a[site], np.float64), np.asarray(bank.b[site], np.float64)
        sum_a = np.sqrt(WEIGHTS[0]) * a[:, :, 2] + np.sqrt(WEIGHTS[1]) * a[:, :, 0]
        sum_b = np.sqrt(WEIGHTS[0]) * b[:, 2] + np.sqrt(WEIGHTS[1]) * b[:, 0]
        np.testing.assert_allclose(merged.a[site][:, :, 0], sum_a, atol=1e-6)
        np.testing.assert_allclose(merged.b[site][:, 0], sum_b, atol=1e-6)


@pytest.mark.parametrize("density", [0.3, 0.8, 1.0])
def test_ties_matches_loops_over_entries(density: float):
    bank = _bank()
    merged = combine(bank, (0, 1, 2), mode="ties", weights=(0.2, 1.0, 0.5), density=density)
    dense = combine(bank, (0, 1, 2), mode="ties_svd", weights=(0.2, 1.0, 0.5), density=density, rank=10)
    roots = np.sqrt([0.2, 1.0, 0.5])
    a, b = np.asarray(bank.a[SITE]), np.asarray(bank.b[SITE])
    for layer in range(LAYERS):
        expected_a = _np_ties([a[layer, :, s] for s in range(3)], roots, density)
        expected_b = _np_ties([b[layer, s] for s in range(3)], roots, density)
        np.testing.assert_allclose(merged.a[SITE][layer, :, 0], expected_a, atol=1e-6)
        np.testing.assert_allclose(merged.b[SITE][layer, 0], expected_b, atol=1e-6)
        expected = _np_ties(list(_updates(bank)[layer]), [0.2, 1.0, 0.5], density)
        np.testing.assert_allclose(_update(dense)[layer], expected, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_svd_is_the_truncation_of_the_dense_sum_on_the_scale_of_the_bank(rank: int):
    bank = _bank(sites=TWO)
    merged = combine(bank, (0, 1, 2), mode="svd", weights=(0.7, -0.4, 1.1), rank=rank)
    assert (merged.rank, merged.slots, merged.scale) == (rank, 1, bank.scale)
    for site in TWO:
        total = np.einsum("s,lsdf->ldf", [0.7, -0.4, 1.1], _updates(bank, site))
        for layer in range(LAYERS):
            np.testing.assert_allclose(_update(merged, site)[layer], _np_best(total[layer], rank), atol=1e-5)
            size_a = np.linalg.norm(merged.a[site][layer, :, 0], axis=0)
            np.testing.assert_allclose(size_a, np.linalg.norm(merged.b[site][layer, 0], axis=1), rtol=1e-4)


def test_dense_forms_are_truncated_alike():
    bank = _bank()
    for rank in (1, 2, 4):
        merged = combine(bank, (0, 1), mode="ties_svd", weights=EVEN, rank=rank)
        for layer in range(LAYERS):
            full = _np_ties(list(_updates(bank)[layer, :2]), EVEN, 0.5)
            np.testing.assert_allclose(_update(merged)[layer], _np_best(full, rank), atol=1e-5)


@pytest.mark.parametrize("rank", [2 * RANK, 9, 30])
def test_svd_recovers_the_whole_sum_when_the_rank_holds_it(rank: int):
    bank = _bank(sites=TWO)
    merged = combine(bank, (0, 2), mode="svd", weights=WEIGHTS, rank=rank)
    for site, (width, out) in TWO.items():
        assert merged.a[site].shape == (LAYERS, width, 1, rank) and merged.b[site].shape == (LAYERS, 1, rank, out)
        whole = WEIGHTS[0] * _updates(bank, site)[:, 0] + WEIGHTS[1] * _updates(bank, site)[:, 2]
        np.testing.assert_allclose(_update(merged, site), whole, atol=1e-5)


def test_svd_survives_more_rank_than_width():
    bank = random_bank(row(0, 1, 2), sites={SITE: (3, 4)}, rank=2)  # six columns in a width of three
    merged = combine(bank, (0, 1, 2), mode="svd", weights=(1.0, 1.0, 1.0), rank=5)
    np.testing.assert_allclose(_update(merged), _updates(bank).sum(axis=1), atol=1e-5)


@pytest.mark.parametrize(("mode", "weights"), [("linear", (0.25, 0.25)), ("svd", EVEN)])
def test_an_expert_merged_with_itself_is_itself(mode: str, weights):
    bank = _bank()
    merged = combine(bank, (1, 1), mode=mode, weights=weights)
    np.testing.assert_allclose(_update(merged), _updates(bank)[:, 1], atol=1e-5)


def test_weights_of_a_factor_mode_sum_their_roots():
    bank = _bank()
    merged = combine(bank, (1, 1), mode="linear", weights=EVEN)
    np.testing.assert_allclose(_update(merged), 2 * _updates(bank)[:, 1], atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_one_expert_kept_whole_is_itself_in_every_mode(mode: str):
    bank = _bank()
    merged = combine(bank, (1,), mode=mode, weights=(1.0,), density=1.0, key=KEY)
    np.testing.assert_allclose(_update(merged), _updates(bank)[:, 1], atol=1e-5)
    assert merged.sites == bank.sites and merged.rank == bank.rank


@pytest.mark.parametrize("mode", ["dare_linear", "dare_linear_svd"])
def test_dare_keeps_the_expectation(mode: str):
    bank = random_bank([[0, 1]], sites={SITE: (6, 5)})
    more = {"rank": 5} if mode in SVD_MODES else {}
    plain = {"dare_linear": "linear", "dare_linear_svd": "svd"}[mode]
    wanted = _update(combine(bank, (0, 1), mode=plain, weights=WEIGHTS, **more))

    def drawn(key) -> dict:
        return combine(bank, (0, 1), mode=mode, weights=WEIGHTS, density=0.6, key=key, **more).factors

    many = jax.vmap(drawn)(jax.random.split(KEY, 400))
    a, b = (np.asarray(many[kind][SITE], np.float64) for kind in ("a", "b"))
    draws = bank.scale * a[:, :, :, 0] @ b[:, :, 0]
    deviation = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - wanted) < 4.5 * deviation + 1e-6).all()
    assert np.linalg.norm(draws[0] - wanted) > 0.1 * np.linalg.norm(wanted)


def test_dare_drops_a_share_of_the_entries_and_divides_the_rest():
    bank = random_bank([[0]], sites={SITE: (400, 300)})
    merged = combine(bank, (0,), mode="dare_linear", weights=(1.0,), density=0.25, key=KEY)
    for mine, theirs in ((merged.a[SITE], bank.a[SITE]), (merged.b[SITE], bank.b[SITE])):
        mine, theirs = np.asarray(mine), np.asarray(theirs)
        kept = mine != 0
        assert abs(kept.mean() - 0.25) < 0.06
        np.testing.assert_allclose(mine[kept], theirs[kept] / 0.25, rtol=1e-6)


@pytest.mark.parametrize("mode", ["dare_ties", "dare_ties_svd"])
def test_dare_ties_elects_among_what_was_left(mode: str):
    """Every entry is the mean of one of the sets of experts that a draw can leave, signs elected within it."""
    bank = _of_vectors([3, -2, 1, 4, -6], [-1, -4, 2, 3, 5])
    merged = combine(bank, (0, 1), mode=mode, weights=(1.0, 1.0), density=0.5, key=KEY, rank=1)
    b = 1.0 if mode in SVD_MODES else float(merged.b[SITE][0, 0, 0, 0])
    assert b in (0.0, 1.0, 2.0)
    found = _update(merged)[0, :, 0]
    for entry, (one, two) in zip(found, [(6, -2), (-4, -8), (2, 4), (8, 6), (-12, 10)], strict=True):
        both = (one + two) / 2 if one * two > 0 else max(one, two, key=abs)
        assert np.isclose(b * np.asarray([0, one, two, both]), entry, atol=1e-4).any()
    assert found.any()


def test_dare_draws_by_key_site_and_decoder_layer_alone():
    bank = _bank(0, 1, sites=TWO)
    whole = combine(bank, (0, 1), mode="dare_ties", weights=EVEN, key=KEY)
    assert same_bytes(whole, combine(bank, (0, 1), mode="dare_ties", weights=EVEN, key=KEY))
    other = combine(bank, (0, 1), mode="dare_ties", weights=EVEN, key=jax.random.key(6))
    assert not same_bytes(whole.a[SITE], other.a[SITE])
    alone = bank.replace(a={SITE: bank.a[SITE]}, b={SITE: bank.b[SITE]})
    part = combine(surgery.cut(alone, 1, LAYERS), (0, 1), mode="dare_ties", weights=EVEN, key=KEY)
    assert same_bytes(part.a[SITE], whole.a[SITE][1:]) and same_bytes(part.b[SITE], whole.b[SITE][1:])
    twice = combine(bank, (0, 0), mode="dare_linear", weights=EVEN, key=KEY)
    values = np.asarray(twice.a[SITE]) / np.asarray(bank.a[SITE])[:, :, :1]
    assert len(np.unique(np.round(values, 3))) == 3  # kept by none, one or both: copies draw for themselves


@pytest.mark.parametrize("mode", MODES)
def test_layers_without_sources_stay_empty_and_the_rest_can_be_planted(mode: str):
    bank = random_bank([[0, 1, EMPTY], [EMPTY, EMPTY, EMPTY], [0, EMPTY, EMPTY]], sites=WIDE, first_layer=4)
    merged = combine(bank, (0, 1), mode=mode, weights=(1.0, 1.0), density=1.0, key=KEY)
    assert merged.owner_LS.tolist() == [[FUSED], [EMPTY], [FUSED]]
    assert all(not np.asarray(leaf)[1].any() for leaf in jax.tree.leaves(merged.factors))
    np.testing.assert_allclose(_update(merged)[2], _updates(bank)[2, 0], atol=1e-5)  # who is absent does not count
    planted = surgery.plant(bank, 2, merged, FUSED)
    assert same_bytes(surgery.extract(planted, FUSED), merged)
    assert same_bytes(surgery.extract(planted, 0), surgery.extract(bank, 0))


@pytest.mark.parametrize("mode", ["ties", "svd", "dare_linear_svd"])
def test_sums_are_float32_and_cast_once(mode: str):
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _bank().factors)
    bank = _bank().with_factors(low)
    high = bank.with_factors(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low))
    merged = combine(bank, (0, 1, 2), mode=mode, weights=(0.3, 0.3, 0.4), key=KEY)
    exact = combine(high, (0, 1, 2), mode=mode, weights=(0.3, 0.3, 0.4), key=KEY)
    assert merged.a[SITE].dtype == merged.b[SITE].dtype == jnp.bfloat16
    rounded = exact.with_factors(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact.factors))
    assert same_bytes(merged, rounded)


def test_distance_and_cosine_are_those_of_the_dense_updates():
    bank = _bank(sites=TWO)
    for site in TWO:
        one, other = _updates(bank, site)[:, 0], _updates(bank, site)[:, 2]
        norms = [np.linalg.norm(x, axis=(1, 2)) for x in (one, other)]
        far = np.linalg.norm(one - other, axis=(1, 2)) / norms[0]
        np.testing.assert_allclose(distance(bank, 0, 2)[site], far, rtol=1e-9)
        np.testing.assert_allclose(
            cosine(bank, 0, 2)[site], (one * other).sum(axis=(1, 2)) / norms[0] / norms[1], rtol=1e-9
        )


def test_distance_sees_small_differences_and_none():
    bank = surgery.concatenate([_bank(0, sites=WIDE), _bank(1, sites=WIDE)])
    assert (distance(bank, 0, 1)[SITE] == 0).all() and np.allclose(cosine(bank, 0, 1)[SITE], 1)
    moved = bank.replace(b={SITE: bank.b[SITE].at[:, 1].multiply(1 + 2.0**-16)})
    np.testing.assert_allclose(distance(moved, 0, 1)[SITE], 2.0**-16, rtol=1e-2)
    turned = bank.replace(b={SITE: bank.b[SITE].at[:, 1].multiply(-1.0)})
    np.testing.assert_allclose(distance(turned, 0, 1)[SITE], 2.0, rtol=1e-9)
    np.testing.assert_allclose(cosine(turned, 0, 1)[SITE], -1.0, rtol=1e-9)


def test_distance_and_cosine_of_silent_experts():
    bank = random_bank([[0, EMPTY, EMPTY]], sites=WIDE)
    assert distance(bank, 1, 2)[SITE].tolist() == [0.0]
    assert distance(bank, 1, 0)[SITE].tolist() == [np.inf]
    assert distance(bank, 0, 1)[SITE].tolist() == [1.0]
    assert np.isnan(cosine(bank, 0, 1)[SITE]).all() and np.isnan(cosine(bank, 1, 1)[SITE]).all()


def _combine(slots=(0, 1), mode="linear", weights=EVEN, **more):
    return combine(_bank(0, 1, EMPTY), slots, mode=mode, weights=weights, **more)


REFUSED = {
    "a misspelt mode": (lambda: _combine(mode="dare_tie"), "'dare_tie' .* did you mean 'dare_ties'\\? known: dare_lin"),
    "cat": (lambda: _combine(mode="cat"), "unknown mode 'cat'"),
    "weights too few": (lambda: _combine(weights=(1.0,)), "2 slots needs as many weights, got 1"),
    "weights too many": (lambda: _combine(weights=(1.0, 1.0, 1.0)), "2 slots needs as many weights, got 3"),
    "a weight that is no number": (lambda: _combine(weights=(1.0, float("nan"))), "finite, got .1.0, nan"),
    "no density": (lambda: _combine(mode="ties", density=0.0), r"in \(0, 1\], got 0.0"),
    "too much density": (lambda: _combine(mode="ties_svd", density=1.5), r"in \(0, 1\], got 1.5"),
    "density that is no number": (lambda: _combine(density=float("nan")), r"in \(0, 1\], got nan"),
    "a rank of none": (lambda: _combine(mode="svd", rank=0), "rank 0 for mode 'svd'"),
    "another rank for factors": (lambda: _combine(rank=3), "rank 3 for mode 'linear', the bank has 2"),
    "no slot": (lambda: _combine(slots=(), weights=()), "at least one slot"),
    "a slot too many": (lambda: _combine(slots=(0, 3)), "slot 3 is not in the bank, which has 3"),
    "an empty slot": (lambda: _combine(slots=(0, 2)), "slot 2 is EMPTY in all 3 layers"),
    "distance to no slot": (lambda: distance(_bank(0, 1), 0, 2), "slot 2 is not in the bank"),
    "cosine of no slot": (lambda: cosine(_bank(0, 1), -1, 0), "slot -1 is not in the bank"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misuse_is_refused_with_the_numbers(case: str):
    act, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        act()


@pytest.mark.parametrize("mode", [mode for mode in MODES if "dare" in mode])
def test_dare_without_a_key_is_refused(mode: str):
    with pytest.raises(ValueError, match=rf"{mode}.*key=jax.random.key\(...\), got None"):
        _combine(mode=mode)


@pytest.mark.parametrize("mode", (*FACTOR_MODES, "ties_svd", "dare_ties_svd"))
def test_negative_weights_are_refused_where_nothing_can_be_subtracted(mode: str):
    with pytest.raises(ValueError, match=f"'{mode}' takes no negative weight.*use: svd, dare_linear_svd"):
        _combine(mode=mode, weights=(1.0, -0.5), key=KEY)
