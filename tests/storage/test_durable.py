"""What is written is durable before it has its name, and its name is durable afterwards: seen by the system calls."""

import os
import stat

import numpy as np
import pytest

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.progress import Progress
from hidecmoe_jax.storage.files import remove_inside, write_bytes, write_json


@pytest.fixture
def calls(monkeypatch):
    """Every fsync and rename from here on: ("file", size), ("folder", inode) or ("rename", new name)."""
    seen = []

    def fsync(handle):
        status = os.fstat(handle)
        is_folder = stat.S_ISDIR(status.st_mode)
        seen.append(("folder", status.st_ino) if is_folder else ("file", status.st_size))

    def watched(rename):
        def call(old, new, **rest):
            rename(old, new, **rest)
            seen.append(("rename", os.path.basename(new)))

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", watched(os.replace))
    monkeypatch.setattr(os, "rename", watched(os.rename))
    return seen


def test_a_small_file_is_synced_renamed_and_its_folder_synced(tmp_path, calls):
    write_bytes(tmp_path / "a.json", b"12345")
    assert calls == [("file", 5), ("rename", "a.json"), ("folder", tmp_path.stat().st_ino)]


def test_a_file_whose_rename_fails_stays_what_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    whole = path.read_bytes()

    def refuse(old, new):
        raise OSError("no rename")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no rename"):
        write_json(path, {"a": 2})
    assert path.read_bytes() == whole


def test_a_task_has_its_name_when_all_of_it_is_durable_and_then_the_name_is(tmp_path, calls):
    Ledger(tmp_path / "seed_0").commit(0, "birds", {"experts": {"w": np.ones(3, np.float32)}}, meta={})
    # Orbax gives the folder that name first, in another place.
    place = len(calls) - 1 - calls[::-1].index(("rename", "000_birds"))
    files = [path for path in (tmp_path / "seed_0" / "tasks" / "000_birds").rglob("*") if path.is_file()]
    synced = [size for kind, size in calls[:place] if kind == "file"]
    assert all(path.stat().st_size in synced for path in files)
    assert calls[place + 1] == ("folder", (tmp_path / "seed_0" / "tasks").stat().st_ino)


def test_a_checkpoint_within_a_task_has_its_name_in_the_same_order(tmp_path, calls):
    folder = Progress(tmp_path / "progress").save(4, {"leaves": np.ones(3, np.float32)}, meta={})
    place = calls.index(("rename", folder.name))
    assert any(kind == "file" for kind, _ in calls[:place])
    assert calls[place + 1] == ("folder", folder.parent.stat().st_ino)


def test_nothing_is_deleted_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(outside)
    with pytest.raises(CheckpointError, match="through a symbolic link"):
        remove_inside(tmp_path / "run", tmp_path / "run" / "link" / "a")
    assert (outside / "a").exists()
