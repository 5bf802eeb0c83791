"""Alarms: the file is read strictly, each alarm rings and ends once, and reaches a receiver and a mail command."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from test_decision_log import answer

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.operate.alarms import (
    AlarmRules,
    Alarms,
    BacklogRule,
    P95Rule,
    Send,
    ShareRule,
    SilentRule,
    read_alarms,
)
from hidecmoe_jax.operate.decision_log import open_log, read_log
from hidecmoe_jax.operate.entries import AlarmEntry, ReviewEntry
from hidecmoe_jax.operate.operation import Cost, Operation
from hidecmoe_jax.operate.senders import Sender

COST = Cost(0.0, 10, 2, "stop", False)


def file_of(tmp_path, text):
    path = tmp_path / "alarms.yaml"
    path.write_text(text)
    return path


def test_a_file_of_rules(tmp_path):
    rules = read_alarms(file_of(tmp_path, "unknown_share: {limit: 0.2}\nsend: {mail: [cat], to: a@b.c}\n"))
    assert rules.unknown_share == ShareRule(0.2, 200) and rules.backlog is None
    assert rules.send.mail == ("cat",) and rules.send.webhook is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unknown_shares: {limit: 0.2}", "did you mean 'unknown_share'"),
        ("unknown_share: {limit: 20}", "between 0 and 1"), ("backlog: {limit: 0}", "at least 1"),
        ("backlog: {limit: many}", "whole number"), ("send: {webhook: 'http://x'}", "no rule"), ("", "found nothing"),
        ("backlog: {limit: 5}\nsend: {webhook: 'ftp://x'}", "http://"),
        ("backlog: {limit: 5}\nsend: {mail: [cat]}", "belong together"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_place(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        read_alarms(file_of(tmp_path, text))


def look(alarms, **how):
    changes = alarms.look(**{"drift": {}, "pending": 0, "now": 0.0} | how)
    return [(change.name, change.state, change.task) for change in changes]


def test_an_alarm_rings_once_and_ends_once_though_the_value_swings_about_its_limit():
    alarms = Alarms(AlarmRules(backlog=BacklogRule(10)))
    rings = [look(alarms, pending=count) for count in (10, 11, 12, 10, 11, 9, 11, 8, 10, 11)]
    began, ended = [("backlog", "rings", None)], [("backlog", "ends", None)]
    assert rings == [[], began, [], [], [], [], [], ended, [], began]


def test_shares_are_of_a_full_window_of_the_last_answers():
    alarms = Alarms(AlarmRules(unknown_share=ShareRule(0.5, 4)))
    for fit in ("unknown", "unknown", "unknown"):
        alarms.answered(answer(1, fit=fit), 0.0)
        assert look(alarms) == []
    alarms.answered(answer(1, fit="well"), 0.0)
    assert look(alarms) == [("unknown_share", "rings", None)]
    alarms.answered(answer(1, fit="unknown", model="wrens"), 0.0)
    assert look(alarms) == [], "a named task says nothing about routing"
    for _ in range(2):
        alarms.answered(answer(1), 0.0)
    assert look(alarms) == [("unknown_share", "ends", None)]


def test_corrected_is_counted_among_what_was_drawn_at_random():
    alarms = Alarms(AlarmRules(corrected_share=ShareRule(0.4, 4)))
    for decision in ("right", "other_task", "right", "answer"):
        alarms.reviewed(decision, "random")
    # What follows says nothing about all answers.
    for decision, sampled in [("bad_picture", "random")] * 3 + [("other_task", "unknown")] * 3:
        alarms.reviewed(decision, sampled)
    (change,) = alarms.look(drift={}, pending=0, now=0.0)
    assert (change.name, change.value) == ("corrected_share", 0.5)


def test_slow_answers_and_silent_tasks_and_drift():
    rules = AlarmRules(p95_milliseconds=P95Rule(100, 20), silent_expert=SilentRule(2), drift=None)
    alarms = Alarms(rules, ("wrens", "crows"))
    for number in range(20):
        alarms.answered(answer(1, milliseconds=500 if number < 2 else 10), now=3 * 86_400)
    assert look(alarms, now=3 * 86_400) == [("p95_milliseconds", "rings", None), ("silent_expert", "rings", "crows")]
    alarms.set_tasks(("wrens",), now=3 * 86_400)
    assert look(alarms, now=3 * 86_400) == [("silent_expert", "ends", "crows")], "of a retired task nothing is expected"


@pytest.fixture
def receiver():
    """A web server of this machine, and the alarms that it got; it fails at the first one."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(500 if len(got) == 1 else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/alarm", got
    server.shutdown()
    server.server_close()


def test_an_alarm_reaches_the_log_a_webhook_and_a_mail_command_once(tmp_path, receiver, capfd):
    address, got = receiver
    mailer = [sys.executable, "-c", "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read())"]
    rules = read_alarms(file_of(tmp_path, json.dumps({
        "unknown_share": {"limit": 0.5, "window": 10}, "backlog": {"limit": 6},
        "send": {"webhook": address, "mail": [*mailer, str(tmp_path / "mail")], "to": "a@b.example"},
    })))  # fmt: skip
    with open_log(tmp_path / "log") as log:
        operation = Operation("birds", log, rules)
        operation.sender._pause = 0.01
        for number in range(30):
            operation.answered([(answer(number, fit="unknown", task=None, sampled="unknown"), COST)])
        for number in range(26):
            operation.add(ReviewEntry(f"r{number}", f"{number:016x}", "right"))
        operation.sender.stop(20)
    lines = [line for line in read_log(tmp_path / "log") if line["kind"] == "alarm"]
    assert [(line["name"], line["state"]) for line in lines] == [
        ("backlog", "rings"), ("unknown_share", "rings"), ("backlog", "ends"),
    ]  # fmt: skip
    assert lines[0]["value"] == 7 and lines[1]["limit"] == 0.5
    # The first was sent again after the receiver had failed.
    assert [(alarm["name"], alarm["state"]) for alarm in got] == [
        ("backlog", "rings"), ("backlog", "rings"), ("unknown_share", "rings"), ("backlog", "ends"),
    ]  # fmt: skip
    mail = (tmp_path / "mail").read_text()
    assert mail.count("To: a@b.example") == 3 and "backlog is 7, the limit is 6" in mail
    assert capfd.readouterr().err.count("alarm rings") == 2


def test_what_waits_for_a_person_is_known_after_a_restart(tmp_path):
    rules = AlarmRules(backlog=BacklogRule(1))
    with open_log(tmp_path / "log") as log:
        operation = Operation("birds", log)
        operation.answered([(answer(number, sampled="near_tie"), COST) for number in range(3)])
        operation.add(ReviewEntry("r1", f"{0:016x}", "right"))
    with open_log(tmp_path / "log") as log:
        operation = Operation("birds", log, rules)
        operation.look()
        assert b"hidecmoe_review_pending 2.0" in operation.metrics_text(running=0, waiting=0)
    assert list(read_log(tmp_path / "log"))[-1]["value"] == 2


def test_a_receiver_that_is_not_there_is_said_and_stops_nothing():
    said = []
    sender = Sender(
        Send(webhook="http://127.0.0.1:9/none", mail=("/no/such/command",), to="a@b.c"), "birds", said.append, 0.01
    )
    began = time.monotonic()
    sender.send(AlarmEntry("backlog", "rings", 3.0, 1.0))
    assert time.monotonic() - began < 5
    sender.stop(20)
    assert [text.split(":")[0] for text in said] == [
        "alarm rings",
        "an alarm could not be sent to webhook http",
        "an alarm could not be sent to mail command /no/such/command",
    ]
