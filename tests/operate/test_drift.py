"""Drift: false alarms stay below the stated rate for any scores, and shifts are found; both by simulation."""

import numpy as np
import pytest
from test_decision_log import answer

from hidecmoe_jax.operate.drift import Drift, RankDetector
from hidecmoe_jax.runs.replies import OwnMatches


def alarms_of(values, reference, limit, rng) -> int:
    """Alarms of a detector that begins anew after each."""
    count = 0
    detector = RankDetector(reference, limit)
    for value in values:
        detector.observe(value, rng.random())
        if detector.level >= 1:
            count += 1
            detector = RankDetector(reference, limit)
    return count


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.standard_cauchy(n), lambda rng, n: -rng.exponential(size=n),
        lambda rng, n: rng.integers(0, 3, n),
    ],
    ids=["heavy tails", "one side", "ties"],
)  # fmt: skip
def test_false_alarms_are_as_rare_as_stated_for_any_scores(draw):
    rng = np.random.default_rng(0)
    limit = 300
    runs = [alarms_of(draw(rng, 300), draw(rng, 40), limit, rng) for _ in range(60)]
    # 18,000 answers, so at most 60 alarms are allowed on average; a rate twice as high would be seen here.
    assert sum(runs) <= 60 * 300 / limit * 1.3


def test_ranks_are_uniform_whatever_the_reference():
    """The fraction that is bet on, recomputed here: without it the rate would depend on the few test questions."""
    rng = np.random.default_rng(1)
    fractions = []
    for _ in range(300):
        values = list(rng.standard_normal(9))
        fractions.append((sum(value < values[-1] for value in values) + rng.random()) / 9)
    assert abs(np.mean(fractions) - 0.5) < 0.05 and abs(np.var(fractions) - 1 / 12) < 0.02


@pytest.mark.parametrize(("shift", "slowest"), [(-4.0, 15), (-1.0, 80), (2.0, 40)])
def test_a_shift_is_found_either_way(shift, slowest):
    rng = np.random.default_rng(2)
    delays = []
    for _ in range(10):
        detector = RankDetector(rng.standard_normal(200), 10_000)
        for value in rng.standard_normal(100):
            detector.observe(value, rng.random())
        delay = 0
        while detector.level < 1:
            detector.observe(rng.standard_normal() + shift, rng.random())
            delay += 1
            assert delay < 1000
        delays.append(delay)
    assert np.median(delays) <= slowest, delays


def test_no_score_is_worth_an_endless_bet():
    detector = RankDetector([0.0], 100)
    for value in (-np.inf, np.inf, -1e300):
        detector.observe(value, 0.0)
    assert np.isfinite(detector.level)


def test_each_task_is_tested_by_its_own_questions():
    rng = np.random.default_rng(3)
    matches = OwnMatches(tuple(rng.random(50)), tuple(rng.random(50)))
    drift = Drift({"wrens": matches, "crows": matches, "alone": OwnMatches(tuple(rng.random(50)), ())})

    def ask(task, score, **more):
        fields = {"task": task, "nearest": task, "score": score, "ahead": 0.5}
        entry = answer(int(rng.integers(2**60)), **fields, **more)
        drift.observe(entry)

    for _ in range(60):
        ask("wrens", -5.0)
        ask("crows", rng.random())
        ask("alone", -5.0, shadow=True)
        ask("unmeasured", -5.0)
    levels = drift.levels
    assert set(levels) == {"wrens", "crows", "alone"}
    assert levels["wrens"] > 1 > levels["crows"] and levels["alone"] == 0
