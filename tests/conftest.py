"""What every test shares: strict types, our own warnings as errors, one compilation cache, one CPU device."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A cache that outlives the process: the second run of the suite compiles next to nothing.
_CACHE = Path(tempfile.gettempdir()) / "hidecmoe_jax_test_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# Most of a first run's time is compiling programs that then run for milliseconds: LLVM is asked for no optimisation and
# XLA for its older, faster writer of loops. XLA's own passes, which decide what is fused and in which order sums are
# taken, stay on; tools/test_oracle.sh runs with everything as users have it. A value from outside wins.
_FAST_COMPILATION = {"xla_backend_optimization_level": "0"}
# XLA ends the process at a flag that it has not, and these may go: for versions that were tried alone.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # One piece of code a program: splitting it for several cores costs more, and both cores have a worker.
    _FAST_COMPILATION["xla_cpu_parallel_codegen_split_count"] = "1"
    _FAST_COMPILATION["xla_cpu_use_fusion_emitters"] = "false"
    # A quarter of what is left: passes of LLVM that run without optimisation too.
    _FAST_COMPILATION["xla_llvm_disable_expensive_passes"] = "true"
for _flag, _value in _FAST_COMPILATION.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_flag}={_value}".strip()

import jax  # noqa: E402
from lowering import lower_in_shared_contexts  # noqa: E402

import hidecmoe_jax  # noqa: E402

# Where the package under test lies: the checkout, or the site-packages of an environment with the wheel in it.
PACKAGE_PATH = Path(hidecmoe_jax.__file__).resolve().parents[1]
MOST_MAPS = 48_000
# Begun first, so that no worker is still at one of them when the other has nothing left (tools/test.sh).
LONGEST_FILES = (
    "methods/test_contract.py",
    "studies/test_planning.py",
    "runs/test_stream_loop.py",
    "methods/test_mixture.py",
    "runs/test_resume.py",
    "runs/test_assistant.py",
    "layouts/test_layouts.py",
    "runs/test_reuse.py",
    "runs/test_edits.py",
    "port/test_parity_model.py",
    "truth/test_examples.py",
    "models/test_generation.py",
    "models/test_execution.py",
    "methods/test_stacked.py",
    "runs/test_merges.py",
    "runs/test_calibrate_run.py",
    "experts/test_combine.py",
    "methods/test_worth.py",
    "methods/test_token_gate.py",
    "models/test_llava_model.py",
    "runs/test_resume_stages.py",
    "core/test_compile_cache.py",
    "report/test_report.py",
    "port/test_adapters.py",
    "runs/test_ledger.py",
    "methods/test_merging.py",
    "models/test_last_layer.py",
    "train/test_packing.py",
    "evaluate/test_answer.py",
    "docs/test_extending.py",
    "methods/test_layer_choice.py",
    "test_imports.py",
    "runs/test_results.py",
    "experts/test_surgery.py",
    "models/test_decoder.py",
    "studies/test_layer_similarity.py",
)
STRICT_ROOMS = {"core", "experts", "models", "locators"}


def pytest_configure(config: pytest.Config) -> None:
    """Registers markers and turns warnings raised from our own modules into errors."""
    # Compiled programs are millions of objects that live on; searching them for cycles took 7 % of the time.
    gc.set_threshold(1_000_000, 20, 20)
    lower_in_shared_contexts()
    config.addinivalue_line("markers", "slow: minutes, not seconds; run with -m slow")
    config.addinivalue_line("markers", "oracle: compares with torch and peft (extra `oracle`); run with -m oracle")
    config.addinivalue_line("markers", "figures: this file's tests look at figures of reports, so they are drawn")
    config.addinivalue_line("markers", "lax_types: this test meets foreign code that mixes dtypes")
    config.addinivalue_line("filterwarnings", r"error:::hidecmoe_jax\..*")
    # tools/setup.sh installed the wheel: with a checkout first on the path the whole run would prove nothing.
    if os.environ.get("INSTALL") == "wheel" and not PACKAGE_PATH.is_relative_to(sys.prefix):
        raise pytest.UsageError(f"INSTALL=wheel, but the package under test lies in {PACKAGE_PATH}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Longest files first; tests of the markers `slow` and `oracle` are left out unless an expression asks for them."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if config.option.markexpr:
        return
    for item in items:
        for marker in ("slow", "oracle"):
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: run with -m {marker}"))


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """No test cuts the power, and what a killed process has written the system keeps without `fsync`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops compiled programs between files where there are many.

    A process may hold 65,530 memory maps under Linux; every program takes four or more. Dropping one takes a fifth of
    the time of compiling it, so it is left for when it must be.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True, scope="module")
def figures_where_tested(request: pytest.FixtureRequest):
    """Draws the figures of reports, which take seconds a run, only in files with `pytestmark = pytest.mark.figures`.

    Everything else of a report is written: its JSON, and the page without figures.
    """
    if request.node.get_closest_marker("figures"):
        yield
        return
    from hidecmoe_jax.report import page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "run_figures", lambda document: {})
        patch.setattr(page, "compare_figures", lambda document: {})
        yield


@pytest.fixture(autouse=True)
def strict_types(request: pytest.FixtureRequest):
    """Mixing float32 with bfloat16 or int32 by accident raises, so no promotion goes unseen.

    Only where our own arithmetic lives: optax multiplies Python floats by int32 counts, and would raise.
    """
    strict = request.path.parent.name in STRICT_ROOMS and not request.node.get_closest_marker("lax_types")
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python source in a fresh process: `run_python(source, devices=8, env={...}, timeout=120)`.

    For what a process cannot test on itself: several virtual CPU devices, signals, kills, import time.
    """

    def run(source: str, *, devices: int = 1, env: dict[str, str] | None = None, timeout: float = 120):
        paths = os.pathsep.join(filter(None, [str(PACKAGE_PATH), os.environ.get("PYTHONPATH")]))
        settings = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": paths, **(env or {})}
        command = [sys.executable, "-c", source]
        return subprocess.run(
            command, env=settings, cwd=tmp_path, timeout=timeout, capture_output=True, text=True, check=False
        )

    return run
