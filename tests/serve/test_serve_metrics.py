"""`/metrics` of the server: what requests and a changed run do to it, and who may read it."""

import asyncio
import json

from prometheus_client.parser import text_string_to_metric_families
from served import CHAT, JSON, Client, FakeVersion, Gate, asking

from hidecmoe_jax.operate.operation import Operation
from hidecmoe_jax.runs.replies import OwnMatches
from hidecmoe_jax.serve.access import read_tokens
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.recorder import Recorder

TOKEN = "correct-horse-battery"


def values(client, **headers) -> dict:
    text = client.get("/metrics", headers).body
    families = list(text_string_to_metric_families(text))
    return {(s.name, *(s.labels[key] for key in sorted(s.labels))): s.value for f in families for s in f.samples}


def test_metrics_count_what_was_answered_and_what_was_refused():
    operation = Operation("birds")
    recorder = Recorder(operation, ServeOptions())
    with Client(FakeVersion(unknown=True), operation=operation, record=recorder.record) as client:
        client.ask("How many?")
        client.ask("How many?", model="wrens")
        after = values(client)
    assert after["hidecmoe_route_total", "unknown", "none"] == 1
    assert after["hidecmoe_unknown_total", "base"] == 1
    assert after["hidecmoe_requests_refused_total", "model_not_found", "404"] == 1
    assert after["vllm:prompt_tokens_total", "birds"] == 2 and after["vllm:generation_tokens_total", "birds"] == 3


def test_metrics_tell_running_from_waiting_requests():
    gate = Gate()
    with Client(FakeVersion(before=gate), batch=2) as client:

        async def crowd():
            body = [json.dumps(asking()).encode()]
            asked = [asyncio.ensure_future(client.request("POST", CHAT, body, JSON))]
            while not gate.reached.is_set():
                await asyncio.sleep(0.005)
            asked += [asyncio.ensure_future(client.request("POST", CHAT, body, JSON)) for _ in range(3)]
            while client.worker.waiting < 3:
                await asyncio.sleep(0.005)
            text = (await client.request("GET", "/metrics", [b""], {"host": "localhost"})).body
            gate.opened.set()
            await asyncio.gather(*asked)
            return text

        text = asyncio.run(crowd())
    assert 'num_requests_running{model_name="birds"} 1.0' in text and 'waiting{model_name="birds"} 3.0' in text


def test_rt9_drift_of_a_known_task_rings_and_another_version_begins_anew():
    operation = Operation("birds")
    recorder = Recorder(operation, ServeOptions())
    # Test questions that score far above the 0.5 of every answer here.
    version = FakeVersion(own_matches={"fish": OwnMatches(tuple(map(float, range(60, 160))), ())})
    recorder.changed(None, version)
    with Client(version, operation=operation, record=recorder.record) as client:
        client.ask()
        assert values(client)["hidecmoe_drift", "fish"] < 1
        asked = 1
        while values(client)["hidecmoe_drift", "fish"] < 1:
            client.ask()
            asked += 1
            assert asked < 30
        recorder.changed(version, FakeVersion("v2", own_matches=version.own_matches))
        assert values(client)["hidecmoe_drift", "fish"] == 0


def test_sv5_metrics_need_a_token_where_there_are_tokens(tmp_path):
    (tmp_path / "tokens").write_text(f"eva viewer {TOKEN}\n")
    with Client(FakeVersion(), people=read_tokens(tmp_path / "tokens")) as client:
        assert client.get("/metrics").status == 401
        assert ("hidecmoe_review_pending",) in values(client, authorization=f"Bearer {TOKEN}")
