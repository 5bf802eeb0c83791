"""The price of a token-routed mixture at LLaVA-1.5-7B's shapes, counted by the compiler."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from hidecmoe_jax.models.config import llava_7b

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("bench_mixture_flops", BENCH / "mixture_flops.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["bench_mixture_flops"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCH))


def test_a_mixture_costs_at_most_a_tenth_more_than_its_products(bench):
    found = bench.measure(llava_7b(), 640, (bench.Mix(4), bench.Mix(8)))
    for mix, rank in zip(found["mixtures"], (64, 128), strict=True):
        assert mix["total_rank"] == rank and mix["top_k"] == 2
        # By hand: 32 layers, two operations per weight and token, a d x rank and a rank x d product.
        ideal = 32 * 2 * 640 * rank * (4096 + 4096) / found["plain"]
        assert mix["ideal"] == pytest.approx(1 + ideal, abs=1e-9)
        assert mix["ideal"] < mix["ratio"] <= 1 + 1.1 * ideal
    recorded = json.loads((BENCH.parents[1] / "docs" / "benchmarks" / "mixture_flops.json").read_text())
    assert recorded["mixtures"][0]["ratio"] == pytest.approx(found["mixtures"][0]["ratio"], abs=1e-6)
    assert 0.9 < found["second_prefill"] < 1.0
