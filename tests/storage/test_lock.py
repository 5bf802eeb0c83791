"""One writer a run, known by name while it lives and forgotten when it dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hidecmoe_jax
from hidecmoe_jax.core.errors import BusyError
from hidecmoe_jax.storage.lock import NOTE, writer_lock

HOLD = """
import sys, time, pathlib
from hidecmoe_jax.storage.lock import writer_lock
with writer_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    root = str(Path(hidecmoe_jax.__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_writer_is_told_who_holds_the_run_and_ck14_death_frees_it(tmp_path, holder):
    with pytest.raises(BusyError) as caught, writer_lock(tmp_path):
        pytest.fail("two writers")
    assert caught.value.exit_code == 7
    note = (tmp_path / NOTE).read_text()
    assert str(holder.pid) in note
    for word in (f"process {holder.pid}", "on host", "since 20"):
        assert word in str(caught.value)
    holder.kill()
    holder.wait()
    with writer_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / NOTE).read_text()
    assert not (tmp_path / NOTE).exists()


def test_the_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), writer_lock(tmp_path / "new" / "run"):
        raise KeyError
    with (
        writer_lock(tmp_path / "new" / "run"),
        pytest.raises(BusyError),
        writer_lock(tmp_path / "new" / "run"),
    ):
        pytest.fail("two writers")
