"""What every test shares: strict types, warnings of our own code as errors, one compilation cache, one CPU device."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A cache that outlives the process: the second run of the suite compiles next to nothing.
_CACHE = Path(tempfile.gettempdir()) / "hidecmoe_jax_test_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Registers markers and turns warnings raised from our own modules into errors."""
    config.addinivalue_line("markers", "slow: minutes, not seconds; run with --slow")
    config.addinivalue_line("markers", "lax_types: this test meets foreign code that mixes dtypes")
    config.addinivalue_line("filterwarnings", r"error:::hidecmoe_jax\..*")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--slow`."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves slow tests out unless they are asked for."""
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def strict_types(request: pytest.FixtureRequest):
    """Mixing float32 with bfloat16 or int32 by accident raises, so no promotion goes unseen."""
    mode = "standard" if request.node.get_closest_marker("lax_types") else "strict"
    with jax.numpy_dtype_promotion(mode):
        yield
