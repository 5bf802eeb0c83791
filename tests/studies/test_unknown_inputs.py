"""What a run has never learned: margins by hand, and the study on a tiny run."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from runs_world import make_world

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.locators.gaussian import NearestMean
from hidecmoe_jax.methods.base import FrozenFeatures
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.studies.unknown_inputs import OUTSIDERS, foreign_study, margins_of

LOCATED = {"gate": {"kind": "locator", "by": {"kind": "nearest_mean"}, "kept_apart": 0.25}}


def learned(root, gate, *, tasks=2):
    """A run of which no more than the last row is measured."""
    config = make_world(root, "hide", tasks=tasks, gate=gate)
    evaluate = replace(config.evaluate, zero_shot=False, between="none", named="none")
    return learn(replace(config, evaluate=evaluate), root / "run")


def test_margins_are_scores_less_the_limit_of_the_nearest_task():
    gate = LocatorGate(by=NearestMean())
    memory = NearestMean().blank(3, 2) | {"std_D": jnp.ones(2), "threshold_N": jnp.array([-1.0, -9.0, -4.0])}
    memory["center_ND"] = jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    seen = FrozenFeatures(None, jnp.array([[1.0, 0.0], [4.0, 1.0]]))
    judge = margins_of(gate)
    np.testing.assert_allclose(judge(memory, seen, jnp.array([True, True, True])), [0.0, 8.0])
    np.testing.assert_allclose(judge(memory, seen, jnp.array([False, True, True])), [0.0, 8.0])
    np.testing.assert_allclose(judge(memory, seen, jnp.array([True, False, True])), [0.0, -16.0])


def test_a_run_with_a_locator_is_studied(tmp_path):
    run = learned(tmp_path, LOCATED["gate"])
    found = foreign_study(run, count=4)
    assert set(found["known"]) == set(found["left_out"]) == {"birds", "fish"}
    assert tuple(found["outsiders"]) == OUTSIDERS
    for told in [*found["left_out"].values(), *found["outsiders"].values()]:
        assert 0 <= told["auroc"] <= 1 and 0 <= told["unknown"] <= 100
    assert (run / "foreign.json").is_file()


def test_a_run_without_thresholds_is_refused(hide_run):
    with pytest.raises(ConfigError, match="cannot detect unknown inputs"):
        foreign_study(hide_run)


def test_a_run_that_kept_no_records_apart_is_refused(tmp_path):
    run = learned(tmp_path, LOCATED["gate"] | {"kept_apart": 0}, tasks=1)
    with pytest.raises(ConfigError, match="no threshold of birds"):
        foreign_study(run)
