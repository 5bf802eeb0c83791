"""A conversion that is stopped goes on and ends the same, mixes nothing, and never touches what is not its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import convert_world as world
import numpy as np
import pytest
from safetensors.numpy import load_file

import hidecmoe_jax
from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import BusyError, CheckpointError
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.checkpoints.check import Row
from hidecmoe_jax.port.checkpoints.convert import convert
from hidecmoe_jax.storage.manifest import verify

PACKAGE_PATH = Path(hidecmoe_jax.__file__).resolve().parents[1]
KEY = "language_model.model.layers.1.self_attn.q_proj.weight"
LEAF = "decoder/layers/q_proj/kernel"

KILLED = """
import sys
from pathlib import Path
from hidecmoe_jax.port.checkpoints.convert import convert
source, clip, target, layout = sys.argv[1:]
convert(Path(source), Path(target), clip=Path(clip), layout=layout)
"""


@pytest.mark.parametrize(
    ("place", "layout"),
    [
        # Between two leaves of one file a conversion is stopped below, and gone on with, in this process.
        pytest.param(f"convert_leaf:{LEAF}", "file", marks=pytest.mark.slow),
        ("convert_piece:projector/linear1/kernel", "sharded"),
        pytest.param("convert_rename", "file", marks=pytest.mark.slow),
    ],
)
def test_a_killed_conversion_goes_on_and_ends_the_same(place, layout, hub, clip, tmp_path):
    words = [sys.executable, "-c", KILLED, str(hub), str(clip), str(tmp_path / "out"), layout]
    settings = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    env = settings | {"PATH": "", "HIDECMOE_CRASH_AT": place, "PYTHONPATH": str(PACKAGE_PATH)}
    assert subprocess.run(words, env=env, check=False, capture_output=True, timeout=300).returncode == 137
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="--resume"):
        convert(hub, tmp_path / "out", clip=clip, layout=layout)
    convert(hub, tmp_path / "out", clip=clip, layout=layout, resume=True)
    convert(hub, tmp_path / "whole", clip=clip)
    verify(tmp_path / "out")
    mine, whole = (trees.flatten(load_model(tmp_path / name).params) for name in ("out", "whole"))
    assert all(np.array_equal(mine[path], whole[path]) for path in whole)


def stopped(monkeypatch, *given, **options) -> None:
    """A conversion that is interrupted after one of its leaves, everything before it synced."""

    def stop(name, detail=""):
        if (name, detail) == ("convert_leaf", LEAF):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hidecmoe_jax.port.checkpoints.staging.crash_point", stop)
        patched.setattr("hidecmoe_jax.port.checkpoints.staging.SYNC_EVERY", 1)
        with pytest.raises(KeyboardInterrupt):
            convert(*given, **options)


def test_resuming_redoes_a_damaged_leaf_and_refuses_other_sources(hub, clip, tmp_path, monkeypatch):
    stopped(monkeypatch, hub, tmp_path / "out", clip=clip)
    staged = tmp_path / "out.partial" / "model" / "model.safetensors"
    raw = bytearray(staged.read_bytes())
    header, numbers = world.header_of(staged)
    base = len(raw) - len(numbers)
    raw[base + header[LEAF]["data_offsets"][0]] ^= 0xFF
    staged.write_bytes(raw)
    with pytest.raises(CheckpointError, match="something else"):
        convert(hub, tmp_path / "out", clip=clip, dtype="bfloat16", resume=True)
    convert(hub, tmp_path / "out", clip=clip, resume=True)
    state = load_file(world.weights(hub))
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")[LEAF][1], state[KEY].T)


def other_weights(file: Path) -> None:
    """Other numbers of the same size, under the same time of change."""
    before = file.stat()
    world.change(file, lambda state: state.update({KEY: state[KEY] + 1}))
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_two_states_of_a_source_are_never_mixed(hub, clip, tmp_path, monkeypatch):
    stopped(monkeypatch, hub, tmp_path / "out", clip=clip)
    other_weights(world.weights(hub))
    with pytest.raises(CheckpointError, match="something else"):
        convert(hub, tmp_path / "out", clip=clip, resume=True)
    assert (tmp_path / "out.partial" / "partial.json").is_file()

    def swap(name, detail=""):
        if (name, detail) == ("convert_leaf", LEAF):
            other_weights(world.weights(hub))

    monkeypatch.setattr("hidecmoe_jax.port.checkpoints.staging.crash_point", swap)
    with pytest.raises(CheckpointError, match="changed while it was converted"):
        convert(hub, tmp_path / "new", clip=clip)
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.partial").exists()


def test_two_folders_of_one_name_are_recorded_each(made, tmp_path):
    towers = []
    for kind in ("vision", "text"):
        towers.append(tmp_path / kind / "clip")
        shutil.copytree(made / f"clip_{kind}_plain", towers[-1])
    convert(made / "hub", tmp_path / "out", clip=towers)
    _, *pair = json.loads((tmp_path / "out" / "conversion.json").read_text())["sources"]
    wanted = [hashlib.sha256((tower / "model.safetensors").read_bytes()).hexdigest() for tower in towers]
    assert [one["files"]["model.safetensors"]["sha256"] for one in pair] == wanted


def test_a_resumed_conversion_lets_nothing_through_that_the_flag_is_gone_for(hub, clip, tmp_path, monkeypatch):
    world.change(world.weights(hub), lambda state: state[KEY].fill(np.nan))
    stopped(monkeypatch, hub, tmp_path / "out", clip=clip, allow_nonfinite=True)
    with pytest.raises(CheckpointError, match="not finite"):
        convert(hub, tmp_path / "out", clip=clip, resume=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_no_conversion_made_is_left_alone(resume, hub, clip, tmp_path):
    mine = tmp_path / "out.partial" / "thesis.tex"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(CheckpointError, match="no conversion made it"):
        convert(hub, tmp_path / "out", clip=clip, resume=resume)
    assert mine.read_text() == "years of work" and not (tmp_path / "out").exists()


def test_work_that_was_stopped_while_it_was_sealed_is_gone_on_with(hub, clip, tmp_path, monkeypatch):
    def stop(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("hidecmoe_jax.port.checkpoints.attempt.write_manifest", stop)
        convert(hub, tmp_path / "out", clip=clip)
    monkeypatch.setattr(
        "hidecmoe_jax.port.checkpoints.staging._write", lambda *given: pytest.fail("a leaf was written again")
    )
    convert(hub, tmp_path / "out", clip=clip, resume=True)
    verify(tmp_path / "out")
    assert {"partial.json", "journal.jsonl"}.isdisjoint(path.name for path in (tmp_path / "out").iterdir())
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_target_that_another_process_makes_is_busy_to_the_last(resume, hub, clip, tmp_path, monkeypatch):
    """The second one comes when the first is sealed and about to be renamed."""
    said = []

    def second(name, detail=""):
        with pytest.raises(BusyError) as caught:
            convert(hub, tmp_path / "out", clip=clip, resume=resume)
        said.append(str(caught.value))

    monkeypatch.setattr("hidecmoe_jax.port.checkpoints.attempt.crash_point", second)
    convert(hub, tmp_path / "out", clip=clip)
    verify(tmp_path / "out")
    assert str(os.getpid()) in said[0] and "another folder" in said[0] and "--out" not in said[0]


def test_only_what_answers_as_its_source_gets_its_name(hub, clip, tmp_path):
    def judge(measured):
        return lambda folder: [Row("logits", measured, 1e-4, len(load_model(folder).params))]

    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="does not answer as its source"):
        convert(hub, out, clip=clip, check=judge(0.5))
    assert not out.exists() and not list(tmp_path.rglob("MANIFEST.json"))
    assert json.loads((tmp_path / "out.partial/model/conversion.json").read_text())["checked"] == "failed"
    with pytest.raises(CheckpointError, match="--check"):
        convert(hub, out, clip=clip, resume=True)
    report = convert(hub, out, clip=clip, resume=True, check=judge(0.0))
    assert report.checked == json.loads((out / "conversion.json").read_text())["checked"] == "passed"
    verify(out)
