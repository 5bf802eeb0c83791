"""Intervals and paired tests against exact distributions of small cases and known formulas."""

import itertools
import math

import numpy as np
import pytest
from caption_items import items

from hidecmoe_jax.scoring.bootstrap import cell_values, holm, interval_of, paired, summary_intervals
from hidecmoe_jax.scoring.captions import caption6
from hidecmoe_jax.scoring.marks import Marks, caption_marks
from hidecmoe_jax.scoring.questions import Question

RNG_SEED = 5


def marks_of(values):
    return Marks(float(np.mean(values)), tuple(map(float, values)), 0)


def test_resampled_means_have_the_binomial_spread():
    rows = {1: marks_of([100.0] * 60 + [0.0] * 140)}
    values = cell_values(rows, resamples=4000, rng=np.random.default_rng(RNG_SEED))[1]
    assert values.mean() == pytest.approx(30, abs=0.3)
    assert values.std() == pytest.approx(100 * math.sqrt(0.3 * 0.7 / 200), rel=0.05)
    low, high = interval_of(values)
    assert (low, high) == pytest.approx((30 - 6.35, 30 + 6.35), abs=0.8)


def test_a_tasks_questions_are_drawn_once_for_all_rows():
    one = np.arange(50.0)
    rows = {1: marks_of(one), 2: marks_of(one + 7)}
    values = cell_values(rows, resamples=100, rng=np.random.default_rng(RNG_SEED))
    assert np.allclose(values[2] - values[1], 7)


def test_captions_are_resampled_as_corpora():
    candidates, references = items(count=30)
    questions = [Question(str(place), texts) for place, texts in enumerate(references)]
    marks = caption_marks(candidates, questions)
    assert marks.value == pytest.approx(caption6(candidates, references).value)
    rng = np.random.default_rng(RNG_SEED)
    (values,) = cell_values({1: marks}, resamples=5, rng=rng).values()
    draws_BN = np.random.default_rng(RNG_SEED).integers(0, 30, (5, 30))
    sums = np.array(marks.sums)
    expected = [marks.of_sums(sums[draw].sum(axis=0)) for draw in draws_BN]
    assert values == pytest.approx(expected)
    # The whole corpus, each item once.
    assert marks.of_sums(sums.sum(axis=0)) == pytest.approx(marks.value)


def test_summary_intervals_are_those_of_resampled_matrices_and_none_where_a_cell_is_missing():
    rng = np.random.default_rng(RNG_SEED)
    matrix = [[None, None], [80.0, None], [60.0, 70.0]]
    values = {(1, 0): rng.normal(80, 2, 500), (2, 0): rng.normal(60, 2, 500), (2, 1): rng.normal(70, 2, 500)}
    intervals = summary_intervals(matrix, values, 500)
    assert intervals["fwt"] is None
    assert intervals["last"] == pytest.approx(interval_of((values[2, 0] + values[2, 1]) / 2))
    assert intervals["bwt_t"] == pytest.approx(interval_of((values[2, 0] - values[1, 0]) / 2))


def exact_p(differences):
    """Two-sided p over all assignments of signs."""
    observed = abs(np.mean(differences))
    signs = itertools.product((-1, 1), repeat=len(differences))
    extreme = [abs(np.mean(np.multiply(row, differences))) >= observed - 1e-9 for row in signs]
    return np.mean(extreme)


@pytest.mark.parametrize("differences", [[100, 100, 100, 0, -100, 100, 100, 100], [100, -100, 0, 0], [0, 0, 0]])
def test_permutation_p_values_are_those_of_all_signs(differences):
    test = paired([np.array(differences, float)], resamples=20_000, rng=np.random.default_rng(RNG_SEED))
    assert test.p == pytest.approx(exact_p(differences), abs=0.01)
    assert test.difference == pytest.approx(np.mean(differences))
    # Most of the permutations beyond the draws of the interval; these stay the same.
    rng = np.random.default_rng(RNG_SEED)
    further = paired([np.array(differences, float)], resamples=100, rng=rng, permutations=20_000)
    assert further.p == pytest.approx(exact_p(differences), abs=0.01)
    same = paired([np.array(differences, float)], resamples=100, rng=np.random.default_rng(RNG_SEED))
    assert further.interval == same.interval


def test_a_difference_that_no_swap_reaches_is_one_of_all_permutations():
    """The observed assignment counts as a permutation: p is never 0."""
    result = paired([np.ones(40)], resamples=99, rng=np.random.default_rng(0))
    assert result.p == 1 / 100
    further = paired([np.ones(40)], resamples=99, rng=np.random.default_rng(0), permutations=24_000)
    assert further.p == 1 / 24_001


def test_tasks_have_equal_weight_whatever_their_number_of_questions():
    many = np.full(400, 10.0)
    few = np.full(4, -10.0)
    test = paired([many, few], resamples=200, rng=np.random.default_rng(RNG_SEED))
    assert test.difference == pytest.approx(0) and test.items == 404 and test.interval == pytest.approx((0, 0))


def test_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(RNG_SEED)
    p_values = []
    for _ in range(200):
        left_N, right_N = rng.integers(0, 2, (2, 60)) * 100.0
        p_values.append(paired([left_N - right_N], resamples=200, rng=rng).p)
    # A test at 10 % rejects 20 of 200; ties make it a little careful.
    assert 5 <= sum(p <= 0.1 for p in p_values) <= 32


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
