"""Nearest neighbours against numpy: k largest cosines, the sample of rows that is stored, empty rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hidecmoe_jax.core.errors import NumericsError
from hidecmoe_jax.locators.neighbours import Neighbours
from hidecmoe_jax.locators.standard import LOWEST

D, CAPACITY, MOST = 16, 4, 60
KEY = jax.random.key(0)
LOCATOR = Neighbours(k=5, most=MOST)
SCORES = jax.jit(LOCATOR.scores)


def samples(task: int, rows: int = 50, *, seed: int = 0) -> np.ndarray:
    """Every task has a centre of its own; dimensions have very different units."""
    center = np.random.default_rng(task).normal(size=D)
    drawn = center + 0.3 * np.random.default_rng([seed, task]).normal(size=(rows, D))
    return (drawn * np.logspace(-2, 2, D) + 7.0).astype(np.float32)


@pytest.fixture(scope="module")
def memory():
    found = LOCATOR.blank(CAPACITY, D)
    for task in range(3):
        found = LOCATOR.fit(found, task, samples(task, 40 + 10 * task), key=KEY)
    return found


def learned(*tasks: int):
    return jnp.asarray(np.isin(np.arange(CAPACITY), tasks))


def directions(features: np.ndarray) -> np.ndarray:
    first = samples(0, 40).astype(np.float64)
    rows = np.clip((features - first.mean(axis=0)) / first.std(axis=0), -5, 5)
    rows = np.concatenate([rows, np.full((len(rows), 1), np.sqrt(D))], axis=1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_score_is_the_mean_of_the_largest_cosines(memory):
    x = samples(1, 8, seed=2)
    found = SCORES(memory, x, learned(0, 1, 2))
    for task in range(3):
        cosine = directions(x) @ directions(samples(task, 40 + 10 * task)).T
        np.testing.assert_allclose(found[:, task], np.sort(cosine, axis=1)[:, -5:].mean(axis=1), atol=1e-4)


def test_clusters_are_found(memory):
    for task in range(3):
        choice = np.argmax(SCORES(memory, samples(task, 100, seed=7), learned(0, 1, 2)), axis=1)
        assert np.mean(choice == task) > 0.95


def test_a_task_of_fewer_samples_than_k_is_judged_by_all_it_has(memory):
    few = samples(3, 2)
    found = SCORES(LOCATOR.fit(memory, 3, few, key=KEY), samples(0, 8, seed=2), learned(0, 3))
    wanted = (directions(samples(0, 8, seed=2)) @ directions(few).T).mean(axis=1)
    np.testing.assert_allclose(found[:, 3], wanted, atol=1e-4)


def test_of_a_large_task_a_sample_drawn_by_the_key_is_stored():
    blank, x = LOCATOR.blank(CAPACITY, D), samples(0, 200)
    one, same, other = (LOCATOR.fit(blank, 0, x, key=jax.random.key(seed)) for seed in (0, 0, 1))
    stored = {row.tobytes() for row in np.asarray(one["feature_NMD"][0]).round(4)}
    whole = Neighbours(most=200).fit(Neighbours(most=200).blank(1, D), 0, x, key=KEY)["feature_NMD"][0]
    assert len(stored) == MOST and stored <= {row.tobytes() for row in np.asarray(whole).round(4)}
    np.testing.assert_array_equal(one["feature_NMD"], same["feature_NMD"])
    assert np.any(np.asarray(one["feature_NMD"]) != np.asarray(other["feature_NMD"]))
    # The standardisation is that of all samples, not only of those that are stored.
    np.testing.assert_allclose(one["mean_D"], x.mean(axis=0, dtype=np.float64), rtol=1e-5)


def test_a_smaller_task_leaves_nothing_of_a_larger_one_in_its_row(memory):
    again = LOCATOR.fit(memory, 2, samples(3, 10), key=KEY)
    assert int(again["valid_NM"][2].sum()) == 10 and not np.any(again["feature_NMD"][2, 10:])


def test_fitting_a_task_changes_no_other_row_and_never_the_standardisation(memory):
    after = LOCATOR.fit(memory, 1, 30 * samples(3), key=KEY)
    for name in memory:
        rows = slice(None) if name in ("mean_D", "std_D") else [0, 2, 3]
        assert np.asarray(memory[name])[rows].tobytes() == np.asarray(after[name])[rows].tobytes(), name
    assert memory["valid_NM"].dtype == after["valid_NM"].dtype == bool


def test_scores_do_not_depend_on_batch_mates_or_order(memory):
    x, known = samples(1, 8, seed=3), learned(0, 1, 2)
    together = np.asarray(SCORES(memory, x, known))
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_allclose(SCORES(memory, x[order], known), together[order], atol=1e-6)
    alone = np.concatenate([SCORES(memory, x[i : i + 1], known) for i in range(8)])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_tasks_not_learned_are_never_chosen(memory):
    found = np.asarray(SCORES(memory, samples(1, 8, seed=3), learned(0, 2)))
    assert (found[:, [1, 3]] == -np.inf).all() and (np.abs(found[:, [0, 2]]) <= 1.001).all()
    assert (np.asarray(SCORES(LOCATOR.blank(CAPACITY, D), samples(1, 8), learned())) == -np.inf).all()


def test_what_is_not_finite_scores_lowest_and_harms_nobody(memory):
    x = samples(1, 8, seed=3)
    wanted = np.asarray(SCORES(memory, x, learned(1, 2)))
    x[2, 5] = np.nan
    found = np.asarray(SCORES(memory, x, learned(1, 2)))
    np.testing.assert_allclose(found[[0, 1, 3]], wanted[[0, 1, 3]], atol=1e-6)
    np.testing.assert_array_equal(found[2], [-np.inf, LOWEST, LOWEST, -np.inf])
    broken = memory | {"feature_NMD": memory["feature_NMD"].at[1, 3].set(jnp.nan)}
    assert (np.asarray(SCORES(broken, samples(1, 8), learned(1, 2)))[:, 1] == LOWEST).all()
    with pytest.raises(NumericsError, match="the first is number 2"):
        LOCATOR.fit(memory, 3, x, key=KEY)


def test_the_size_is_what_a_row_of_the_memory_holds():
    assert LOCATOR.size(D) == LOCATOR.blank(1, D)["feature_NMD"].size == MOST * D


def test_fields_out_of_range_are_refused():
    with pytest.raises(ValueError, match="k 9"):
        Neighbours(k=9, most=8)
