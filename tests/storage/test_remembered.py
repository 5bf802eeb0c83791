"""A sealed folder is hashed once, and again when anything about its files has changed."""

from __future__ import annotations

import os

import pytest

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.storage import manifest
from hidecmoe_jax.storage.remembered import verify_once


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.bin").write_bytes(bytes(range(200)))
    (folder / "config.json").write_text('{"epsilon": 1e-5}')
    return folder


@pytest.fixture
def hashed(monkeypatch) -> list:
    calls, verify = [], manifest.verify

    def counted(folder, **options):
        calls.append(folder)
        return verify(folder, **options)

    monkeypatch.setattr(manifest, "verify", counted)
    return calls


def test_a_folder_is_hashed_once_until_a_file_changes(folder, hashed):
    verify_once(folder, remedy="again")
    assert hashed == [], "a folder without a manifest says nothing about its files"
    manifest.write_manifest(folder)
    for _ in range(3):
        verify_once(folder, remedy="again")
    assert len(hashed) == 1
    about = (folder / "config.json").stat()
    (folder / "config.json").write_text('{"epsilon": 5e-1}')
    with pytest.raises(CheckpointError, match=r"config\.json has changed"):
        verify_once(folder, remedy="again")
    (folder / "config.json").write_text('{"epsilon": 1e-5}')
    os.utime(folder / "config.json", ns=(about.st_atime_ns, about.st_mtime_ns))
    verify_once(folder, remedy="again")


@pytest.mark.parametrize("name", ["model.bin", "config.json", "MANIFEST.json"])
def test_what_failed_is_not_remembered_and_damage_after_a_check_is_found(folder, name):
    manifest.write_manifest(folder)
    verify_once(folder, remedy="again")
    whole = (folder / name).read_bytes()
    # The same size, in a new file as a copy makes it.
    (folder / name).unlink()
    (folder / name).write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    for _ in range(2):
        with pytest.raises(CheckpointError):
            verify_once(folder, remedy="again")


def test_a_cache_that_cannot_be_written_costs_time_alone(folder, hashed, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    manifest.write_manifest(folder)
    for _ in range(2):
        verify_once(folder, remedy="again")
    assert len(hashed) == 2
