"""What a run owns is as it was written, or every command that reads it says so and ends with an error."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from runs_world import make_world, outcome

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.runs.config import config_of
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.results import rebuild
from hidecmoe_jax.runs.stream_loop import evaluate_run, learn
from hidecmoe_jax.studies.edit_trial import restore, retire


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("seals")
    config = make_world(root)
    run = learn(replace(config, evaluate=replace(config.evaluate, zero_shot=False)), root / "run")
    retire(run, "birds", allowed=100.0, commit=True)
    return root, run


@pytest.fixture
def run(world, tmp_path) -> Path:
    return Path(shutil.copytree(world[1], tmp_path / "run"))


def sealed_files(run: Path) -> list[Path]:
    return [path for path in RunFolder(run).rewritten() if path.stat().st_size]


def digit(content: bytes) -> bytes:
    """The content with its last digit that is no part of a word changed."""
    place = [match.start() for match in re.finditer(rb"(?<=[ :.])\d", content)][-1]
    return content[:place] + (b"1" if content[place : place + 1] != b"1" else b"2") + content[place + 1 :]


DAMAGE = {
    "digit": digit,
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "gone": lambda content: None,
}


def harm(path: Path, kind: str) -> None:
    content = DAMAGE[kind](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_any_file_is_listed_by_verify_and_refused_by_what_reads_it(run, capsys, kind):
    assert main(["verify", str(run)]) == 0
    files = sealed_files(run)
    names = [path.relative_to(run).as_posix() for path in files]
    assert {"config.yaml", "edits.json", "facts.json", "report.json", "seed_0/cells.json"} < set(names)
    for path, name in zip(files, names, strict=True):
        whole = path.read_bytes()
        harm(path, kind)
        capsys.readouterr()
        assert main(["verify", str(run), "--json"]) == 4
        parts = json.loads(capsys.readouterr().out)["parts"]
        assert [part["name"] for part in parts if part["state"] == "damaged"] == [name]
        # The report reads all of them but what it writes, and of the answers those of the last row.
        if name != "report.json" and "row_001" not in name and ".named." not in name:
            with pytest.raises(CheckpointError, match=re.escape(name)):
                rebuild(run)
        path.write_bytes(whole)
    rebuild(run)


def test_a_changed_digit_of_the_config_is_refused_and_another_place_of_the_base_is_not(run):
    path = RunFolder(run).config
    text = path.read_text()
    assert "temperature: 0.0" in text
    path.write_text(text.replace("temperature: 0.0", "temperature: 0.5"))
    with pytest.raises(CheckpointError, match="changed"):
        config_of(run)
    path.write_text(text.replace("/base", "/elsewhere"))
    assert config_of(run).base.path.endswith("/elsewhere")


def as_before_seals(run: Path) -> Path:
    """The run as a version without seals has written it."""
    (run / "seal.json").unlink()
    record = json.loads((run / "run.json").read_text())
    del record["seal"], record["digest"]
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_a_run_of_before_seals_is_read_and_sealed_by_its_next_writer(world, run, capsys):
    as_before_seals(run)
    assert main(["verify", str(run)]) == 0
    assert "version without seals" in capsys.readouterr().out
    before = outcome(run)
    evaluate_run(run)
    assert outcome(run) == before == outcome(world[1])
    assert main(["verify", str(run)]) == 0 and "not sealed" not in capsys.readouterr().out
    harm(RunFolder(run).edits, "digit")
    with pytest.raises(CheckpointError, match="edits.json"):
        restore(run)


@pytest.mark.parametrize("change", ["temperature", "half"])
def test_the_config_of_a_run_of_before_seals_is_the_one_in_its_identity(run, change):
    path = RunFolder(as_before_seals(run)).config
    plain = yaml.safe_load(path.read_text())
    if change == "temperature":
        plain["evaluate"]["writing"]["temperature"] = 0.5
        words = "evaluate.writing.temperature: learned with 0.0, now 0.5"
    else:
        plain = dict(list(plain.items())[: len(plain) // 2])
        words = "seeds is missing"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    with pytest.raises(CheckpointError, match=words):
        config_of(run)


def test_a_seal_that_is_gone_is_no_run_of_before_seals(run, capsys):
    (run / "seal.json").unlink()
    with pytest.raises(CheckpointError, match=r"seal\.json is gone"):
        config_of(run)
    assert main(["verify", str(run)]) == 4 and "seal.json is gone" in capsys.readouterr().out


def test_signed_files_of_a_run_in_each_others_place_are_refused(run, capsys):
    record = run / "run.json"
    seal = run / "seal.json"
    text = record.read_text()
    record.write_text(seal.read_text())
    seal.write_text(text)
    with pytest.raises(CheckpointError):
        config_of(run)
    assert main(["verify", str(run)]) == 4 and str(run) in capsys.readouterr().out


def test_files_that_were_changed_on_purpose_are_accepted_but_not_a_setting(world, run):
    harm(RunFolder(run).seed(0).cells, "gone")
    assert main(["verify", str(run)]) == 4
    assert main(["verify", str(run), "--accept"]) == 0
    evaluate_run(run)
    assert outcome(run)["cells"].keys() == outcome(world[1])["cells"].keys()
    path = RunFolder(run).config
    path.write_text(path.read_text().replace("temperature: 0.0", "temperature: 0.5"))
    assert main(["verify", str(run), "--accept"]) == 4
