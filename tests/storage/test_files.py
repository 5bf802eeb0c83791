"""Files that several processes write and read at once: a reader sees the old content or the new one, never a part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hidecmoe_jax
from hidecmoe_jax.storage.files import is_partial, read_json, remove_partial, write_bytes

WRITER = """
import os, sys
from pathlib import Path
from hidecmoe_jax.storage.files import write_json
os.fsync = lambda handle: None
for number in range(120):
    write_json(Path(sys.argv[1]), {"by": sys.argv[2], "numbers": [number] * 2000})
"""


def test_two_writers_and_a_reader_of_one_file_never_meet(tmp_path):
    path = tmp_path / "cells.json"
    write_bytes(path, json.dumps({"by": "nobody", "numbers": [0] * 2000}).encode())
    env = {**os.environ, "PYTHONPATH": str(Path(hidecmoe_jax.__file__).resolve().parents[1])}
    writers = []
    for name in ("first", "second"):
        command = [sys.executable, "-c", WRITER, str(path), name]
        writers.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    seen = set()
    while any(writer.poll() is None for writer in writers):
        found = read_json(path)
        assert len(found["numbers"]) == 2000 and len(set(found["numbers"])) == 1
        seen.add(found["by"])
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [("", 0), ("", 0)]
    assert seen >= {"first", "second"} and [file.name for file in tmp_path.iterdir()] == ["cells.json"]


def test_what_a_killed_writer_left_is_known_and_removed(tmp_path, monkeypatch):
    class Died(BaseException):
        pass

    def replace(*_):
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(os, "replace", replace)
        write_bytes(tmp_path / "run.json", b"new")
    (left,) = tmp_path.iterdir()
    assert is_partial(left.name) and not is_partial(".export.part") and not is_partial("run.json.part")
    (tmp_path / ".export.part").mkdir()
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".export.part"]


def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    write_bytes(tmp_path / "run.json", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "run.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_bytes() == b"old"
