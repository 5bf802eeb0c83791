"""Gaussian locators against numpy and scipy densities, and what every locator owes: isolation, masks, no mates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from hidecmoe_jax.core.errors import DataError, NumericsError
from hidecmoe_jax.locators.gaussian import RIDGE, ClassGaussian, NearestMean, SharedGaussian
from hidecmoe_jax.locators.standard import LOWEST, with_standard

D, N, CAPACITY = 16, 200, 4
KEY = jax.random.key(0)
ALL = [NearestMean(), SharedGaussian(), SharedGaussian(directions=4), ClassGaussian()]
NAMES = ["nearest_mean", "shared_gaussian", "directions", "class_gaussian"]
SCORES = jax.jit(lambda locator, *given: locator.scores(*given), static_argnums=0)
every = pytest.mark.parametrize("locator", ALL, ids=NAMES)


def samples(task: int, rows: int = N, *, seed: int = 0) -> np.ndarray:
    """A Gaussian per task, with its own centre and covariance; dimensions have very different units."""
    shape = np.random.default_rng(task)
    center, mix = 1.5 * shape.normal(size=D), shape.normal(size=(D, D)) / np.sqrt(D)
    drawn = np.random.default_rng([seed, task]).normal(size=(rows, D)) @ mix + center
    return (drawn * np.logspace(-2, 2, D) + 7.0).astype(np.float32)


def fitted(locator, tasks=(0, 1, 2)):
    memory = locator.blank(CAPACITY, D)
    for task in tasks:
        memory = locator.fit(memory, task, samples(task), key=KEY)
    return memory


def standard(_, features: np.ndarray, clip: float = 5.0) -> np.ndarray:
    first = samples(0).astype(np.float64)
    return np.clip((features - first.mean(axis=0)) / first.std(axis=0), -clip, clip)


def learned(*tasks: int):
    return jnp.asarray(np.isin(np.arange(CAPACITY), tasks))


def shrunk(covariance: np.ndarray, a: float) -> np.ndarray:
    return (1 - a) * covariance + (a * np.trace(covariance) / D + RIDGE) * np.eye(D)


def test_nearest_mean_is_minus_the_squared_distance():
    memory, x = fitted(NearestMean()), samples(1, 8, seed=5)
    found = SCORES(NearestMean(), memory, x, learned(0, 1, 2))
    centers = np.stack([standard(memory, samples(task)).mean(axis=0) for task in range(3)])
    wanted = -np.square(standard(memory, x)[:, None] - centers[None]).sum(axis=-1)
    assert found.dtype == jnp.float32 and found.shape == (8, CAPACITY)
    np.testing.assert_allclose(found[:, :3], wanted, rtol=1e-4)


@pytest.mark.parametrize("a", [0.1, 0.7])
def test_a_class_gaussian_is_the_log_density_of_its_shrunk_covariance(a):
    locator, x = ClassGaussian(shrinkage=a), samples(2, 8, seed=5)
    memory = fitted(locator)
    found = SCORES(locator, memory, x, learned(0, 1, 2))
    for task in range(3):
        rows = standard(memory, samples(task))
        truth = multivariate_normal(rows.mean(axis=0), shrunk(np.cov(rows.T), a))
        np.testing.assert_allclose(found[:, task], truth.logpdf(standard(memory, x)), rtol=1e-4)


@pytest.mark.parametrize("tasks", [(0, 1, 2), (0, 2)])
def test_a_shared_gaussian_pools_the_covariance_over_learned_tasks(tasks):
    locator, x = SharedGaussian(shrinkage=0.2), samples(2, 8, seed=5)
    memory = fitted(locator)
    found = np.asarray(SCORES(locator, memory, x, learned(*tasks)))
    rows = {task: standard(memory, samples(task)) for task in tasks}
    pooled = sum(np.cov(row.T) * (N - 1) for row in rows.values()) / (len(tasks) * (N - 1))
    inverse = np.linalg.inv(shrunk(pooled, 0.2))
    for task in tasks:
        off = standard(memory, x) - rows[task].mean(axis=0)
        np.testing.assert_allclose(found[:, task], -0.5 * np.einsum("bd,de,be->b", off, inverse, off), rtol=1e-3)


@every
def test_clusters_are_found(locator):
    memory = fitted(locator)
    for task in range(3):
        choice = np.argmax(SCORES(locator, memory, samples(task, 100, seed=9), learned(0, 1, 2)), axis=1)
        assert np.mean(choice == task) > 0.95


def test_only_the_class_gaussian_tells_widths_apart():
    # Same centre: the mean says nothing, the density does, both for inputs from the narrow and from the wide task.
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(size=(N, D)), 0.2 * rng.normal(size=(N, D))
    for locator, right in ((ClassGaussian(), True), (NearestMean(), False)):
        memory = locator.fit(locator.blank(2, D), 0, wide, key=KEY)
        memory = locator.fit(memory, 1, narrow, key=KEY)
        fresh = [rng.normal(size=(N, D)), 0.2 * rng.normal(size=(N, D))]
        choices = [np.argmax(SCORES(locator, memory, x, jnp.ones(2, bool)), axis=1) for x in fresh]
        rate = np.mean([np.mean(choices[0] == 0), np.mean(choices[1] == 1)])
        assert (rate > 0.99) == right


@every
def test_fitting_a_task_changes_no_other_row_and_never_the_standardisation(locator):
    before = fitted(locator, (0, 2))
    after = locator.fit(before, 1, samples(1) * 50, key=KEY)
    assert before.keys() == after.keys() == locator.blank(CAPACITY, D).keys()
    for name in before:
        assert (before[name].shape, before[name].dtype) == (after[name].shape, after[name].dtype)
        rows = slice(None) if name in ("mean_D", "std_D") else [0, 2, 3]
        assert np.asarray(before[name])[rows].tobytes() == np.asarray(after[name])[rows].tobytes(), name
    assert np.any(after["center_ND"][1])


@every
def test_the_first_fitted_task_sets_the_standardisation(locator):
    memory = locator.fit(locator.blank(CAPACITY, D), 2, samples(2), key=KEY)
    np.testing.assert_allclose(memory["mean_D"], samples(2).astype(np.float64).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(memory["std_D"], samples(2).astype(np.float64).std(axis=0), rtol=1e-5)


def test_a_constant_dimension_does_not_blow_up_rounding():
    x = samples(0)
    flat = np.where(np.arange(D) == 3, np.float32(4.0), x / np.logspace(-2, 2, D).astype(np.float32))
    std = with_standard(NearestMean().blank(1, D), flat)["std_D"]
    assert float(std[3]) == pytest.approx(1e-3 * np.median(np.std(flat, axis=0)), rel=1e-3)
    alike = with_standard(NearestMean().blank(1, D), np.ones((5, D), np.float32))["std_D"]
    assert (np.asarray(alike) > 0).all()


@every
def test_scores_do_not_depend_on_batch_mates_or_order(locator):
    memory, x, known = fitted(locator), samples(1, 8, seed=3), learned(0, 1, 2)
    together = np.asarray(SCORES(locator, memory, x, known))
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_allclose(SCORES(locator, memory, x[order], known), together[order], rtol=1e-5)
    alone = np.concatenate([SCORES(locator, memory, x[i : i + 1], known) for i in range(8)])
    np.testing.assert_allclose(alone, together, rtol=1e-5)


@every
def test_tasks_not_learned_are_never_chosen(locator):
    memory, x = fitted(locator), samples(1, 8, seed=3)
    found = np.asarray(SCORES(locator, memory, x, learned(0, 2)))
    assert (found[:, [1, 3]] == -np.inf).all() and np.isfinite(found[:, [0, 2]]).all()
    blank = SCORES(locator, locator.blank(CAPACITY, D), x, learned())
    assert (np.asarray(blank) == -np.inf).all()


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_scores_lowest_and_harms_nobody(locator, bad):
    memory, x = fitted(locator), samples(1, 8, seed=3)
    wanted = np.asarray(SCORES(locator, memory, x, learned(1, 2)))
    x[2, 5] = bad
    found = np.asarray(SCORES(locator, memory, x, learned(1, 2)))
    np.testing.assert_allclose(found[[0, 1, 3]], wanted[[0, 1, 3]], rtol=1e-6)
    np.testing.assert_array_equal(found[2], [-np.inf, LOWEST, LOWEST, -np.inf])


@every
def test_a_task_whose_memory_is_not_finite_is_not_chosen(locator):
    memory = fitted(locator)
    memory = memory | {"center_ND": memory["center_ND"].at[1].set(jnp.nan)}
    found = np.asarray(SCORES(locator, memory, samples(1, 8, seed=3), learned(0, 1, 2)))
    assert (found[:, 1] == LOWEST).all() and (np.argmax(found, axis=1) != 1).all()


@every
def test_bad_features_are_refused(locator):
    blank = locator.blank(CAPACITY, D)
    with pytest.raises(DataError, match="tasks 0 to 3"):
        locator.fit(blank, CAPACITY, samples(0), key=KEY)
    with pytest.raises(DataError, match=r"expected \[N, 16\]"):
        locator.fit(blank, 0, samples(0)[:, :1], key=KEY)
    with pytest.raises(DataError, match="at least"):
        locator.fit(blank, 0, samples(0)[:0], key=KEY)
    with pytest.raises(DataError, match=r"expected \[B, 16\]"):
        SCORES(locator, fitted(locator), samples(0)[:, :1], learned(0))
    broken = samples(0)
    broken[7, 2] = np.nan
    with pytest.raises(NumericsError, match="the first is number 7"):
        locator.fit(blank, 0, broken, key=KEY)


@pytest.mark.parametrize("tasks", [(0, 1, 2), (0, 2)])
def test_of_a_scatter_the_widest_directions_stay_and_the_rest_is_even(tasks):
    locator, x, kept = SharedGaussian(shrinkage=0.2, directions=5), samples(2, 8, seed=5), 5
    found = np.asarray(SCORES(locator, fitted(locator), x, learned(*tasks)))
    rows, pooled = {task: standard(None, samples(task)) for task in tasks}, np.zeros((D, D))
    for row in rows.values():
        _, size, axes = np.linalg.svd(row - row.mean(axis=0))
        size = np.concatenate([size[:kept] ** 2, np.full(D - kept, (size[kept:] ** 2).mean())])
        pooled += axes.T * size @ axes
    inverse = np.linalg.inv(shrunk(pooled / (len(tasks) * (N - 1)), 0.2))
    for task in tasks:
        off = standard(None, x) - rows[task].mean(axis=0)
        np.testing.assert_allclose(found[:, task], -0.5 * np.einsum("bd,de,be->b", off, inverse, off), rtol=1e-3)


def test_as_many_directions_as_dimensions_are_the_whole_scatter():
    whole, same = SharedGaussian(), SharedGaussian(directions=D)
    assert same.size(D) == whole.size(D) > SharedGaussian(directions=D - 1).size(D)
    assert same.blank(2, D).keys() == whole.blank(2, D).keys()
    x = samples(1, 8, seed=5)
    few = SharedGaussian(directions=D - 1)
    scores = [SCORES(one, fitted(one), x, learned(0, 1, 2)) for one in (whole, few)]
    np.testing.assert_allclose(scores[0][:, :3], scores[1][:, :3], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="directions -1"):
        SharedGaussian(directions=-1)


def test_samples_that_are_all_equal_still_have_a_density():
    memory = fitted(ClassGaussian(), (0,))
    memory = ClassGaussian().fit(memory, 1, np.repeat(samples(1, 1), 5, axis=0), key=KEY)
    found = SCORES(ClassGaussian(), memory, samples(0, 10, seed=4), learned(0, 1))
    assert (np.argmax(found, axis=1) == 0).all() and np.isfinite(found[:, :2]).all()


@every
def test_the_size_is_what_a_row_of_the_memory_holds(locator):
    memory = locator.blank(1, D)
    assert locator.size(D) == sum(memory[name].size for name in memory if name not in ("mean_D", "std_D"))


def test_fields_out_of_range_are_refused():
    with pytest.raises(ValueError, match="shrinkage 0"):
        ClassGaussian(shrinkage=0)
    with pytest.raises(ValueError, match="clip"):
        NearestMean(clip=0)
