"""The converter and the oracle are scripts, not packages: their folders join the path for these tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path[:0] = [str(TOOLS), str(TOOLS / "oracle")]

LAYOUTS = ("hub", "memory_flat", "original", "separate", "vicuna", "clip_plain", "clip_vision_plain", "clip_text_plain")


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Small checkpoints in several layouts, as they should be."""
    import make_checkpoints

    root = tmp_path_factory.mktemp("made")
    for layout in LAYOUTS:
        make_checkpoints.write(layout, root)
    return root


@pytest.fixture
def hub(made, tmp_path) -> Path:
    """A checkpoint with the hub's names, free to be spoilt."""
    return Path(shutil.copytree(made / "hub", tmp_path / "hub"))


@pytest.fixture
def clip(made) -> Path:
    """The CLIP pair that belongs to it."""
    return made / "clip_plain"
