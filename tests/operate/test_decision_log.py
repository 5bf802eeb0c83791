"""The decision log: its chain is recomputed here from the bytes of its files, and broken in every way."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import BusyError, CheckpointError, ConfigError
from hidecmoe_jax.operate.decision_log import check, open_log, read_log
from hidecmoe_jax.operate.entries import AnswerEntry, ChangeEntry, ReviewEntry, StartEntry, StopEntry

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def answer(number: int, **fields) -> AnswerEntry:
    values = {
        "id": f"{number:016x}", "run": "birds", "base": "b" * 64, "version": "v1", "model": "auto", "task": "wrens",
        "nearest": "wrens", "fit": "well", "score": 0.5, "threshold": 0.25, "second": None, "ahead": None,
        "refused": False, "queued": False, "pictures": (), "question": "どの鳥?", "answer": "a\u2028wren",
        "milliseconds": 1.5, "by": None, "sampled": None,
    }  # fmt: skip
    return AnswerEntry(**values | fields)


def write(folder, numbers, **how):
    with open_log(folder, **how) as log:
        log.append(StartEntry("birds", "1", {}, log.torn))
        for number in numbers:
            log.append(answer(number))
        log.append(StopEntry("a test"))


@pytest.fixture
def logged(tmp_path):
    """A log of two starts in three files: 7 lines each, at most 4 a file."""
    folder = tmp_path / "log"
    write(folder, range(5), file_bytes=1800)
    write(folder, range(5, 10), file_bytes=1800)
    assert len(files(folder)) > 2
    return folder


def files(folder):
    return sorted(folder.glob("decisions_*.jsonl"))


def test_every_line_has_the_digest_of_the_line_before_over_all_files(logged):
    raw = b"".join(path.read_bytes() for path in files(logged)).decode().split("\n")
    assert raw.pop() == "" and len(raw) == 14
    before = "0" * 64
    for number, text in enumerate(raw, start=1):
        line = json.loads(text)
        assert (line["n"], line["previous"]) == (number, before)
        before = hashlib.sha256(text.encode()).hexdigest()
    state = check(logged)
    assert (state.broken, state.unfinished, state.head.n, state.head.digest) == (None, 0, 14, before)
    lines = list(read_log(logged))
    assert [line["kind"] for line in lines] == 2 * ["start", *["answer"] * 5, "stop"]
    assert lines[1]["question"] == "どの鳥?" and lines[1]["answer"] == "a\u2028wren"
    assert list(lines[1])[:5] == ["n", "previous", "time", "kind", "id"] and "shadow" not in lines[1]
    assert datetime.fromisoformat(lines[1]["time"]).tzinfo is not None


def changed(lines):
    lines[1] = lines[1].replace(b'"wrens"', b'"crows"')


def left_out(lines):
    del lines[1]


def put_in(lines):
    lines.insert(1, lines[1])


def swapped(lines):
    lines[1], lines[2] = lines[2], lines[1]


def spoilt(lines):
    lines[1] = b"\x00" * 10 + b"\n"


@pytest.mark.parametrize(
    ("spoil", "place", "why"),
    [
        (changed, 2, "was changed"), (left_out, 2, "has number 7, expected 6"), (put_in, 3, "put in"),
        (swapped, 2, "expected"), (spoilt, 2, "is no JSON"),
    ],
)  # fmt: skip
def test_a_spoilt_line_is_named_by_its_file_and_place(logged, capsys, spoil, place, why):
    path = files(logged)[1]
    lines = path.read_bytes().splitlines(keepends=True)
    spoil(lines)
    path.write_bytes(b"".join(lines))
    broken = check(logged).broken
    assert (broken.file, broken.line) == (path.name, place) and why in broken.why
    with pytest.raises(CheckpointError, match=f"line {place} .*{why}"):
        list(read_log(logged))
    assert main(["verify", str(logged)]) == 4
    assert f"damaged: {path.name}: line {place}" in capsys.readouterr().out


def test_a_missing_file_breaks_the_chain(logged):
    first, second, third, *_ = files(logged)
    second.unlink()
    assert (check(logged).broken.file, check(logged).broken.line) == (third.name, 1)
    first.unlink()
    assert "a file is missing" in check(logged).broken.why


def test_verify_prints_the_last_digest_of_a_whole_log(logged, capsys):
    assert main(["verify", str(logged)]) == 0
    printed = capsys.readouterr().out
    assert f"14 lines, the digest of the last one is {check(logged).head.digest}" in printed
    assert main(["verify", str(logged), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "a decision log"


@pytest.mark.parametrize("bytes_left", [0, 1, 40, -1])
def test_a_torn_last_line_is_moved_aside_and_the_chain_goes_on(logged, bytes_left):
    path = files(logged)[-1]
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[-1][:bytes_left]
    path.write_bytes(b"".join(lines[:-1]) + torn)
    before = check(logged)
    assert before.broken is None and before.unfinished == len(torn) and before.head.n == 13
    write(logged, [20])
    after = check(logged)
    assert after.broken is None and after.unfinished == 0 and after.head.n == 16
    start = [line for line in read_log(logged) if line["kind"] == "start"][-1]
    assert start["n"] == 14 and start["torn"] == ("torn_001.txt" if torn else None)
    assert [path.read_bytes() for path in logged.glob("torn_*")] == ([torn] if torn else [])


def test_a_last_line_of_other_bytes_is_torn_too(logged):
    with open(files(logged)[-1], "ab") as file:
        file.write(b"\x00" * 8 + b"\n")
    write(logged, [20])
    assert check(logged).broken is None and (logged / "torn_001.txt").read_bytes() == b"\x00" * 8 + b"\n"


@pytest.mark.parametrize("spoil", [changed, left_out, swapped])
def test_nothing_is_appended_to_a_broken_file(tmp_path, spoil):
    write(tmp_path / "log", range(3))
    (path,) = files(tmp_path / "log")
    lines = path.read_bytes().splitlines(keepends=True)
    spoil(lines)
    path.write_bytes(b"".join(lines))
    size = path.stat().st_size
    with pytest.raises(CheckpointError, match="nothing is appended"), open_log(tmp_path / "log"):
        pass
    assert path.stat().st_size == size


def test_a_new_day_begins_a_file(tmp_path):
    days = iter([NOON, NOON, NOON + timedelta(hours=13), NOON + timedelta(hours=14)])
    with open_log(tmp_path / "log", clock=lambda: next(days)) as log:
        for number in range(4):
            log.append(answer(number))
    assert [len(path.read_bytes().splitlines()) for path in files(tmp_path / "log")] == [2, 2]
    assert check(tmp_path / "log").broken is None
    assert [line["time"] for line in read_log(tmp_path / "log")][2] == "2026-03-02T01:00:00.000Z"


def test_a_write_that_fails_leaves_no_part_of_a_line(tmp_path):
    with open_log(tmp_path / "log") as log:
        log.append(answer(0))
        size = files(tmp_path / "log")[0].stat().st_size
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # The system writes ten bytes of the line, and refuses the rest.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        try:
            with pytest.raises(OSError):
                log.append(answer(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert check(tmp_path / "log").unfinished == 10
        (line,) = log.append(answer(2))
    assert line["n"] == 2 and check(tmp_path / "log").broken is None
    assert [line["id"] for line in read_log(tmp_path / "log")] == [f"{number:016x}" for number in (0, 2)]


KILLED = """
import os, sys, threading
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from hidecmoe_jax.operate.decision_log import open_log
from test_decision_log import answer
with open_log(Path(sys.argv[1])) as log:
    print("writes", flush=True)
    for number in range(10**6):
        log.append(answer(number))
"""


def test_a_killed_writer_leaves_a_log_that_goes_on(tmp_path):
    folder = tmp_path / "log"
    words = [sys.executable, "-c", KILLED, str(folder), os.path.dirname(__file__)]
    writer = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert writer.stdout.readline()
    with pytest.raises(BusyError, match=f"process {writer.pid}"), open_log(folder):
        pass
    writer.kill()
    writer.communicate()
    write(folder, [1])
    state = check(folder)
    assert state.broken is None and state.unfinished == 0 and state.head.n >= 3


def test_other_kinds_of_lines_and_their_keys(tmp_path):
    with open_log(tmp_path / "log") as log:
        change, review, half = log.append(
            ChangeEntry("threshold", 0.1, 0.2, by="anna", why="too many refused"),
            ReviewEntry("r1", "q1", "other_task", task="crows", by="ben"),
            answer(1, question="\ud800", shadow=True),
        )
    assert change["from"] == 0.1 and change["to"] == 0.2 and "before" not in change
    assert (review["of"], review["decision"], review["answer"]) == ("q1", "other_task", None)
    assert list(read_log(tmp_path / "log"))[2]["question"] == "\ud800" and half["shadow"] is True


def test_a_log_is_not_written_into_something_else(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "inside"):
        with pytest.raises(ConfigError, match="a run"), open_log(folder):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--log"), open_log(tmp_path / "file"):
        pass
