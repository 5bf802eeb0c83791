"""A finished run that several files look at and none changes."""

from pathlib import Path

import pytest
from runs_world import make_world

from hidecmoe_jax.runs.stream_loop import learn


@pytest.fixture(scope="session")
def hide_run(tmp_path_factory) -> Path:
    """HiDe after two tasks, for studies that read it or refuse it; whoever writes copies it."""
    root = tmp_path_factory.mktemp("hide")
    return learn(make_world(root), root / "run")
