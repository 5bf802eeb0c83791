"""The page for people: what it may load, who may see and do what, and decisions that become lines of the log."""

import hashlib
import json
import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from served import JSON, Client, FakeVersion, asking, png

import hidecmoe_jax.serve
from hidecmoe_jax.operate.decision_log import open_log, read_log
from hidecmoe_jax.operate.entries import AnswerEntry, ReviewEntry
from hidecmoe_jax.operate.kept_pictures import KeptPictures
from hidecmoe_jax.operate.operation import Operation
from hidecmoe_jax.operate.prices import Prices
from hidecmoe_jax.serve.access import read_tokens
from hidecmoe_jax.serve.changes import Changes, command_of
from hidecmoe_jax.serve.desk import LogView
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.page_routes import Page
from hidecmoe_jax.serve.recorder import Recorder
from hidecmoe_jax.serve.refusal import Refusal

FILES = Path(hidecmoe_jax.serve.__file__).parent / "page"
TOKENS = {"vera": "a-token-of-a-viewer", "ben": "a-token-of-a-reviewer", "anna": "a-token-of-an-owner"}


@pytest.fixture
def server(tmp_path):
    """A client of a server with a page, a log that draws everything, and three people."""
    (tmp_path / "tokens").write_text(
        "".join(f"{name} {role} {TOKENS[name]}\n" for name, role in
                (("vera", "viewer"), ("ben", "reviewer"), ("anna", "owner")))
    )  # fmt: skip
    folder = tmp_path / "log"
    options = ServeOptions(log=folder, keep_pictures=30, review_share=1.0)
    with open_log(folder) as log:
        operation = Operation("birds", log)
        recorder = Recorder(operation, options, KeptPictures(folder, 30))
        page = Page(tmp_path / "run", "birds", operation, Prices(misrouting=500))
        people = read_tokens(tmp_path / "tokens")
        with Client(FakeVersion(), record=recorder.record, operation=operation, page=page, people=people) as client:
            client.folder = folder
            yield client


def as_(name: str) -> dict:
    return {"authorization": f"Bearer {TOKENS[name]}"}


def get(client, path, name="ben"):
    return client.get(path, as_(name) if name else {})


def post(client, path, body, name="ben"):
    return client.call("POST", path, [json.dumps(body).encode()], JSON | (as_(name) if name else {}))


def test_the_page_loads_nothing_from_elsewhere_and_makes_no_markup_of_texts(server):
    page = get(server, "/", None)
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    texts = {path.name: path.read_text() for path in FILES.iterdir()}
    assert set(texts) == {"index.html", "page.css", "page.js"}
    for text in texts.values():
        assert not set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert way not in texts["page.js"]
    assert "style=" not in texts["index.html"] and not re.search(r"\son\w+=", texts["index.html"])
    for path in ("/page/page.js", "/page/page.css", "/page/words.json"):
        assert get(server, path, None).status == 200


def test_every_word_that_the_page_uses_is_in_the_table_and_none_is_left_over(server):
    words = get(server, "/page/words.json", None).body
    script = (FILES / "page.js").read_text() + (FILES / "index.html").read_text()
    computed = {"tab_", "role_", "fit_", "why_", "change_"}
    known = {key for key in words["en"] if not any(key.startswith(start) for start in computed)}
    used = set(re.findall(r"[\"'](\w+)[\"']", script)) | {"name_of_language"}
    assert known <= used, "words that nothing shows"
    for key in re.findall(r"\bword\(\"(\w+)\"[,)]", script):
        assert key in words["en"], key


@pytest.mark.parametrize(
    ("path", "method", "least"),
    [
        ("/v1/page/state", "GET", "vera"), ("/v1/page/health", "GET", "vera"), ("/v1/page/inbox", "GET", "ben"),
        ("/v1/reviews", "POST", "ben"), ("/v1/page/picture", "POST", "ben"), ("/v1/page/change", "POST", "anna"),
        ("/v1/page/changes", "GET", "anna"),
    ],
)  # fmt: skip
def test_a_role_may_what_it_may_and_no_more(server, path, method, least):
    names = list(TOKENS)
    for name in (None, *names):
        response = get(server, path, name) if method == "GET" else post(server, path, {}, name)
        if name is None:
            assert response.status == 401
        elif names.index(name) < names.index(least):
            assert response.status == 403 and response.body["error"]["code"] == "not_allowed"
        else:
            assert response.status not in (401, 403)


def test_an_answer_waits_until_somebody_decides_and_the_log_says_who(server):
    server.post(asking("What is this?", png()), as_("ben"))
    inbox = get(server, "/v1/page/inbox").body
    (line,) = inbox["waiting"]
    assert inbox["total"] == 1 and (line["question"], line["task"], line["sampled"]) == (
        "What is this?",
        "fish",
        "random",
    )
    digest = hashlib.sha256(png()).hexdigest()
    picture = post(server, "/v1/page/picture", {"digest": digest})
    assert picture.headers["content-type"] == "image/png" and line["pictures"] == [digest]
    done = post(server, "/v1/reviews", {"of": line["id"], "decision": "other_task", "task": "birds"})
    assert done.status == 200 and done.body["of"] == line["id"]
    assert get(server, "/v1/page/inbox").body["total"] == 0
    review = [entry for entry in read_log(server.folder) if entry["kind"] == "review"][0]
    assert (review["of"], review["decision"], review["task"], review["by"]) == (
        line["id"],
        "other_task",
        "birds",
        "ben",
    )
    health = get(server, "/v1/page/health", "vera").body
    assert (health["today"]["answers"], health["today"]["corrected"], health["waiting"]) == (1, 1, 0)
    assert health["misrouting"]["value"] == 1.0
    assert health["confusions"] == [{"task": "fish", "right": "birds", "answers": 1.0, "cost": 500.0}]
    # Answered again by the task that is right, at once.
    again = server.post(asking("What is this?", png(), model="birds"), as_("ben"))
    assert again.status == 200 and server.app.version.asked[-1][2] == "birds"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"of": "0" * 16, "decision": "right"}, "no such answer"),
        ({"decision": "right"}, "object of texts"),
        ({"of": "x", "decision": "right", "by": "the boss"}, "object of texts"),
        ({"of": "x", "decision": ["right"]}, "object of texts"),
        ([], "must be a JSON object"),
    ],
)
def test_a_wrong_review_is_refused_and_not_logged(server, fields, why):
    response = post(server, "/v1/reviews", fields)
    assert response.status == 400 and why in response.body["error"]["message"]
    assert not [entry for entry in read_log(server.folder) if entry["kind"] == "review"]


@pytest.mark.parametrize("digest", ["../../etc/passwd", "*", "0" * 63, "A" * 64, None, ["0" * 64]])
def test_no_file_but_a_kept_picture_is_given(server, digest):
    assert post(server, "/v1/page/picture", {"digest": digest}).status == 400
    assert post(server, "/v1/page/picture", {"digest": "0" * 64}).status == 404


def test_a_body_of_another_type_is_refused_for_other_sites_may_send_it(server):
    response = server.call(
        "POST", "/v1/reviews", [b"{}"], {"host": "localhost", "content-type": "text/plain"} | as_("ben")
    )
    assert response.status == 415


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "retire", "task": "fish"}, ["retire", "R", "fish"]),
        ({"kind": "retire", "task": "fish", "commit": True}, ["retire", "R", "fish", "--commit", "--allowed", "100"]),
        ({"kind": "merge", "into": "birds", "task": "fish"}, ["merge", "R", "birds", "fish"]),
        ({"kind": "restore", "commit": True}, ["restore", "R"]),
        ({"kind": "calibrate", "false_alarms": 0.02, "commit": True}, ["calibrate", "R", "--false-alarms", "0.02"]),
        ({"kind": "retire", "task": "--commit"}, 404),
        ({"kind": "retire", "task": ["fish"]}, 404),
        ({"kind": "retire", "task": "fish", "allowed": 100}, 422),
        ({"kind": "retire", "task": "fish", "commit": "yes"}, 400),
        ({"kind": "calibrate", "false_alarms": 2}, 400),
        ({"kind": "run"}, 400),
        ({"kind": ["retire"]}, 400),
        ("retire", 400),
    ],
)
def test_a_change_is_one_of_a_few_commands_with_names_of_tasks(fields, words):
    if isinstance(words, list):
        assert command_of(fields, Path("R"), ("birds", "fish")) == words
        return
    with pytest.raises(Refusal) as refused:
        command_of(fields, Path("R"), ("birds", "fish"))
    assert refused.value.status == words


def test_a_log_is_read_on_as_it_grows_and_old_answers_stay_only_while_they_wait(tmp_path):
    times = [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)]
    clock = iter(sorted([*times, datetime(2026, 3, 2, tzinfo=UTC)]))
    plain = dict.fromkeys(("base", "fit", "score", "threshold", "second", "ahead", "by", "question", "answer"))
    view = LogView(tmp_path / "log")

    def an_answer(name: str, sampled: str | None) -> AnswerEntry:
        return AnswerEntry(
            id=name, run="r", version="v", model="auto", task="birds", nearest="birds", refused=False, queued=False,
            pictures=(), milliseconds=1.0, sampled=sampled, **plain,
        )  # fmt: skip

    with open_log(tmp_path / "log", clock=lambda: next(clock)) as log:
        log.append(an_answer("old", None))
        log.append(an_answer("waits", "random"))
        assert [line["id"] for line in view.lines(date(2026, 1, 2))] == ["old", "waits"]
        log.append(an_answer("new", None))
        # A line that is being written.
        path = sorted((tmp_path / "log").glob("*.jsonl"))[-1]
        with open(path, "ab") as file:
            file.write(b'{"kind": "answer", "id": "torn')
        assert [line["id"] for line in view.lines(date(2026, 3, 1))] == ["waits", "new"]
        log.append(ReviewEntry("v", "waits", "right"))
        assert [line.get("of", line["id"]) for line in view.lines(date(2026, 3, 2))] == ["new", "waits"]


def test_one_change_at_a_time_with_its_output():
    changes = Changes()
    assert changes.state() == {"kind": None, "state": "none", "lines": []}
    changes.begin(["--version"])
    with pytest.raises(Refusal, match="another change"):
        changes.begin(["--version"])
    changes.wait()
    assert changes.state() == {"kind": "--version", "state": "done", "lines": [hidecmoe_jax.__version__]}
    changes.begin(["retyre"])
    changes.wait()
    state = changes.state()
    assert state["state"] == "failed" and any("did you mean 'retire'" in line for line in state["lines"])
