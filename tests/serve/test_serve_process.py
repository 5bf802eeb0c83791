"""A server process on a real port, asked by the official client of OpenAI's interface, and ended by a signal."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from served import asking, png

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("openai", reason="the extra `dev` is not installed")

import openai  # noqa: E402

from hidecmoe_jax.operate.decision_log import check, read_log  # noqa: E402

SERVER = """
import sys, time
from pathlib import Path
from hidecmoe_jax.serve import server
from hidecmoe_jax.serve.options import ServeOptions
from served import FakeVersion

def wait(records):
    while "wait" in records[0].turns[0].question and not Path("opened").exists():
        time.sleep(0.01)

server.open_version = lambda run, options, beside: FakeVersion(before=wait)
server._require_model = lambda run: None
server.serve_run("run", ServeOptions(port=0, drain_seconds=30, poll_seconds=1000, log=Path("log")))
print("left in order")
"""


@pytest.fixture
def process(tmp_path):
    """The process, and the address that it printed."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    started = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        address = started.stderr.readline().split()[0]
        assert address.startswith("http://127.0.0.1:"), address
        yield started, address
    finally:
        started.kill()
        started.communicate()


def state(address: str) -> dict:
    """What /readyz says."""
    try:
        with urllib.request.urlopen(address.removesuffix("/v1") + "/readyz") as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


def until(address: str, **expected) -> None:
    limit = time.monotonic() + 60
    while not expected.items() <= state(address).items():
        assert time.monotonic() < limit, state(address)
        time.sleep(0.02)


def test_sv17_a_client_is_answered_and_sigterm_ends_with_what_was_accepted(process, tmp_path):
    running, address = process
    until(address, status="ready")
    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["auto", "birds", "fish"]
    answer = client.chat.completions.create(**asking("What?", png()))
    assert answer.choices[0].message.content == "<image>\nWhat?" and answer.hidecmoe["task"] == "fish"
    events = list(client.chat.completions.create(**asking("What is it?", stream=True)))
    assert "".join(event.choices[0].delta.content or "" for event in events) == "What is it?"
    with pytest.raises(openai.NotFoundError, match="there are auto, birds, fish"):
        client.chat.completions.create(**asking(model="gpt"))
    with pytest.raises(openai.BadRequestError, match="nothing is fetched"):
        body = asking()
        body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": "http://localhost/"}})
        client.chat.completions.create(**body)
    with ThreadPoolExecutor() as threads:
        accepted = threads.submit(client.chat.completions.create, **asking("wait"))
        until(address, in_flight=1)
        running.send_signal(signal.SIGTERM)
        until(address, status="stopping")
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(**asking())
        assert refused.value.status_code == 503 and refused.value.code == "stopping"
        (tmp_path / "opened").touch()
        assert accepted.result().choices[0].message.content == "wait"
    printed, errors = running.communicate(timeout=60)
    assert running.returncode == 0 and printed == "left in order\n", errors
    assert "Traceback" not in errors and "What" not in errors
    assert check(tmp_path / "log").broken is None
    lines = list(read_log(tmp_path / "log"))
    assert [line["kind"] for line in lines] == ["start", "change", "answer", "answer", "answer", "stop"]
    assert [line["question"] for line in lines[2:5]] == ["What?", "What is it?", "wait"], (
        "what was refused is no answer"
    )
