"""The folder that `hidecmoe init` writes: what the next command does with it, and what is refused."""

import pytest

import hidecmoe_jax as hj
from hidecmoe_jax.cli.main import main


def test_a_project_passes_the_check_and_is_never_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my/project"]) == 0
    said = capsys.readouterr().out
    check = next(line for line in said.splitlines() if line.startswith("check:")).split()[2:]
    assert main(check) == 0
    table = capsys.readouterr().out
    assert "numbers" in table and "sides" in table and table.splitlines()[-1].startswith("ok")
    before = (tmp_path / "my/project/config.yaml").read_bytes()
    assert main(["init", "my/project"]) == 2
    assert "it exists" in capsys.readouterr().err
    assert (tmp_path / "my/project/config.yaml").read_bytes() == before


def test_a_name_with_signs_of_yaml_is_a_folder_like_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = hj.load_config(hj.write_project("a: b #c"))
    assert [spec.folder for spec in config.stream.tasks] == ["a: b #c/tasks/numbers", "a: b #c/tasks/sides"]


@pytest.mark.slow
def test_the_next_command_learns_both_tasks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "project"]) == 0
    following = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next:")).split()[2:]
    assert main(following) == 0
    assert "2 of 2 tasks learned" in capsys.readouterr().out
