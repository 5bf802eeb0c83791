"""The control of probes on a tiny run: a rate for each balancing weight, and who cannot be controlled."""

import json

import numpy as np
import pytest
from runs_world import make_world
from test_resume_stages import MIXTURE

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.studies.probe_control import probe_control


def test_probes_are_controlled_with_and_without_balance(tmp_path):
    run = learn(make_world(tmp_path, "cmoe", **MIXTURE), tmp_path / "run")
    before = [record.folder.stat().st_mtime_ns for record in Ledger(run / "seed_0").tasks()]
    found = probe_control(run, repeats=2)
    assert [played["balance"] for played in found["controls"]] == [0.01, 0.0]
    for played in found["controls"]:
        assert 0 <= played["false_expansion_rate"] <= 1 and len(played["frequency"]) == 3
        assert all(0 <= part <= 1 for part in played["frequency"]) and np.allclose(played["threshold"], 2 / 3)
    assert json.loads((run / "control.json").read_text()) == found
    assert found == probe_control(run, repeats=2), "a control is a function of the run and the seed"
    assert before == [record.folder.stat().st_mtime_ns for record in Ledger(run / "seed_0").tasks()]
    with pytest.raises(ConfigError, match="no probe to control"):
        probe_control(run, task=2)


def test_a_method_without_probes_is_refused(hide_run):
    with pytest.raises(ConfigError, match="no probe to control"):
        probe_control(hide_run)
