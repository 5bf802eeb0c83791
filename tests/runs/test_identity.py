"""Who a run is: the same run goes on, another one is refused with the difference named."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from hidecmoe_jax.core.errors import BusyError, CheckpointError, ConfigError
from hidecmoe_jax.runs.config import RunConfig, to_mapping
from hidecmoe_jax.runs.identity import open_run, read_run, replace
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.storage.lock import writer_lock

WHO = {
    "method": "hide",
    "base": "ab" * 32,
    "seed": 0,
    "tasks": ["digits", "counting"],
    "config": {"method": {"rank": 8}, "train": {"rate": 1e-3}},
    "fingerprints": {"digits": {"json": "11", "images": "22"}, "counting": {"json": "33", "images": "44"}},
}


def one_task(ledger: Ledger) -> None:
    ledger.commit(0, "digits", {"experts": {"w": np.ones(2)}}, meta={})


def changed(path: str, value) -> dict:
    who = json.loads(json.dumps(WHO))
    *above, last = path.split(".")
    node = who
    for key in above:
        node = node[key]
    node[last] = value
    return who


def test_a_run_goes_on_as_the_same_run(tmp_path):
    assert open_run(tmp_path / "r", WHO, resume=False, overwrite=False) is False
    assert open_run(tmp_path / "r", WHO, resume=True, overwrite=False, session={"jax": "1"}) is True
    run = read_run(tmp_path / "r")
    assert run["identity"] == WHO and run["changes"] == [] and run["sessions"][1]["jax"] == "1"


@pytest.mark.parametrize(
    "path, value", [("config.method.rank", 16), ("method", "sequential"), ("seed", 1), ("tasks", ["digits"])]
)
def test_a_changed_setting_is_refused_with_both_values(tmp_path, path, value):
    open_run(tmp_path, WHO, resume=False, overwrite=False)
    with pytest.raises(CheckpointError) as caught:
        open_run(tmp_path, changed(path, value), resume=True, overwrite=False)
    assert path in caught.value.why and repr(value) in caught.value.why and "was" in caught.value.why
    assert f"--allow-config-change={path}" in caught.value.remedy
    assert read_run(tmp_path)["identity"] == WHO


def test_a_setting_that_is_younger_than_the_run_counts_as_its_default(tmp_path):
    config = to_mapping(RunConfig())
    del config["stream"]
    young, old = {"config": config}, json.loads(json.dumps({"config": config}))
    del old["config"]["method"]["gate"]["foreign"], old["config"]["evaluate"]["writing"]["unknown"]
    open_run(tmp_path / "r", old, resume=False, overwrite=False)
    assert open_run(tmp_path / "r", young, resume=True, overwrite=False)
    assert read_run(tmp_path / "r")["changes"] == []
    config["method"]["gate"]["foreign"] = 0.1
    open_run(tmp_path / "s", old, resume=False, overwrite=False)
    with pytest.raises(CheckpointError, match="config.method.gate.foreign: was None, now 0.1"):
        open_run(tmp_path / "s", young, resume=True, overwrite=False)


def test_another_order_of_tasks_is_refused(tmp_path):
    open_run(tmp_path, WHO, resume=False, overwrite=False)
    with pytest.raises(CheckpointError, match=r"tasks.0: was 'digits', now 'counting'"):
        open_run(tmp_path, changed("tasks", ["counting", "digits"]), resume=True, overwrite=False)


def test_an_allowed_change_is_recorded_and_allows_nothing_else(tmp_path):
    open_run(tmp_path, WHO, resume=False, overwrite=False)
    new = changed("config.train.rate", 1e-4)
    with pytest.raises(CheckpointError, match="config.train.rate"):
        open_run(tmp_path, new, resume=True, overwrite=False, allow=["config.method", "config.train.rat"])
    assert open_run(tmp_path, new, resume=True, overwrite=False, allow=["config.train"])
    change = read_run(tmp_path)["changes"][0]
    assert (change["field"], change["old"], change["new"]) == ("config.train.rate", 1e-3, 1e-4)
    assert open_run(tmp_path, new, resume=True, overwrite=False)


def test_changed_data_is_refused_with_the_fingerprint_that_differs(tmp_path):
    open_run(tmp_path, WHO, resume=False, overwrite=False)
    with pytest.raises(CheckpointError, match=r"fingerprints.counting.images: was '44', now '45'"):
        open_run(tmp_path, changed("fingerprints.counting.images", "45"), resume=True, overwrite=False)


@pytest.mark.parametrize("path, value", [("method", "cmoe"), ("base", "cd" * 32), ("tasks", ["letters"])])
def test_a_run_of_another_method_base_or_stream_is_refused(tmp_path, path, value):
    open_run(tmp_path, WHO, resume=False, overwrite=False)
    with pytest.raises(CheckpointError, match=f"another run.*\n.*\n.*{path}: was"):
        open_run(tmp_path, changed(path, value), resume=True, overwrite=False)


def test_resuming_nothing_is_an_error(tmp_path):
    for folder in [tmp_path, tmp_path / "nowhere"]:
        with pytest.raises(CheckpointError, match="nothing to resume"):
            open_run(folder, WHO, resume=True, overwrite=False)
    assert not (tmp_path / "nowhere").exists()


def test_an_existing_run_needs_one_of_two_flags(tmp_path):
    run = tmp_path / "run"
    with writer_lock(run):
        open_run(run, WHO, resume=False, overwrite=False)
        one_task(Ledger(run / "seed_0"))
        (run / "notes.txt").write_text("mine")
        with pytest.raises(ConfigError, match="already exists") as caught:
            open_run(run, WHO, resume=False, overwrite=False)
        assert "--overwrite" in str(caught.value) and "--resume" in str(caught.value)
        with pytest.raises(ConfigError, match="exclude each other"):
            open_run(run, WHO, resume=True, overwrite=True)
        with pytest.raises(BusyError), writer_lock(run):
            pytest.fail("two writers")
        assert open_run(run, changed("seed", 3), resume=False, overwrite=True) is False
    assert read_run(run)["identity"]["seed"] == 3 and Ledger(run / "seed_0").tasks() == ()
    assert len(Ledger(run / "replaced_000" / "seed_0").tasks()) == 1
    assert (run / "notes.txt").read_text() == "mine"


def test_nothing_that_was_found_out_about_the_old_run_stays_beside_the_new_one(tmp_path):
    open_run(tmp_path, WHO, resume=False, overwrite=False)
    told = ["control", "cka", "cka_legacy", "edits", "facts", "foreign", "merge", "overlap", "report", "retire"]
    for name in told:
        (tmp_path / f"{name}.json").write_text("{}")
    open_run(tmp_path, WHO, resume=False, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replaced_000", "run.json"]
    assert {f"{name}.json" for name in told} < {path.name for path in (tmp_path / "replaced_000").iterdir()}


def test_a_folder_that_is_no_run_is_never_touched(tmp_path):
    (tmp_path / "figures").mkdir()
    for overwrite in [False, True]:
        with pytest.raises(ConfigError, match="holds no run"):
            open_run(tmp_path, WHO, resume=False, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_overwriting_moves_links_as_links_and_refuses_a_linked_run(tmp_path):
    precious, run = tmp_path / "precious", tmp_path / "run"
    one_task(Ledger(precious))
    open_run(run, WHO, resume=False, overwrite=False)
    (run / "seed_0").symlink_to(precious)
    open_run(run, WHO, resume=False, overwrite=True)
    assert (run / "replaced_000" / "seed_0").is_symlink() and len(Ledger(precious).tasks()) == 1
    (tmp_path / "alias").symlink_to(run)
    with pytest.raises(CheckpointError, match="symbolic link"):
        replace(tmp_path / "alias")


def test_a_damaged_or_newer_run_file_is_refused(tmp_path):
    open_run(tmp_path, WHO, resume=False, overwrite=False)
    text = (tmp_path / "run.json").read_text()
    for broken, words in [
        (text[:-20], "damaged"),
        ("{}", "fields are missing"),
        ('{"format": 9}', "newer version"),
    ]:
        (tmp_path / "run.json").write_text(broken)
        with pytest.raises(CheckpointError, match=words):
            open_run(tmp_path, WHO, resume=True, overwrite=False)
    shutil.rmtree(tmp_path)
    with pytest.raises(CheckpointError, match="this is no run"):
        read_run(tmp_path)


def test_other_devices_than_before_are_said_and_recorded(tmp_path, capsys):
    one, eight = {"devices": ["cpu"]}, {"devices": ["cpu"] * 8}
    open_run(tmp_path, WHO, resume=False, overwrite=False, session=one)
    open_run(tmp_path, WHO, resume=True, overwrite=False, session=one)
    assert capsys.readouterr().err == ""
    open_run(tmp_path, WHO, resume=True, overwrite=False, session=eight)
    assert "goes on on 8 x cpu, before it had 1 x cpu" in capsys.readouterr().err
    assert [session["devices"] for session in read_run(tmp_path)["sessions"]] == [["cpu"], ["cpu"], ["cpu"] * 8]
