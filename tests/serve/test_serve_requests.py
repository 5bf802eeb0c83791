"""The server's limits and refusals, row by row: what is refused is refused before any work, by status and field."""

import asyncio
import hashlib
import json
import logging
import threading
import time
from pathlib import Path

import pytest
from served import CHAT, JSON, Client, FakeVersion, Gate, asking, png

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.serve.access import read_tokens
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.worker import FAILURES

TOKEN = "correct-horse-battery"


@pytest.fixture
def client():
    with Client(FakeVersion(), max_body_bytes=4096, max_pictures=2) as made:
        yield made


def refused(response, status: int, code: str) -> dict:
    """The error object of a response with that status and code, and nothing of the package's inside."""
    assert (response.status, response.body["error"]["code"]) == (status, code), response.body
    assert set(response.body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.body["error"]["message"]
    return response.body["error"]


def test_sv1_a_body_above_the_limit_is_refused_before_it_is_read(client):
    response = client.post(asking(), {"content-length": "4097"})
    refused(response, 413, "body_too_large")
    assert response.taken == 0
    refused(client.post(asking(), {"content-length": "9" * 5000}), 413, "body_too_large")
    refused(client.post(asking(), {"content-length": "-1"}), 413, "body_too_large")


def test_sv2_a_body_without_a_length_is_refused_while_it_arrives(client):
    response = client.call("POST", CHAT, [b"x" * 1000] * 50, JSON)
    refused(response, 413, "body_too_large")
    assert response.taken == 5


@pytest.mark.parametrize("size", [(200, 100), (2001, 2), (2, 1), (1500, 3)])
def test_sv3_a_picture_outside_the_limits_is_refused_by_its_header(client, size):
    error = refused(client.ask("What?", png(*size)), 400, "invalid_picture")
    assert f"{size[0]} x {size[1]}" in error["message"]
    assert client.app.version.asked == []


def test_sv3_too_many_pictures_are_refused_before_one_is_decoded(client):
    error = refused(client.ask("What?", *[b"no picture"] * 3), 400, "invalid_value")
    assert "3 pictures, at most 2" in error["message"]


@pytest.mark.parametrize("content", [b"<html>", b"", png()[:40], b"GIF89a"])
def test_sv3_what_is_no_whole_picture_fails_alone(client, content):
    refused(client.ask("What?", content), 400, "invalid_picture")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://169.254.169.254/latest/meta-data", "not_a_data_url"),
        ("https://example.org/a.png", "not_a_data_url"),
        ("file:///etc/passwd", "not_a_data_url"),
        ("/etc/passwd", "not_a_data_url"),
        ("", "not_a_data_url"),
        ("data:image/png,abc", "not_base64"),
        ("data:image/png;base64,@@@@", "not_base64"),
        ("data:image/png;base64,\u00e9", "not_base64"),
    ],
)
def test_sv4_only_data_urls_are_read(client, url, code):
    body = asking()
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})
    assert refused(client.post(body), 400, code)["param"] == "messages[0].content[1]"


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "tokens"
    digest = hashlib.sha256(b"another-long-token").hexdigest()
    path.write_text(
        f"# who may ask\nanna owner {TOKEN}\nben reviewer sha256:{digest}\neva viewer only-for-looking-at\n"
    )
    return read_tokens(path)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer \u00ff"])
def test_sv5_without_a_known_token_nothing_is_read(people, header):
    with Client(FakeVersion(), people=people) as client:
        response = client.post(asking(), {"authorization": header})
        refused(response, 401, "invalid_api_key")
        assert response.taken == 0 and response.headers["www-authenticate"] == "Bearer"
        refused(client.get("/v1/models", {"authorization": header}), 401, "invalid_api_key")
        assert client.get("/healthz").status == 200


def test_sv5_plain_and_hashed_tokens_ask_and_a_viewer_only_looks(people):
    with Client(FakeVersion(), people=people) as client:
        for token in (TOKEN, "another-long-token"):
            assert client.post(asking(), {"authorization": f"Bearer {token}"}).status == 200
        looking = {"authorization": "Bearer only-for-looking-at"}
        assert client.get("/v1/models", looking).status == 200
        refused(client.post(asking(), looking), 403, "not_allowed")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no line names anybody"),
        ("anna owner", "line 1: 2 words"),
        (f"anna boss {TOKEN}", "line 1: role 'boss'"),
        ("anna owner short", "5 characters, at least 16"),
        ("anna owner sha256:12", "64 hexadecimal digits"),
        (f"anna owner {TOKEN}\nanna owner {TOKEN}2", "anna has a token already"),
        (f"anna owner {TOKEN}\nben owner {TOKEN}", "somebody else's"),
    ],
)
def test_sv5_wrong_tokens_are_named_by_line_and_never_shown(tmp_path, text, problem):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_tokens(path)
    assert TOKEN not in str(caught.value) and "short" not in str(caught.value)


def test_sv6_a_body_that_does_not_arrive_is_given_up():
    with Client(FakeVersion(), body_seconds=0.05) as client:
        refused(client.post(b'{"model"', stalls=True), 408, "body_too_slow")
        assert client.app.in_flight == 0


def test_sv7_more_requests_than_may_wait_are_refused_with_a_time():
    gate = Gate()
    with Client(FakeVersion(before=gate), max_waiting=3, batch=1) as client:

        async def crowd():
            asked = [asyncio.ensure_future(client.request("POST", CHAT, [body], JSON)) for _ in range(12)]
            while sum(task.done() for task in asked) < 9:
                await asyncio.sleep(0.005)
            gate.opened.set()
            return await asyncio.gather(*asked)

        body = json.dumps(asking()).encode()
        responses = asyncio.run(crowd())
        assert sorted(response.status for response in responses) == [200] * 3 + [429] * 9
        late = next(response for response in responses if response.status == 429)
        refused(late, 429, "queue_full")
        assert late.headers["retry-after"] == "1" and late.taken == 0
        assert client.app.in_flight == 0


def test_sv7_a_token_asks_at_its_rate_and_no_other_pays_for_it(people):
    now = [0.0]
    with Client(FakeVersion(), people=people, rate=2, clock=lambda: now[0]) as client:

        def status(token):
            return client.post(asking(), {"authorization": f"Bearer {token}"}).status

        assert [status(TOKEN) for _ in range(3)] == [200, 200, 429]
        assert status("another-long-token") == 200
        now[0] = 30.0
        assert [status(TOKEN) for _ in range(2)] == [200, 429]


def test_sv8_a_client_that_goes_away_frees_its_place_and_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gate = Gate()
    with Client(FakeVersion(before=gate), batch=1) as client:

        async def leave():
            body = json.dumps(asking("What?", png())).encode()
            away = asyncio.Event()
            first = asyncio.ensure_future(client.request("POST", CHAT, [body], JSON))
            while not gate.reached.is_set():
                await asyncio.sleep(0.005)
            second = asyncio.ensure_future(client.request("POST", CHAT, [body], JSON, gone=away))
            while client.app.in_flight < 2 or len(list(tmp_path.iterdir())) < 2:
                await asyncio.sleep(0.005)
            away.set()
            left = await second
            gate.opened.set()
            return await first, left

        first, left = asyncio.run(leave())
        assert first.status == 200 and left.status is None
        assert client.app.in_flight == 0
        assert client.ask().status == 200
        assert len(client.app.version.asked) == 2, "the question of the client that went away was answered"
        assert list(tmp_path.iterdir()) == []


def test_sv9_a_long_prompt_is_refused_with_its_counts(client):
    error = refused(client.ask("w " * 80, png()), 400, "context_length_exceeded")
    assert "a prompt of 86 tokens, 4 of them of its 1 pictures; at most 64" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"tools": [{}]}, {"temprature": 0}, {"temperature": 0.7}, {"top_p": 0.9}, {"stop": ["x"]},
     {"logprobs": True}, {"n": True}, {"response_format": {"type": "json_object"}}],
)  # fmt: skip
def test_sv10_a_field_that_is_not_supported_is_named(client, fields):
    response = client.ask(**fields)
    assert response.status == 422 and response.body["error"]["param"] == next(iter(fields))


def test_sv10_fields_that_change_nothing_pass(client):
    assert client.ask(n=1, temperature=0, top_p=1.0, user="anna", seed=3, stop=None, logprobs=False).status == 200


@pytest.mark.parametrize("text", ['{"model": "auto", "messages": [], "x": NaN}', '{"model": "\\ud800", "messages": 1}'])
def test_sv11_a_refusal_never_fails_on_what_it_refuses(client, text):
    response = client.post(text.encode())
    assert 400 <= response.status < 500


def test_sv11_half_a_surrogate_pair_is_refused(client):
    body = json.dumps(asking("\ud800")).encode()
    assert refused(client.post(body), 400, "invalid_value")["param"] == "messages[0].content[0].text"
    refused(client.post(json.dumps(asking() | {"\ud800": 1}).encode()), 422, "unknown_parameter")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"\xff"', b"[" * 3000, b'{"model": ' + b"9" * 3000 + b"}", b'{"model": 1, "model": 2}',
     b'{"model": "auto"}', b'{"model": "auto", "messages": {}}', b'{"model": "auto", "messages": [1]}'],
)  # fmt: skip
def test_sv12_malformed_bodies_are_refused(client, body):
    response = client.post(body)
    assert response.status == 400 and response.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([{"role": "system", "content": "x"}], "messages[0].role"),
        ([{"role": "assistant", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": "x"}] * 2, "messages[1].role"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "messages"),
        ([{"role": "user", "content": "   "}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": "see <image>"}], "messages[0].content[0].text"),
    ],
)
def test_sv12_a_wrong_message_is_named_by_its_place(client, messages, place):
    response = client.post({"model": "auto", "messages": messages})
    assert response.status == 400 and response.body["error"]["param"] == place


def test_sv14_a_batch_that_fails_fails_only_the_request_that_cannot_be_computed():
    gate = Gate()

    def poisoned(records):
        if not gate.opened.is_set():
            gate(records)
        if any("poison" in record.turns[0].question for record in records):
            raise MemoryError("no room")

    with Client(FakeVersion(before=poisoned), batch=4) as client:

        async def together():
            def send(text):
                return client.request("POST", CHAT, [json.dumps(asking(text)).encode()], JSON)

            first = asyncio.ensure_future(send("first"))
            while not gate.reached.is_set():
                await asyncio.sleep(0.005)
            others = [asyncio.ensure_future(send(text)) for text in ("good", "poison", "well")]
            while len(client.worker._waiting) < 3:
                await asyncio.sleep(0.005)
            gate.opened.set()
            return await asyncio.gather(first, *others)

        responses = asyncio.run(together())
        assert [response.status for response in responses] == [200, 200, 503, 200]
        assert client.get("/readyz").status == 200
        for _ in range(FAILURES):
            assert client.ask("poison").status == 503
        assert client.get("/readyz").body["status"] == "failing" and client.get("/healthz").status == 200
        assert client.ask("good").status == 200 and client.get("/readyz").status == 200


def test_sv15_before_the_run_is_loaded_the_process_lives_and_is_not_ready():
    with Client(None) as client:
        assert client.get("/healthz").status == 200
        assert (client.get("/readyz").status, client.get("/readyz").body["status"]) == (503, "loading")
        response = client.ask()
        refused(response, 503, "loading")
        assert response.headers["retry-after"] and response.taken == 0


def test_sv16_nothing_that_is_asked_reaches_a_log(client, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        client.ask("my secret question", png())
        client.ask("my secret question", b"no picture")
        client.post(b'{"secret": ')
    printed = capfd.readouterr()
    assert "secret" not in caplog.text + printed.out + printed.err


def test_sv17_a_stopping_server_refuses_new_work(client):
    client.app.is_stopping = True
    refused(client.ask(), 503, "stopping")
    assert client.get("/readyz").body["status"] == "stopping"


def test_sv17_what_waits_when_the_time_is_over_is_refused():
    gate = Gate()
    client = Client(FakeVersion(before=gate), batch=1)

    async def stopped():
        body = json.dumps(asking()).encode()
        asked = [asyncio.ensure_future(client.request("POST", CHAT, [body], JSON)) for _ in range(2)]
        while not (gate.reached.is_set() and len(client.worker._waiting) == 1):
            await asyncio.sleep(0.005)
        threading.Timer(0.05, gate.opened.set).start()
        assert await asyncio.to_thread(client.worker.stop, 5)
        return await asyncio.gather(*asked)

    assert sorted(response.status for response in asyncio.run(stopped())) == [200, 503]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "example.org"])
def test_sv18_another_host_needs_tokens(host):
    with pytest.raises(ConfigError, match="--tokens FILE"):
        ServeOptions(host=host)
    assert not ServeOptions(host=host, tokens=Path("tokens")).is_local


def test_sv18_a_web_page_cannot_ask_through_its_visitor(client):
    refused(client.post(asking(), {"host": "evil.example:8080"}), 403, "wrong_host")
    refused(client.post(asking(), {"content-type": "text/plain"}), 415, "wrong_content_type")
    for host in ("127.0.0.1:8080", "localhost", "[::1]:8080"):
        assert client.post(asking(), {"host": host}).status == 200


def test_a_request_that_is_not_answered_in_time_gets_504_and_keeps_its_files_until_then(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gate = Gate()
    with Client(FakeVersion(before=gate), timeout=0.2) as client:
        refused(client.ask("What?", png()), 504, "timeout")
        assert len(list(tmp_path.iterdir())) == 1, "the batch still reads the picture"
        gate.opened.set()
        until = time.monotonic() + 5
        while list(tmp_path.iterdir()) and time.monotonic() < until:
            time.sleep(0.01)
        assert list(tmp_path.iterdir()) == []


def test_paths_and_methods(client):
    assert client.get("/v1/nothing").status == 404
    assert client.get(CHAT).status == 405
    models = client.get("/v1/models").body["data"]
    assert [model["id"] for model in models] == ["auto", "birds", "fish"]


def test_models_are_auto_and_tasks_that_can_answer(client):
    assert client.ask(model="birds").status == 200
    assert client.app.version.asked[-1][2] == "birds"
    assert "auto, birds, fish" in refused(client.ask(model="gpt"), 404, "model_not_found")["message"]
    refused(client.ask(model="stamps"), 410, "model_retired")
