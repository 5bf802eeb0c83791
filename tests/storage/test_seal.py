"""The seal of a run: what was written is read, whatever moment a kill chose; anything else is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.storage import files, seal


class Died(Exception):
    pass


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with a file that is replaced and one that grows."""
    files.write_json(tmp_path / "run.json", {"seal": "ab"})
    seal.begin(tmp_path, "ab")
    (tmp_path / "seed_0").mkdir()
    seal.write_json(tmp_path / "seed_0" / "cells.json", {"score": 1})
    seal.Growing(tmp_path / "seed_0" / "metrics.jsonl").append(b'{"loss": 1}\n')
    return tmp_path


def change(run: Path) -> None:
    """Every kind of write to a sealed run."""
    seed = run / "seed_0"
    seal.write_json(seed / "cells.json", {"score": 2})
    seal.Growing(seed / "metrics.jsonl").append(b'{"loss": 2}\n')
    seal.write_bytes(seed / "metrics.jsonl", b'{"loss": 3}\n', grows=True)
    seal.Growing(seed / "answers.jsonl").append(b'{"id": 1}\n')
    seal.write_bytes(seed / "answers.jsonl", b'{"id": 1}\n{"id": 2}\n')
    with seal.leaving([seed / "answers.jsonl"]):
        os.rename(seed / "answers.jsonl", run / "aside.jsonl")


def state(run: Path) -> tuple:
    seed = run / "seed_0"
    losses = [line["loss"] for line in seal.read_lines(seed / "metrics.jsonl")]
    answers = [line["id"] for line in seal.read_lines(seed / "answers.jsonl")]
    return seal.read_json(seed / "cells.json")["score"], losses, answers


def die_at(patch: pytest.MonkeyPatch, count: int) -> None:
    """Ends `change` before its `count`-th write to the disk; an append is torn in the middle."""
    left, replace, append = [count], os.replace, seal._append

    def step() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Died

    def torn(path, data):
        try:
            step()
        except Died:
            append(path, data[: len(data) // 2])
            raise
        append(path, data)

    def stepped(function):
        def call(*arguments):
            step()
            function(*arguments)

        return call

    patch.setattr(os, "replace", stepped(replace))
    patch.setattr(os, "rename", stepped(os.rename))
    patch.setattr(seal, "_append", torn)


def test_every_kill_leaves_a_state_that_is_read_and_in_which_damage_is_noticed(run, monkeypatch):
    states = []
    for killed_at in range(100):
        with monkeypatch.context() as patch:
            die_at(patch, killed_at)
            try:
                change(run)
            except Died:
                pass
            else:
                break
        found = state(run)
        states.append(found)
        for path in (run / "seed_0").glob("*.json*"):
            whole = path.read_bytes()
            if path.suffix == ".part" or not whole:
                continue
            path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
            if path.name == "answers.jsonl" and not found[2]:
                assert state(run) == found  # nothing of it was sealed, so nothing is read
            else:
                with pytest.raises(CheckpointError, match="changed"):
                    state(run)
            path.write_bytes(whole)
        assert seal.faults(run, {}) == {}
        # As it was, for the next kill.
        seal.write_json(run / "seed_0" / "cells.json", {"score": 1})
        seal.write_bytes(run / "seed_0" / "metrics.jsonl", b'{"loss": 1}\n', grows=True)
        with seal.leaving([run / "seed_0" / "answers.jsonl"]):
            (run / "seed_0" / "answers.jsonl").unlink(missing_ok=True)
    assert killed_at > 15
    for score, losses, answers in states:
        assert score in (1, 2) and losses in ([1], [1, 2], [3]) and answers in ([], [1], [1, 2])


@pytest.mark.parametrize("name", ["cells.json", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["bit", "half", "empty", "gone", "other"])
def test_a_file_that_the_run_did_not_write_is_refused(run, name, kind):
    path = run / "seed_0" / name
    other = {"cells.json": "metrics.jsonl", "metrics.jsonl": "cells.json"}[name]
    whole = path.read_bytes()
    if kind == "gone":
        path.unlink()
    else:
        content = {"half": whole[: len(whole) // 2], "empty": b"", "other": (run / "seed_0" / other).read_bytes()}
        path.write_bytes(content.get(kind, bytes([whole[0] ^ 1]) + whole[1:]))
    with pytest.raises(CheckpointError) as refused:
        seal.read_bytes(path)
    assert refused.value.where == str(path) and "--accept" in refused.value.remedy
    assert list(seal.faults(run, {})) == [f"seed_0/{name}"]


def test_a_file_beside_those_of_the_run_is_refused(run):
    (run / "seed_0" / "edits.json").write_text("{}")
    with pytest.raises(CheckpointError, match="did not write it"):
        seal.read_json(run / "seed_0" / "edits.json")


def test_what_a_kill_left_behind_a_growing_file_is_not_read_and_goes(run):
    path = run / "seed_0" / "metrics.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"loss": 9}\n{"lo')
    assert seal.read_lines(path) == [{"loss": 1}]
    seal.Growing(path).append(b'{"loss": 2}\n')
    assert path.read_bytes() == b'{"loss": 1}\n{"loss": 2}\n'


@pytest.mark.parametrize("broken", ["gone", "bit", "half", "other run", "newer"])
def test_a_seal_that_cannot_be_used_is_an_error(run, broken):
    path = run / "seal.json"
    value = json.loads(path.read_text())
    if broken == "gone":
        path.unlink()
    elif broken == "bit":
        path.write_text(path.read_text().replace('"format": 1', '"format": 0'))
    elif broken == "half":
        path.write_bytes(path.read_bytes()[:50])
    elif broken == "newer":
        path.write_text(json.dumps(value | {"format": 99}))
    else:
        files.write_json(run / "run.json", {"seal": "cd"})
    with pytest.raises(CheckpointError):
        seal.read_json(run / "seed_0" / "cells.json")
    with pytest.raises(CheckpointError):
        seal.write_json(run / "seed_0" / "cells.json", {})


def test_files_of_runs_without_a_seal_and_of_no_run_are_read_as_they_are(tmp_path):
    seal.write_json(tmp_path / "cells.json", {"score": 1})
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n{"lo')
    assert seal.read_json(tmp_path / "cells.json") == {"score": 1}
    assert seal.read_lines(tmp_path / "metrics.jsonl") == [{"loss": 1}]
    assert not (tmp_path / "seal.json").exists()


def write_many(run: Path, name: str) -> None:
    for number in range(40):
        seal.write_json(run / name, {"number": number})


def test_two_writers_lose_no_entry_and_a_reader_beside_them_sees_whole_files(run):
    names = ["a.json", "b.json"]
    for name in names:
        seal.write_json(run / name, {"number": -1})
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(run, name)) for name in names]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert all(seal.read_json(run / name)["number"] >= -1 for name in names)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [seal.read_json(run / name)["number"] for name in names] == [39, 39] and seal.faults(run, {}) == {}


def test_appending_reads_the_file_once_and_notices_other_writers(run, monkeypatch):
    path = run / "seed_0" / "metrics.jsonl"
    file = seal.Growing(path)
    reads = []
    original = seal.read_bytes
    monkeypatch.setattr(seal, "read_bytes", lambda *given, **named: reads.append(given) or original(*given, **named))
    for number in range(2, 6):
        file.append(b'{"loss": %d}\n' % number)
    assert len(reads) == 1
    # Another object rewrites the file in between, as a resumed stage does.
    seal.write_bytes(path, b'{"loss": 1}\n', grows=True)
    file.append(b'{"loss": 7}\n')
    with open(path, "ab") as torn:
        torn.write(b'{"lo')
    file.append(b'{"loss": 8}\n')
    assert seal.read_lines(path) == [{"loss": 1}, {"loss": 7}, {"loss": 8}]
    assert path.read_bytes() == b'{"loss": 1}\n{"loss": 7}\n{"loss": 8}\n'
    os.truncate(path, 5)
    with pytest.raises(CheckpointError, match="truncated"):
        file.append(b'{"loss": 9}\n')
