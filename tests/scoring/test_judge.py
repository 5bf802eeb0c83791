"""The judge metric against a local server that replies as an OpenAI-compatible one, and its cache."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from hidecmoe_jax.core.errors import ConfigError, DataError, ResourceError
from hidecmoe_jax.scoring.judge import Cache, Endpoint, judge_answers, rating_of, rating_of_legacy
from hidecmoe_jax.scoring.questions import Question

QUESTIONS = [Question("1", ("wren",), "Which bird?"), Question("2", ("3",), "How many?"), Question("3", ("red",), "?")]


@pytest.fixture
def server():
    """A server on this machine; `replies` holds what it says to an answer, `requests` what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.requests.append((self.path, dict(self.headers), body))
            answer = body["messages"][-1]["content"].rpartition("Answer: ")[2]
            reply = self.server.replies.get(answer, "0")
            status = reply if isinstance(reply, int) else 200
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": reply}}]}).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.replies = {}
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def endpoint_of(server):
    return Endpoint(f"http://127.0.0.1:{server.server_port}/v1/", "judge-1")


def test_answers_are_rated_once_and_read_from_the_cache_after_that(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HIDECMOE_JUDGE_KEY", "secret")
    server.replies = {"a wren": "8/10", "three": "Score: 10"}
    path = tmp_path / "below" / "replies.jsonl"
    judged = judge_answers(endpoint_of(server), Cache(path), ["a wren", "three", ""], QUESTIONS)
    assert (judged.ratings, judged.score, judged.cached) == ((8, 10, 0), pytest.approx(60), 0)
    place, headers, body = server.requests[0]
    assert (place, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"]) == ("judge-1", 0)
    # An empty answer is rated without asking, and nothing is asked twice.
    assert len(server.requests) == 2
    cache = Cache(path)
    cache.read()
    again = judge_answers(endpoint_of(server), cache, ["a wren", "three", ""], QUESTIONS)
    assert (again.score, again.cached, len(server.requests)) == (judged.score, 2, 2)
    # Another model is another judge.
    judge_answers(Endpoint(endpoint_of(server).url, "judge-2"), cache, ["a wren"], QUESTIONS[:1])
    assert len(server.requests) == 3
    assert "secret" not in path.read_text()


def test_a_cache_only_grows_and_outlives_a_torn_line(server, tmp_path):
    server.replies = {"a wren": "7", "three": "2"}
    path = tmp_path / "replies.jsonl"
    judge_answers(endpoint_of(server), Cache(path), ["a wren"], QUESTIONS[:1])
    before = path.read_text()
    path.write_text(before + '{"key": "x", "rep')
    cache = Cache(path)
    cache.read()
    judge_answers(endpoint_of(server), cache, ["a wren", "three"], QUESTIONS[:2])
    assert path.read_text().startswith(before)
    fresh = Cache(path)
    fresh.read()
    assert sorted(fresh.replies.values()) == ["2", "7"] and len(server.requests) == 2
    path.write_text('{"question_id": "1", "text": "an answers file"}\n')
    with pytest.raises(DataError, match="no cache of a judge"):
        Cache(path).read()


def test_an_unrated_answer_is_never_averaged_away(server, tmp_path):
    server.replies = {"a wren": "I cannot say", "three": "10"}
    judged = judge_answers(endpoint_of(server), Cache(tmp_path / "r.jsonl"), ["a wren", "three"], QUESTIONS[:2])
    assert (judged.ratings, judged.score) == ((None, 10), None)


def test_a_failing_judge_is_an_error_and_keeps_what_it_said(server, tmp_path):
    server.replies = {"a wren": "7", "three": 500}
    path = tmp_path / "r.jsonl"
    with pytest.raises(ResourceError, match="does not reply") as caught:
        judge_answers(endpoint_of(server), Cache(path), ["a wren", "three"], QUESTIONS[:2])
    assert "HTTP 500" in caught.value.why
    assert len(path.read_text().splitlines()) == 1
    with pytest.raises(ResourceError, match="does not reply"):
        judge_answers(Endpoint("http://127.0.0.1:9", "m", timeout=2), Cache(path), ["x"], QUESTIONS[:1])
    with pytest.raises(ConfigError, match="no URL"):
        Endpoint("localhost:8000", "m")


@pytest.mark.parametrize(
    "reply, strict, legacy",
    [
        ("8", 8, 8),
        ("8/10", 8, 8),
        ("10", 10, 10),
        # Fixture 8 and A10: the digit search takes the first one from 1 to 9.
        ("Score: 10", 10, 1),
        ("Score: 0", 0, 0),
        ("I give it 7 / 10.", 7, 7),
        ("7.0", 7, 7),
        ("no", None, 0),
        ("between 3 and 5", None, 3),
        ("100", None, 100),
        ("7.5", 7.5, 7.5),
    ],
)
def test_ratings_of_replies(reply, strict, legacy):
    assert rating_of(reply) == strict
    assert rating_of_legacy(reply) == legacy
