"""The soak: what it loses, what it copies in place of a rename, what it calls wrong; and, slowly, its kills."""

import os
import time
from pathlib import Path

import pytest
import soak
from soak import Reference, Scene, World, judge, lose_unsynced, scenes
from trial_world import Ended

from hidecmoe_jax.cli.main import COMMANDS


@pytest.mark.parametrize("method", soak.METHODS)
def test_every_command_that_writes_is_killed(method):
    listed = scenes(method)
    commands = {scene.words[0] for scene in listed.values()}
    assert commands <= set(COMMANDS)
    assert commands >= {"run", "add", "rollback", "restore", "eval", "report", "export", "adopt", "convert"}
    assert commands & {"retire", "merge"} and "--redo" in listed["redo"].words
    forms = {scene.words[4] for scene in listed.values() if scene.words[0] == "export"}
    assert forms >= {"hub", "hf-base"} and (method != "hide" or forms >= {"peft", "vllm", "hf"})


def test_only_what_was_written_and_never_synced_is_lost(tmp_path):
    (tmp_path / "old").write_text("old")
    past = time.time() - 100
    os.utime(tmp_path / "old", (past, past))
    since = time.time() - 50
    (tmp_path / "safe").write_text("safe")
    (tmp_path / "torn").write_text("torn")
    synced = tmp_path / "synced.txt"
    synced.write_text(f"{(tmp_path / 'safe').stat().st_ino}\n")
    assert lose_unsynced(tmp_path, synced, since) == 1
    assert [(tmp_path / name).read_text() for name in ("old", "safe", "torn")] == ["old", "safe", ""]


def test_a_plain_rename_ends_as_a_rename(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "_spend", lambda seconds: None)
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_bytes(bytes(range(100)))
    (tmp_path / "a" / "empty").write_bytes(b"")
    soak._plain_rename(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "a").exists() and (tmp_path / "b" / "deep" / "file").read_bytes() == bytes(range(100))
    assert (tmp_path / "b" / "empty").read_bytes() == b""


class Told(World):
    """A world in which every call ends as it is told."""

    def __init__(self, live: Path, answers: str, results: dict):
        self.live = live
        self.told = (answers, results)

    def answers(self, run):
        return self.told[0]

    def results(self, scene):
        return self.told[1]


WANTED = Reference(1.0, 2.0, "before", "after", {"a": 1})
CHANGES = Scene(("rollback", "{live}/work", "1"), "run", "work", asked="work")
MAKES = Scene(("export", "{live}/run", "{live}/work", "--to", "hub"), "", "work")


@pytest.mark.parametrize(
    ("scene", "answers", "results", "code", "wrong"),
    [
        (CHANGES, "before", {"a": 1}, 0, ""),
        (CHANGES, "after", {"a": 1}, 0, ""),
        (CHANGES, "neither", {"a": 1}, 0, "neither those before nor those after"),
        (CHANGES, "after", {"a": 1}, 2, ""),
        (CHANGES, "after", {"a": 2}, 2, "the same call ended with 2"),
        (CHANGES, "after", {"a": 2}, 0, "the end differs: a"),
        (MAKES, "", {"a": 1}, 2, ""),
        (MAKES, "", {}, 0, "is there and not whole"),
    ],
)
def test_verdicts(tmp_path, monkeypatch, scene, answers, results, code, wrong):
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(soak, "call", lambda words: Ended(code, "", "hidecmoe: refused"))
    said = judge(Told(tmp_path, answers, results), scene, WANTED, killed=True)
    assert wrong in said and bool(wrong) == bool(said)


@pytest.mark.slow
def test_three_kills_of_every_command_do_no_harm(tmp_path):
    assert soak.main(["--methods", "hide", "--seeds", "3", "--work", str(tmp_path)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("without", "power"), [("rename", []), ("fsync", ["--power"])])
def test_the_soak_fails_without_what_it_proves(tmp_path, without, power):
    words = ["--methods", "hide", "--seeds", "6", "--only", "rollback", "run", "--without", without, *power]
    assert soak.main([*words, "--work", str(tmp_path)]) == 1
