"""What a run has never learned: margins by hand, and the study on a tiny run."""

import numpy as np
import pytest
from runs_world import make_world

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.runs.foreign import OUTSIDERS, foreign_study, margins
from hidecmoe_jax.runs.stream_loop import learn

LOCATED = {"gate": {"kind": "locator", "by": {"kind": "nearest_mean"}, "kept_apart": 0.25}}


def test_margins_are_scores_less_the_limit_of_the_nearest_task():
    scores = np.array([[1.0, 3.0, 2.0], [5.0, 0.0, 4.0]])
    limits = np.array([0.5, 2.0, 4.5])
    np.testing.assert_allclose(margins(scores, limits, [0, 1, 2]), [1.0, 4.5])
    np.testing.assert_allclose(margins(scores, limits, [0, 2]), [-2.5, 4.5])
    np.testing.assert_allclose(margins(scores, limits, [1]), [1.0, -2.0])


def test_a_run_with_a_locator_is_studied(tmp_path):
    run = learn(make_world(tmp_path, "hide", **LOCATED), tmp_path / "run")
    found = foreign_study(run, count=4)
    assert set(found["known"]) == set(found["left_out"]) == {"birds", "fish"}
    assert tuple(found["outsiders"]) == OUTSIDERS
    for told in [*found["left_out"].values(), *found["outsiders"].values()]:
        assert 0 <= told["auroc"] <= 1 and 0 <= told["unknown"] <= 100
    assert (run / "foreign.json").is_file()


def test_a_run_without_thresholds_is_refused(tmp_path):
    run = learn(make_world(tmp_path, "hide"), tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot say what is foreign"):
        foreign_study(run)
