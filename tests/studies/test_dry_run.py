"""`run --dry-run`: what is missing on disk, named one by one, and a plan; nothing is trained or written."""

import json
from dataclasses import replace

import pytest
from tiny import mapping, write_base, write_task

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError, ResourceError
from hidecmoe_jax.runs import stream_loop
from hidecmoe_jax.runs.config import from_mapping
from hidecmoe_jax.studies import dry_run as module
from hidecmoe_jax.studies.dry_run import dry_run, dry_run_lines


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A base, two tasks of 8 and 20 records, their config, and plans that only keep their sizes."""
    folders = [write_task(tmp_path / "birds", "a wren"), write_task(tmp_path / "fish", "a carp", train=20, test=6)]
    monkeypatch.setattr(module, "make_plan", lambda subject, machine: (subject, machine))
    monkeypatch.setattr(module, "plan_lines", lambda made: [f"{made[0].work.records} {made[0].work.questions}"])
    config = from_mapping(mapping(write_base(tmp_path / "base"), "hide", tasks=folders))
    return tmp_path, config


def test_nothing_is_missing_and_the_plan_has_the_sizes_on_disk(world):
    _, config = world
    found = dry_run(config)
    assert found.exit_code == 0 and not found.missing
    # A tenth of the training records becomes the validation split.
    assert [dict(task.counts) for task in found.tasks] == [
        {"train": 7, "test": 4, "val": 1},
        {"train": 18, "test": 6, "val": 2},
    ]
    assert found.plan == ("12 5",)
    assert "nothing is missing" in "\n".join(dry_run_lines(found, config))
    limited = replace(config, stream=replace(config.stream, limit_train=10, limit_test=3))
    assert dry_run(limited).plan == ("8 3",)


def test_every_missing_folder_file_picture_and_base_is_named(world):
    root, config = world
    (root / "birds" / "test.json").unlink()
    items = json.loads((root / "fish" / "train.json").read_text())
    for number in (1, 4):
        (root / "fish" / items[number]["image"]).unlink()
    specs = (*config.stream.tasks, replace(config.stream.tasks[0], folder=str(root / "gone"), val="val.json"))
    specs = (replace(specs[0], test="other.json"), replace(specs[1], val="none.json"), specs[2])
    broken = replace(config, stream=replace(config.stream, tasks=specs))
    found = dry_run(broken)
    lines = "\n".join(dry_run_lines(found, broken))
    assert found.exit_code == DataError.exit_code
    for text in (
        "test file",
        "other.json: it does not exist",
        "none.json",
        "2 are not there: images/1.png, images/4.png",
    ):
        assert text in lines
    assert f"task folder {root / 'gone'}: it does not exist" in lines and len(found.missing) == 4
    for name in ("model.safetensors", "tokenizer.json"):
        (root / "base" / name).rename(root / name)
        only_base = dry_run(replace(broken, stream=replace(config.stream, tasks=(config.stream.tasks[1],))))
        assert only_base.base is not None and name in only_base.base
        (root / name).rename(root / "base" / name)
    (root / "fish" / "train.json").write_text(json.dumps([items[0]] * 3))
    assert dry_run(replace(config, stream=replace(config.stream, tasks=config.stream.tasks[1:]))).exit_code == 0
    away = replace(config, base=replace(config.base, path=str(root / "llava-1.5-7b")))
    away = replace(away, stream=replace(config.stream, tasks=config.stream.tasks[1:]))
    assert dry_run(away).exit_code == CheckpointError.exit_code


def test_a_run_that_does_not_fit_has_an_exit_code_of_its_own(world, monkeypatch):
    _, config = world

    def refused(*_):
        raise ResourceError("this run does not fit into one card")

    monkeypatch.setattr(module, "make_plan", refused)
    found = dry_run(config, target="24gb")
    assert found.exit_code == ResourceError.exit_code and "does not fit" in found.plan[0]


def test_the_command_trains_and_writes_nothing(world, monkeypatch, capsys):
    root, _ = world
    monkeypatch.setattr(stream_loop, "learn", lambda *_, **__: pytest.fail("a run was begun"))
    monkeypatch.chdir(root)
    before = sorted(root.rglob("*"))
    words = ["run", "pocket/hide", "--set", f"base.path={root / 'base'}", "--tasks", str(root / "birds")]
    assert main([*words, "--dry-run"]) == 0
    assert "task 1" in capsys.readouterr().out
    assert main([*words[:-1], "nowhere", "--dry-run"]) == DataError.exit_code
    assert "missing (1)" in capsys.readouterr().out
    assert main([*words, "--target", "h200"]) == ConfigError.exit_code
    assert "--target belongs to --dry-run" in capsys.readouterr().err
    assert main([*words, "--dry-run", "--target", "h201"]) == ConfigError.exit_code
    assert sorted(root.rglob("*")) == before
