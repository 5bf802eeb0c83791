"""Metrics: read by Prometheus' own parser; the shipped rules and dashboard name what a server has."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from test_decision_log import answer

import hidecmoe_jax
from hidecmoe_jax.operate.entries import ReviewEntry
from hidecmoe_jax.operate.operation import Cost, Operation

UNKNOWN = {"task": None, "fit": "unknown"}
SHIPPED = Path(hidecmoe_jax.__file__).parent / "operate" / "prometheus"


def samples(operation) -> dict:
    """Values by name and labels, without what the client library adds."""
    text = operation.metrics_text(running=2, waiting=5).decode()
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for name, value in sorted(sample.labels.items()) if name != "model_name")
            values[sample.name, *labels] = sample.value
    return values


@pytest.fixture
def operation():
    operation = Operation("birds")
    operation.answered([
        (answer(1, milliseconds=40.0, ahead=0.5), Cost(0.01, 10, 3, "stop", False)),
        (answer(2, milliseconds=400.0, ahead=5.0, sampled="random"), Cost(0.2, 20, 4, "length", True)),
        (answer(3, **UNKNOWN, refused=True, queued=True, sampled="unknown"), Cost(0, 5, 0, "stop", False)),
        (answer(4, **UNKNOWN, shadow=True), Cost(0, 5, 0, "stop", False)),
    ])  # fmt: skip
    operation.add(ReviewEntry("r1", f"{2:016x}", "other_task", task="crows"), ReviewEntry("r2", "none", "right"))
    operation.metrics.refused(429, "queue_full")
    return operation


def test_every_number_is_read_by_the_official_parser(operation):
    values = samples(operation)
    expected = {
        ("vllm:num_requests_running",): 2, ("vllm:num_requests_waiting",): 5, ("vllm:prompt_tokens_total",): 35,
        ("vllm:generation_tokens_total",): 7, ("vllm:request_success_total", "stop"): 2,
        ("vllm:request_success_total", "length"): 1, ("vllm:e2e_request_latency_seconds_count",): 3,
        ("vllm:e2e_request_latency_seconds_bucket", "0.05"): 2, ("hidecmoe_route_total", "well", "wrens"): 2,
        ("hidecmoe_route_total", "unknown", "none"): 1, ("hidecmoe_unknown_total", "queue"): 1,
        ("hidecmoe_margin_count", "wrens"): 2, ("hidecmoe_margin_sum", "wrens"): 5.5, ("hidecmoe_review_pending",): 1,
        ("hidecmoe_corrected_total", "wrens", "crows"): 1, ("hidecmoe_review_total", "other_task"): 1,
        ("hidecmoe_routing_text_cut_total",): 1, ("hidecmoe_requests_refused_total", "queue_full", "429"): 1,
    }  # fmt: skip
    assert {key: values.get(key) for key in expected} == expected


def test_every_metric_of_the_shipped_rules_and_dashboard_is_there(operation):
    rules = yaml.safe_load((SHIPPED / "alerts.yaml").read_text())["groups"][0]["rules"]
    dashboard = json.loads((SHIPPED / "grafana.json").read_text())
    expressions = [rule["expr"] for rule in rules]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    families = text_string_to_metric_families(operation.metrics_text(running=0, waiting=0).decode())
    named = {family.name for family in families} | {name for name, *_ in samples(operation)}
    for expression in expressions:
        used = set(re.findall(r"(?:vllm:|hidecmoe_)\w+", expression))
        assert used or "up{" in expression
        assert used <= named, expression
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) and dashboard["templating"]["list"][0]["name"] == "datasource"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules_and_the_metrics(operation, tmp_path):
    subprocess.run(["promtool", "check", "rules", SHIPPED / "alerts.yaml"], check=True, capture_output=True)
    series = "hidecmoe_drift{instance='a', task='wrens'}"
    test = {
        "rule_files": [str(SHIPPED / "alerts.yaml")], "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m", "input_series": [{"series": series, "values": "0.5x3 1.2x3"}],
            "alert_rule_test": [
                {"eval_time": "2m", "alertname": "HidecmoeDrift", "exp_alerts": []},
                {"eval_time": "5m", "alertname": "HidecmoeDrift", "exp_alerts": [{
                    "exp_labels": {"instance": "a", "task": "wrens", "severity": "ticket"},
                    "exp_annotations": {"summary": "the inputs of wrens are not those that it was measured on"},
                }]},
            ],
        }],
    }  # fmt: skip
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    subprocess.run(["promtool", "test", "rules", tmp_path / "test.yaml"], check=True, capture_output=True)
