"""Drift: false alarms stay below the stated rate for any scores, and shifts are found; both by simulation."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm
from test_decision_log import answer

from hidecmoe_jax.operate.drift import EVERY, WINDOWS, Drift, RankDetector
from hidecmoe_jax.runs.replies import OwnMatches


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.standard_cauchy(n),
        lambda rng, n: -rng.exponential(size=n),
        lambda rng, n: rng.integers(0, 3, n),
    ],
    ids=["heavy tails", "one side", "ties"],
)
def test_false_alarms_are_as_rare_as_stated_for_any_scores(draw):
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(40):
        detector = RankDetector(draw(rng, 40), 300)
        ringing = False
        for value in draw(rng, 300):
            detector.observe(value, rng.random())
            alarms += detector.level >= 1 and not ringing
            ringing = detector.level >= 1
    # 12,000 values, so at most 40 alarms are allowed on average; a rate half as high again would be seen here.
    assert alarms <= 50


def test_the_level_is_that_of_the_rank_sum_test():
    rng = np.random.default_rng(1)
    reference = rng.standard_normal(60)
    values = rng.standard_normal(25) - 0.7
    detector = RankDetector(reference, 10_000)
    for value in values:
        detector.observe(value, 0.5)
    deviations = []
    for window in WINDOWS[:2]:
        before = [*reference, *values[: len(values) - window]]
        test = mannwhitneyu(values[-window:], before, method="asymptotic", use_continuity=False)
        deviations.append(norm.isf(test.pvalue / 2))
    limit = norm.isf(EVERY / ((len(WINDOWS) + 1) * 10_000) / 2)
    assert detector.level == pytest.approx(max(deviations) / limit, rel=1e-6)


@pytest.mark.parametrize(("shift", "slowest"), [(-4.0, 15), (-1.0, 60), (2.0, 30)])
def test_a_shift_is_found_either_way(shift, slowest):
    rng = np.random.default_rng(2)
    delays = []
    for _ in range(8):
        detector = RankDetector(rng.standard_normal(200), 10_000)
        for value in rng.standard_normal(100):
            detector.observe(value, rng.random())
        assert detector.level < 1
        delay = 0
        while detector.level < 1:
            detector.observe(rng.standard_normal() + shift, rng.random())
            delay += 1
            assert delay < 500
        delays.append(delay)
    assert np.median(delays) <= slowest, delays


def test_what_is_usual_from_the_first_day_on_stays_a_deviation():
    """A change that lasts does not become the new normal, though it fills all windows and the reference is small."""
    rng = np.random.default_rng(3)
    detector = RankDetector(rng.standard_normal(60), 10_000)
    levels = []
    for value in rng.standard_normal(2_500) - 1:
        detector.observe(value, rng.random())
        levels.append(detector.level)
    assert max(levels[:100]) >= 1 and min(levels[200:]) >= 1
    assert len(detector._first) + len(detector._last) <= 2_800


def test_each_task_is_tested_by_its_own_questions():
    rng = np.random.default_rng(3)
    matches = OwnMatches(tuple(rng.random(50)), tuple(rng.random(50)))
    drift = Drift({"wrens": matches, "crows": matches, "alone": OwnMatches(tuple(rng.random(50)), ())})

    def ask(task, score, **more):
        fields = {"task": task, "nearest": task, "score": score, "ahead": rng.random()}
        drift.observe(answer(int(rng.integers(2**60)), **fields, **more))

    for _ in range(60):
        ask("wrens", -5.0)
        ask("crows", rng.random())
        ask("alone", -5.0, shadow=True)
        ask("alone", -5.0, canary=True)
        ask("unmeasured", -5.0)
    levels = drift.levels
    assert set(levels) == {"wrens", "crows", "alone"}
    assert levels["wrens"] > 1 > levels["crows"] and levels["alone"] == 0
