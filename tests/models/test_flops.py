"""The price of routing, counted by the compiler: within 0.5 % at LLaVA-1.5-7B's shapes (acceptance of the
foundation)."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hidecmoe_jax.models import flops as formulas
from hidecmoe_jax.models.config import llava_7b
from hidecmoe_jax.models.llama import site_shapes

FILE = Path(__file__).resolve().parents[2] / "tools" / "bench" / "flops.py"
spec = importlib.util.spec_from_file_location("bench_flops", FILE)
flops = importlib.util.module_from_spec(spec)
sys.modules["bench_flops"] = flops
spec.loader.exec_module(flops)


@pytest.mark.slow
@pytest.mark.parametrize("routed", [False, True])
def test_extrapolation_equals_the_count_in_full(routed):
    config, session = flops.toy()
    full = flops.count(config, session, flops.full_depth(config, routed=routed), routed=routed)
    assert flops.extrapolated(config, session, routed=routed)["total"] == pytest.approx(full, rel=1e-6)


def test_depths_follow_the_config():
    config = llava_7b()
    assert flops.full_depth(config, routed=False) == flops.Depth(vision=23, text=0, merged=32, routed=0)
    assert flops.full_depth(config, routed=True) == flops.Depth(vision=24, text=12, merged=31, routed=1)


def test_routing_costs_at_most_half_a_percent_at_7b():
    config, session = llava_7b(), flops.Workload()
    assert session.tokens == 640 and session.experts * session.rank == 48
    result = flops.measure(config, session)
    assert 1.0 < result["ratio"] <= flops.LIMIT == 1.005
    # By hand: two operations per weight and token, and two T x T products per layer.
    d, f, t, c = 4096, 11008, 640, 1024
    layer = 2 * t * (4 * d * d + 3 * d * f) + 4 * t * t * d
    assert result["merged"]["layer"]["merged"] == pytest.approx(layer, rel=2e-3)
    experts = 2 * t * 48 * (4 * 2 * d + 3 * (d + f))
    priced = result["routed"]["layer"]
    assert priced["routed"] - priced["merged"] == pytest.approx(experts, rel=1e-2)
    assert priced["vision"] == pytest.approx(2 * 577 * 12 * c * c + 4 * 577 * 577 * c, rel=1e-2)
    # The formulas that reports use say the same.
    experts = formulas.Experts(1, 6, 8, site_shapes(config.decoder), False)
    assert formulas.forward(config, t) == pytest.approx(result["merged"]["total"], rel=0.01)
    assert formulas.forward(config, t, clip=True, added=[experts]) == pytest.approx(result["routed"]["total"], rel=0.01)
    recorded = json.loads((FILE.parents[2] / "docs" / "benchmarks" / "flops.json").read_text())
    assert recorded["ratio"] == pytest.approx(result["ratio"], abs=1e-5)


@pytest.mark.parametrize("experts", [1, 6])
def test_a_site_is_one_pair_of_products_however_many_experts(experts):
    config, session = flops.toy()
    assert flops.expert_products(config, replace(session, experts=experts)) == 2 * 7
