"""Being asked to stop, once politely and twice not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import hidecmoe_jax
from hidecmoe_jax.core.errors import PreemptedError
from hidecmoe_jax.storage.signals import graceful_stop

TRAIN = """
import pathlib, sys, time
from hidecmoe_jax.core.errors import HidecmoeError
from hidecmoe_jax.storage.signals import graceful_stop
done = pathlib.Path("saved")
try:
    with graceful_stop() as stop:
        print("ready", flush=True)
        for step in range(10_000):
            print(step, flush=True)
            time.sleep(0.01)
            if stop.requested:
                done.write_text(str(step))
                stop.leave(f"step {step}")
except HidecmoeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""

# A computation in C that gives up the interpreter lock and does not come back, as a long compilation does.
COMPILE = """
import hashlib
from hidecmoe_jax.storage.signals import graceful_stop
with graceful_stop():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000_000)
"""


# As above, and the loop comes to saving, which takes longer than the time that a step gets.
SAVE = """
import time
from hidecmoe_jax.storage import signals
signals.GRACE = 0.2
with signals.graceful_stop() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    stop.saving = True
    time.sleep(1)
    print("saved", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a child and waits for its first line; the child is gone when the test is over."""
    children = []

    def run(source: str) -> subprocess.Popen:
        env = {**os.environ, "PYTHONPATH": str(Path(hidecmoe_jax.__file__).resolve().parents[1])}
        command, pipe = [sys.executable, "-c", source], subprocess.PIPE
        # Without a buffer, because readline would read ahead what communicate then misses.
        child = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, bufsize=0)
        children.append(child)
        child.stdout.readline()
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_finishes_the_step_saves_and_exits_75(start, tmp_path, number):
    process = start(TRAIN)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    saved = (tmp_path / "saved").read_text()
    assert out.split()[-1].decode() == saved
    assert f"step {saved}".encode() in err and b"--resume" in err and number.name.encode() in err
    assert b"Traceback" not in err


def test_second_signal_ends_at_once_even_inside_a_long_computation(start):
    process = start(COMPILE)
    time.sleep(0.5)  # into the computation, where Python runs no handler; too early only tests less
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_first_signal_ends_a_long_computation_after_its_time(start):
    process = start(
        COMPILE.replace("with graceful", "from hidecmoe_jax.storage import signals\nsignals.GRACE = 0.2\nwith graceful")
    )
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and b"given up" in err


def test_what_is_being_saved_gets_the_time_that_it_takes(start):
    process = start(SAVE)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == b"saved\n" and b"given up" not in err


def test_handlers_come_back_after_the_block():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with graceful_stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(PreemptedError, match="SIGTERM"):
            stop.leave("step 3")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_another_thread_runs_unguarded_and_unharmed():
    seen = []

    def work():
        with graceful_stop() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
