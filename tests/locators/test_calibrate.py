"""Thresholds, area under the ROC curve and confusion counts against sklearn, counting and hand-made cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hidecmoe_jax.core.errors import DataError, NumericsError
from hidecmoe_jax.locators.calibrate import auroc, confusion, threshold, unknown
from hidecmoe_jax.locators.standard import LOWEST


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.29, 0.5, 0.99])
def test_the_wanted_fraction_of_held_out_scores_lies_below(rate):
    scores = np.random.default_rng(0).normal(size=100)
    assert np.sum(scores < threshold(scores, rate)) == round(100 * rate)


def test_with_ties_or_few_samples_no_more_than_the_fraction_lies_below():
    assert threshold([3.0, 1.0, 1.0, 2.0], 0.5) == 2.0
    assert threshold([1.0, 1.0, 1.0, 2.0], 0.5) == 1.0
    assert threshold([5.0, 4.0, 6.0], 0.1) == 4.0
    assert threshold([0.5], 0.9) == 0.5


def test_a_threshold_needs_scores_and_a_rate():
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="false_alarm"):
            threshold([1.0, 2.0], rate)
    with pytest.raises(DataError, match=r"expected \[M\]"):
        threshold([], 0.1)
    with pytest.raises(DataError, match=r"\(3, 2\)"):
        threshold(np.zeros((3, 2)), 0.1)
    with pytest.raises(NumericsError, match="1 of 2"):
        threshold([np.nan, 1.0], 0.1)


def test_a_sample_is_unknown_below_the_threshold_of_the_task_it_would_go_to():
    scores = jnp.asarray([[1.0, 0.0], [0.9, 0.0], [0.0, 0.6], [0.0, 0.4]])
    found = jax.jit(unknown)(scores, jnp.asarray([1.0, 0.5]))
    np.testing.assert_array_equal(found, [False, True, False, True])
    np.testing.assert_array_equal(unknown(scores, 0.8), [False, False, True, True])


def test_without_a_threshold_everything_is_unknown():
    scores = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(unknown(scores, jnp.asarray([jnp.nan, 0.5])), [True, False])


def test_a_sample_without_real_scores_is_unknown_at_any_threshold():
    rows = [[-jnp.inf, -jnp.inf], [LOWEST, -jnp.inf], [jnp.nan, 3.0], [-1e9, -jnp.inf]]
    np.testing.assert_array_equal(unknown(jnp.asarray(rows), -jnp.inf), [True, True, True, False])


def test_held_out_and_unknown_agree():
    rng = np.random.default_rng(1)
    own, foreign = rng.normal(size=(500, 1)), rng.normal(size=(500, 1)) - 4
    limit = threshold(own.astype(np.float32)[:, 0], 0.05)
    assert float(jnp.mean(unknown(jnp.asarray(own, jnp.float32), limit))) == pytest.approx(0.05)
    assert float(jnp.mean(unknown(jnp.asarray(foreign, jnp.float32), limit))) > 0.95


line = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(line, line)
def test_auroc_is_that_of_sklearn_ties_included(known, foreign):
    from sklearn.metrics import roc_auc_score  # takes seconds, and every process of a test run reads this file

    truth = np.repeat([1, 0], [len(known), len(foreign)])
    assert auroc(known, foreign) == pytest.approx(roc_auc_score(truth, known + foreign), abs=1e-12)


def test_auroc_of_the_extremes():
    assert auroc([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert auroc([0.0], [1.0, 2.0]) == 0.0
    assert auroc([1.0, 1.0], [1.0]) == 0.5
    assert auroc([1.0], [-np.inf, 2.0]) == 0.5
    with pytest.raises(NumericsError, match="unknown"):
        auroc([1.0], [np.nan])
    with pytest.raises(DataError, match="known"):
        auroc([], [1.0])


def test_confusion_counts_every_sample():
    from sklearn.metrics import confusion_matrix

    rng = np.random.default_rng(0)
    truth, choice = rng.integers(0, 3, size=50), rng.integers(0, 3, size=50)
    found = confusion(choice, truth, 4)
    assert found.dtype == np.int64 and found.sum() == 50
    np.testing.assert_array_equal(found, confusion_matrix(truth, choice, labels=range(4)))
    np.testing.assert_array_equal(confusion(jnp.asarray([1]), jnp.asarray([0]), 2), [[0, 1], [0, 0]])
    np.testing.assert_array_equal(confusion(np.zeros(0, int), np.zeros(0, int), 1), [[0]])


def test_confusion_refuses_what_is_no_task():
    for choice, truth in (([-1, 0], [0, 0]), ([0, 2], [0, 0]), ([0, 0], [0, 5]), ([0.0, 1.0], [0, 0])):
        with pytest.raises(DataError, match="is no task"):
            confusion(choice, truth, 2)
    with pytest.raises(DataError, match="do not match"):
        confusion([0, 1], [0], 2)
