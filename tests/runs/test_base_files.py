"""A base is more than its weights: its settings and its tokenizer are part of what a run was learned on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_base

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.runs.base_files import base_files, require_base_files
from hidecmoe_jax.runs.config import Base
from hidecmoe_jax.runs.identity import changes_of, open_run
from hidecmoe_jax.storage.manifest import NAME, write_manifest


@pytest.fixture
def base(tmp_path) -> Base:
    return Base(path=str(write_base(tmp_path / "base")))


def edited(base: Base, name: str, old: str, new: str) -> None:
    path = Path(base.path) / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_settings_and_tokenizer_of_a_base_are_recorded_and_compared(base, tmp_path):
    recorded = base_files(base)
    require_base_files(base, recorded, tmp_path)
    edited(base, "config.json", "\n", " \n")
    assert base_files(base) == recorded, "spaces are no setting"
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["decoder"]["epsilon"] = 0.5
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json in .*base changed or went"):
        require_base_files(base, recorded, tmp_path)
    config["dtype"] = "bfloat16"
    now = base_files(base)
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert base_files(base) == now, "a run states its dtype itself"


def test_a_run_goes_on_with_the_base_files_that_it_began_with(base, tmp_path):
    identity = {"base": "ab", "base_files": base_files(base), "tasks": []}
    open_run(tmp_path / "run", identity, resume=False, overwrite=False)
    edited(base, "tokenizer.json", '"added_tokens"', ' "added_tokens"')
    with pytest.raises(CheckpointError, match=r"base_files\.tokenizer\.json"):
        changes_of(tmp_path / "run", identity | {"base_files": base_files(base)})
    # A run of before this was recorded goes on, and records it then.
    open_run(tmp_path / "old", {"base": "ab", "tasks": []}, resume=False, overwrite=False)
    assert changes_of(tmp_path / "old", identity) == []


def test_a_base_that_has_lost_its_manifest_is_refused(base, tmp_path):
    """Without it nobody would notice that a weight has changed."""
    folder = Path(base.path)
    identity = {"base": "ab", "base_files": base_files(base), "tasks": []}
    open_run(tmp_path / "old", identity, resume=False, overwrite=False)
    write_manifest(folder)
    require_base_files(base, identity["base_files"], tmp_path)
    sealed = identity | {"base_files": base_files(base)}
    assert changes_of(tmp_path / "old", sealed) == [], "a run of before goes on"
    open_run(tmp_path / "run", sealed, resume=False, overwrite=False)
    (folder / NAME).unlink()
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json in .*base changed or went"):
        require_base_files(base, sealed["base_files"], tmp_path)
    with pytest.raises(CheckpointError, match=r"base_files\.MANIFEST\.json"):
        changes_of(tmp_path / "run", identity)
