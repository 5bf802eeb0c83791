"""Answers of the server in the decision log: what each line holds, and what becomes of a log that cannot be written."""

import hashlib
import time

import pytest
from served import Client, FakeVersion, asking, png

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.operate.decision_log import check, open_log, read_log
from hidecmoe_jax.operate.kept_pictures import KeptPictures, find_picture
from hidecmoe_jax.operate.operation import Operation
from hidecmoe_jax.serve.access import read_tokens
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.recorder import Recorder

TOKEN = "correct-horse-battery"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "log"


def recorded(folder, ask, version=None, *, people=(), **options):
    """The lines of a server that answered what `ask` asked its client."""
    options = ServeOptions(log=folder, **options)
    pictures = None if options.keep_pictures is None else KeptPictures(folder, options.keep_pictures)
    with open_log(folder) as log:
        recorder = Recorder(Operation("birds", log), options, pictures)
        recorder.begin()
        with Client(version or FakeVersion(), record=recorder.record, people=people) as client:
            ask(client)
        recorder.end("a test")
    assert check(folder).broken is None
    return list(read_log(folder))


def test_an_answer_is_a_line_with_the_decision_behind_it(folder, tmp_path):
    (tmp_path / "tokens").write_text(f"ben reviewer {TOKEN}\n")
    responses = []

    def ask(client):
        headers = {"authorization": f"Bearer {TOKEN}"}
        responses.append(client.post(asking("What is this?", png()), headers))
        responses.append(client.post(asking("Cut", model="fish", max_tokens=2), headers))

    start, first, second, stop = recorded(folder, ask, people=read_tokens(tmp_path / "tokens"), review_share=0)
    assert start["settings"] == {"unknown": "base", "private": False, "keep_pictures": None, "review_share": 0}
    details = responses[0].body["hidecmoe"]
    same = ("task", "nearest", "fit", "score", "threshold", "second", "ahead", "refused", "queued", "version")
    assert {name: first[name] for name in same} == {name: details[name] for name in same}
    assert first["id"] == details["request_id"] and first["milliseconds"] == details["milliseconds"]
    assert (first["run"], first["base"], first["model"], first["by"]) == ("birds", "b" * 64, "auto", "ben")
    assert first["pictures"] == [hashlib.sha256(png()).hexdigest()]
    assert (first["question"], first["sampled"]) == ("What is this?", None)
    assert first["answer"] == responses[0].body["choices"][0]["message"]["content"]
    assert (second["model"], second["answer"]) == ("fish", "5 6"), "what the client got, cut as it wanted"
    assert stop["why"] == "a test" and not (folder / "pictures").exists()


def test_a_private_log_keeps_neither_question_nor_answer(folder):
    lines = recorded(folder, lambda client: client.ask("my secret"), private=True)
    assert (lines[1]["question"], lines[1]["answer"]) == (None, None)
    assert b"secret" not in b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("version", "share", "sampled"),
    [
        (FakeVersion(unknown=True, refused=True), 0, "unknown"), (FakeVersion(near_ties={"fish": 0.2}), 0, "near_tie"),
        (FakeVersion(near_ties={"fish": 0.1}), 0, None), (FakeVersion(), 1, "random"),
    ],
)  # fmt: skip
def test_what_a_person_should_look_at_is_marked(folder, version, share, sampled):
    line = recorded(folder, lambda client: client.ask(), version, review_share=share)[1]
    assert line["sampled"] == sampled
    assert line["answer"] is None or not version.refused


def test_a_random_share_is_drawn_by_the_id(folder):
    lines = recorded(folder, lambda client: [client.ask() for _ in range(60)], review_share=0.3)[1:-1]
    drawn = [line["sampled"] == "random" for line in lines]
    assert drawn == [int(line["id"], 16) / 2**64 < 0.3 for line in lines] and 2 < sum(drawn) < 40


def test_pictures_are_kept_for_the_days_that_were_asked_for(folder):
    pictures = [png(), png(9, 9), png()]
    recorded(folder, lambda client: [client.ask("What?", content) for content in pictures], keep_pictures=2)
    path = find_picture(folder, hashlib.sha256(png(9, 9)).hexdigest())
    assert path.name.endswith(".png") and path.read_bytes() == png(9, 9)
    assert len(list((folder / "pictures").iterdir())) == 2
    kept = KeptPictures(folder, 2)
    assert kept.expire(time.time() + 86_400) == 0 and path.exists()
    assert kept.expire(time.time() + 3 * 86_400) == 2 and not path.exists()


def test_an_answer_that_cannot_be_logged_is_not_given(folder):
    def full(answered):
        raise OSError("no space left")

    with Client(FakeVersion(), record=full) as client:
        response = client.ask()
        assert (response.status, response.body["error"]["code"]) == (503, "not_logged")
        assert [type(error) for error in client.errors] == [OSError]
        client.worker._record = None
        assert client.ask().status == 200


def test_a_change_of_the_run_is_a_line(folder):
    with open_log(folder) as log:
        recorder = Recorder(Operation("birds", log), ServeOptions())
        recorder.changed(None, FakeVersion("v1"))
        recorder.changed(FakeVersion("v1"), FakeVersion("v2"))
    lines = list(read_log(folder))
    assert [(line["what"], line["from"], line["to"]) for line in lines] == [
        ("version", None, "v1"), ("version", "v1", "v2"),
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{"private": True}, {"keep_pictures": 3.0}, {"log": "x", "keep_pictures": 0.0}])
def test_options_of_a_log_that_do_not_fit_are_refused(options):
    with pytest.raises(ConfigError, match="--"):
        ServeOptions(**options)
