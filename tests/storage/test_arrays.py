"""Arrays in a sealed folder: what the list of arrays says is compared with the arrays, whatever the manifest says."""

import json

import numpy as np
import pytest

from hidecmoe_jax.core.errors import CheckpointError, NumericsError
from hidecmoe_jax.storage import arrays
from hidecmoe_jax.storage.arrays import META, read_store, write_store
from hidecmoe_jax.storage.manifest import NAME, write_manifest

GROUPS = {"experts": {"a/q_proj": np.arange(6, dtype=np.float32).reshape(2, 3), "owner": np.arange(3, dtype=np.int32)}}
CHANGES = {
    "sha256": lambda entry: entry["sha256"].replace(entry["sha256"][0], "f" if entry["sha256"][0] != "f" else "0"),
    "dtype": lambda entry: "int32",
    "shape": lambda entry: [3, 2],
}


def sealed_again(folder):
    (folder / NAME).unlink()
    write_manifest(folder)


@pytest.mark.parametrize("key", CHANGES)
def test_a_list_that_disagrees_with_the_arrays_is_refused_though_the_seal_is_whole(tmp_path, key):
    folder = tmp_path / "task"
    write_store(folder, GROUPS, {"n": 1})
    facts = json.loads((folder / META).read_text())
    entry = facts["arrays"]["experts"]["a/q_proj"]
    entry[key] = CHANGES[key](entry)
    (folder / META).write_text(json.dumps(facts))
    sealed_again(folder)
    with pytest.raises(CheckpointError) as caught:
        read_store(folder)
    assert caught.value.exit_code == 4 and str(folder) in caught.value.where


def test_what_is_stored_otherwise_than_it_was_given_is_no_checkpoint(tmp_path, monkeypatch):
    save = arrays._save

    def rounding(folder, groups):
        save(folder, {group: {path: leaf + leaf.dtype.type(1) for path, leaf in flat.items()}
                      for group, flat in groups.items()})  # fmt: skip

    monkeypatch.setattr(arrays, "_save", rounding)
    with pytest.raises(CheckpointError, match="reads back different") as caught:
        write_store(tmp_path / "task", GROUPS, {})
    assert "experts/a/q_proj" in caught.value.why


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_makes_no_folder(tmp_path, bad):
    leaf = np.ones(4, np.float32)
    leaf[2] = bad
    with pytest.raises(NumericsError) as caught:
        write_store(tmp_path / "task", {"memory": {"mean": leaf}}, {})
    assert caught.value.exit_code == 5 and caught.value.where == "memory/mean"
    assert not (tmp_path / "task").exists()
