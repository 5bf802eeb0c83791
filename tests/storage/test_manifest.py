"""The seal on a folder: every byte of every file counts, and the message says which one is wrong."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from hidecmoe_jax.core.errors import CheckpointError, ResourceError
from hidecmoe_jax.storage.files import check_space, read_json, remove_inside, write_json
from hidecmoe_jax.storage.manifest import NAME, faults, verify, write_manifest


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "task"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)))
    (folder / "deep" / "er" / "b.bin").write_bytes(b"hello")
    (folder / "empty").write_bytes(b"")
    write_manifest(folder)
    return folder


def test_manifest_lists_every_file_with_size_and_sha256(sealed):
    files = json.loads((sealed / NAME).read_text())["files"]
    assert list(files) == ["a.bin", "deep/er/b.bin", "empty"]
    assert files["deep/er/b.bin"] == {"size": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}
    assert verify(sealed) == json.loads((sealed / NAME).read_text())["digest"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "is missing": lambda path: path.unlink(),
    "is truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "truncated: 0 bytes": lambda path: path.write_bytes(b""),
    "has changed": flip,
    "is longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


@pytest.mark.parametrize("words", DAMAGE)
@pytest.mark.parametrize("name", ["a.bin", "deep/er/b.bin"])
def test_any_damage_is_found_and_named(sealed, name, words):
    DAMAGE[words](sealed / name)
    with pytest.raises(CheckpointError) as caught:
        verify(sealed, remedy="use step 7")
    assert name in caught.value.why and words in caught.value.why
    assert caught.value.remedy == "use step 7" and caught.value.exit_code == 4


def test_extra_files_links_and_missing_folders_are_refused(sealed, tmp_path):
    (sealed / "more").write_text("x")
    with pytest.raises(CheckpointError, match="more is extra"):
        verify(sealed)
    (sealed / "more").unlink()
    (sealed / "link").symlink_to(sealed / "a.bin")
    with pytest.raises(CheckpointError, match="symbolic link"):
        verify(sealed)
    with pytest.raises(CheckpointError, match="no such folder"):
        verify(tmp_path / "nowhere")


def test_every_flipped_byte_of_the_manifest_itself_is_found(sealed):
    whole = (sealed / NAME).read_bytes()
    verify(sealed)
    for place in range(0, len(whole), 7):
        for bit in (0, 5):
            broken = bytearray(whole)
            broken[place] ^= 1 << bit
            (sealed / NAME).write_bytes(broken)
            try:
                same = json.loads(broken) == json.loads(whole)
            except ValueError:
                same = False
            if same:  # white space turned into other white space carries nothing
                continue
            with pytest.raises(CheckpointError):
                verify(sealed)


def test_a_newer_manifest_is_refused_as_such(sealed):
    manifest = json.loads((sealed / NAME).read_text()) | {"format": 99}
    (sealed / NAME).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="newer version"):
        verify(sealed)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match="expected an object"):
        read_json(path)


def test_room_is_checked_before_anything_is_written(tmp_path):
    check_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(ResourceError) as caught:
        check_space(tmp_path, 2**60)
    assert f"{2**60:,} bytes are needed" in str(caught.value) and "are free" in str(caught.value)
    assert caught.value.exit_code == 6


def test_deletion_stays_inside_and_follows_no_link(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "progress" / "old").mkdir(parents=True)
    other.mkdir()
    (other / "precious").write_text("x")
    (run / "progress" / "old" / "link").symlink_to(other)
    (run / "out").symlink_to(other)
    refused = [run, tmp_path, other, run / ".." / "other" / "precious", run / "out", run / "out" / "precious"]
    for path in refused:
        with pytest.raises(CheckpointError, match="refused to delete"):
            remove_inside(run, path)
    alias = tmp_path / "alias"
    alias.symlink_to(run)
    with pytest.raises(CheckpointError, match="symbolic link"):
        remove_inside(alias, alias / "progress")
    remove_inside(run, run / "progress" / "old")
    assert not (run / "progress" / "old").exists() and (other / "precious").read_text() == "x"


def test_a_pipe_is_no_file_of_a_folder(tmp_path):
    (tmp_path / "a").write_text("a")
    write_manifest(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="what is no file") as caught:
        faults(tmp_path)
    assert str(tmp_path / "pipe") == caught.value.where
