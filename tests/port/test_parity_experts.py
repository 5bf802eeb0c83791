"""HiDe's and MoELoRA's arithmetic against torch (stored answers of `tools/oracle/experts_reference.py`).

The reference adds experts to transformers' LLaVA by hooks, one expert and one linear at a time; here they speak through
banks, fusion, the gate and the method's own serving.
"""

from __future__ import annotations

import numpy as np
import oracle_experts as given
import parity_cases as cases
import parity_experts as experts
import pytest

FLOAT32, GATE = 1e-4, 2e-6


@pytest.mark.parametrize("temperature", given.TEMPERATURES)
def test_gate_weights_are_those_of_the_reference(temperature):
    assert experts.clean_gate(temperature) < GATE
    assert experts.legacy_gate(temperature) < GATE


def test_gate_mistakes_are_noticed():
    assert min(experts.wrong_gates().values()) > 1e-2


@pytest.mark.parametrize("reading", given.READINGS)
def test_hide_speaks_as_the_reference_under_every_fusion(reading):
    assert experts.worst(reading) < FLOAT32


def test_the_official_gate_speaks_as_the_reference():
    assert experts.worst("factor_sum", "_legacy") < FLOAT32


def test_readings_of_the_fusion_are_told_apart():
    states = [cases.stored("hide")[f"state_{reading}"] for reading in given.READINGS]
    assert min(experts.largest(states[i], states[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


@pytest.mark.parametrize("planted", experts.wrong_experts())
def test_expert_mistakes_are_noticed(planted):
    assert experts.worst("product_sum", **experts.wrong_experts()[planted]) > 30 * FLOAT32


def test_moelora_linear_and_all_its_gradients():
    found = experts.moelora_linear()
    assert set(found) == {"output", "x", "w", "a", "b", "router"}
    assert max(found.values()) < FLOAT32 and found["output"] < 1e-5
    leaves, _ = experts.one_linear()
    stored = cases.stored("moelora")["y"]
    for wrong in ({"scale": 1.0}, {"router": leaves["router"] * 0}):
        assert experts.largest(experts.moe(leaves | wrong), stored) > 0.1


def test_moelora_in_the_model_and_its_gradients():
    stored = cases.stored("moelora")
    found = experts.moelora_model()
    assert len(found) == 1 + 3 * len(given.ROUTED)
    assert max(found.values()) < 1e-5
    assert min(np.abs(value).max() for name, value in stored.items() if name.startswith("model_d_")) > 1e-3
