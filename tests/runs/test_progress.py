"""Checkpoints in the middle of a task: the newest two, whole or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.runs.progress import Progress


def test_progress_keeps_the_newest_two_and_gives_the_newest(tmp_path):
    progress = Progress(tmp_path / "progress")
    assert progress.latest() is None
    for step in [10, 20, 3]:  # a new stage counts from 0 again
        progress.save(step, {"w": np.full(3, step), "opt/none": np.zeros((0,))}, meta={"stage": step})
    names = sorted(path.name for path in progress.folder.iterdir())
    assert names == ["000001_step_20", "000002_step_3"]
    step, state, meta = progress.latest()
    assert (step, meta, state["w"].tolist()) == (3, {"stage": 3}, [3, 3, 3])
    progress.clear()
    assert progress.latest() is None


def test_progress_falls_back_only_when_asked_and_writes_it_down(tmp_path):
    progress = Progress(tmp_path / "progress")
    for step in [1, 2]:
        progress.save(step, {"w": np.full(3, step)}, meta={})
    (progress.folder / "000001_step_2" / "meta.json").write_text("{}")
    with pytest.raises(CheckpointError, match="newest good step is 1: .*--on-corrupt previous"):
        progress.latest()
    assert progress.latest(on_corrupt="previous")[0] == 1
    assert json.loads((progress.folder / "fallbacks.jsonl").read_text())["passed_over"] == "000001_step_2"
    (progress.folder / "000000_step_1" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        progress.latest(on_corrupt="previous")
    with pytest.raises(ConfigError, match="refuse, previous"):
        progress.latest(on_corrupt="newest")


def test_progress_survives_a_crash_in_the_middle_of_a_save(tmp_path, run_python):
    source = """
import pathlib, numpy as np
from hidecmoe_jax.runs.progress import Progress
for step in range(5):
    Progress(pathlib.Path("p")).save(step, {"w": np.full(3, step)}, meta={})
"""
    done = run_python(source, env={"HIDECMOE_CRASH_AT": "before_progress_rename:3"})
    assert done.returncode == 137, done.stderr
    progress = Progress(tmp_path / "p")
    assert progress.latest()[0] == 2
    progress.save(3, {"w": np.full(3, 3)}, meta={})
    assert sorted(path.name for path in progress.folder.iterdir()) == ["000002_step_2", "000003_step_3"]
