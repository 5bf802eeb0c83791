"""Programs under tools/ are scripts, not a package: their folder joins the path for these tests."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))


@pytest.fixture(scope="module")
def bench():
    """Imports a module of the bench by name."""
    folder = str(TOOLS / "bench")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(folder)
