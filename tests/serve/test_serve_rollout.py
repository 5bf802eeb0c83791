"""A changed run beside the one that answers: in its shadow, for a share of the requests, promoted, or sent back."""

import asyncio
import json
import time

import pytest
from served import CHAT, JSON, Client, FakeVersion, Gate, asking, png

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.operate.decision_log import open_log, read_log
from hidecmoe_jax.operate.operation import Operation
from hidecmoe_jax.serve.access import read_tokens
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.recorder import Recorder
from hidecmoe_jax.serve.rollout import Candidate

ROLLOUT = "/v1/rollout"
TOKENS = {"owner": "owner-horse-battery", "reviewer": "reviewer-horse-battery"}


@pytest.fixture
def rolled(tmp_path):
    """A client of version `old` with a log, and what reads its lines."""
    with open_log(tmp_path / "log") as log:
        operation = Operation("birds", log)
        recorder = Recorder(operation, ServeOptions(log=tmp_path / "log", review_share=1))
        with Client(FakeVersion("old"), operation=operation, record=recorder.record) as client:
            yield client, lambda kind: [line for line in read_log(tmp_path / "log") if line["kind"] == kind]


def decide(client, token=None, **fields):
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return client.call("POST", ROLLOUT, [json.dumps(fields).encode()], JSON | headers)


def until(condition):
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_shadow_answers_for_the_log_alone(rolled):
    client, lines = rolled
    shadow = FakeVersion("new", tasks=("fish",))
    client.app.candidate = Candidate(shadow, None)
    body = client.ask("What?", png()).body
    assert body["hidecmoe"]["version"] == "old"
    until(lambda: len(lines("answer")) == 2)
    answer, beside = lines("answer")
    assert (answer["version"], beside["version"], beside["shadow"]) == ("old", "new", True)
    assert answer["id"] == beside["id"] and "shadow" not in answer
    assert (answer["sampled"], beside["sampled"]) == ("random", None)
    assert client.ask(model="birds").status == 200, "the shadow lacks this task"
    assert len(shadow.asked) == 1
    text = client.operation.metrics_text(running=0, waiting=0).decode()
    assert 'hidecmoe_route_total{fit="barely",task="fish"} 2.0' in text, "a shadow counts nowhere"


def test_a_shadow_that_fails_disturbs_nobody(rolled):
    client, lines = rolled

    def broken(records):
        raise MemoryError

    client.app.candidate = Candidate(FakeVersion("new", before=broken), None)
    client.app.version.before = gate = Gate()

    async def crowd():
        body = [json.dumps(asking("What?", png())).encode()]
        asked = [asyncio.ensure_future(client.request("POST", CHAT, body, JSON)) for _ in range(4)]
        while not gate.reached.is_set() or len(client.worker._shadows) < 4:
            await asyncio.sleep(0.005)
        gate.opened.set()
        return await asyncio.gather(*asked)

    # All four shadows fail one after the other, with no answer between them.
    assert [response.status for response in asyncio.run(crowd())] == [200] * 4
    until(lambda: not client.worker._shadows and not client.worker.running)
    assert client.worker.is_well and len(lines("answer")) == 4
    assert client.get("/readyz").status == 200


def test_a_canary_answers_its_share_and_says_so(rolled):
    client, lines = rolled
    client.app.candidate = candidate = Candidate(FakeVersion("new"), 0.4)
    bodies = [client.ask().body for _ in range(50)]
    met = [body["hidecmoe"]["version"] == "new" for body in bodies]
    assert met == [candidate.meets(body["hidecmoe"]["request_id"]) for body in bodies] and 8 < sum(met) < 32
    assert [line.get("canary", False) for line in lines("answer")] == met


def test_an_owner_promotes_a_candidate_or_goes_back(rolled):
    client, lines = rolled
    assert decide(client, action="promote").body["error"]["code"] == "no_candidate"
    client.app.candidate = Candidate(FakeVersion("new"), None)
    expected = {"version": "old", "candidate": {"version": "new", "mode": "canary", "share": 0.25}}
    assert decide(client, action="canary", share=0.25, why="no difference seen").body == expected
    assert client.get(ROLLOUT).body == expected
    assert decide(client, action="back").body == {"version": "old", "candidate": None}
    client.app.candidate = Candidate(FakeVersion("newer"), None)
    assert decide(client, action="promote").body == {"version": "newer", "candidate": None}
    assert client.ask().body["hidecmoe"]["version"] == "newer"
    changes = [(line["what"], line["to"], line["why"]) for line in lines("change")]
    canary = ("candidate", expected["candidate"], "no difference seen")
    assert changes == [canary, ("candidate", None, None), ("version", "newer", "promoted")]


@pytest.mark.parametrize(
    "fields",
    [{}, {"action": "stop"}, {"action": "canary"}, {"action": "canary", "share": 1.5}, {"action": "back", "share": 0.1},
     {"action": "canary", "share": True}, {"action": "back", "reason": "x"}, {"action": "back", "why": 3}],
)  # fmt: skip
def test_a_wrong_action_is_refused(rolled, fields):
    client, lines = rolled
    client.app.candidate = Candidate(FakeVersion("new"), None)
    assert decide(client, **fields).status == 400
    assert client.app.candidate.version.name == "new" and lines("change") == []


def test_sv5_only_an_owner_changes_what_answers(tmp_path):
    (tmp_path / "tokens").write_text("".join(f"a-{role} {role} {token}\n" for role, token in TOKENS.items()))
    with Client(FakeVersion(), people=read_tokens(tmp_path / "tokens")) as client:
        client.app.candidate = Candidate(FakeVersion("new"), None)
        assert decide(client, action="promote").status == 401
        assert decide(client, TOKENS["reviewer"], action="promote").status == 403
        assert client.app.version.name == "v1"
        assert decide(client, TOKENS["owner"], action="promote").status == 200
        assert client.call("POST", ROLLOUT, [b"{}"], JSON | {"content-type": "text/plain"}).status in (401, 415)


@pytest.mark.parametrize("options", [{"rollout": "shadow"}, {"rollout": "canary", "canary_share": 1.0}])
def test_options_of_a_rollout_that_do_not_fit_are_refused(options):
    with pytest.raises(ConfigError, match="--"):
        ServeOptions(**options)
