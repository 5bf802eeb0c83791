"""Runs of versions before today's rules for pictures and markers: what differs is said, and no answer is mixed up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny import run_config, write_base, write_task

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.data.stream import open_stream
from hidecmoe_jax.evaluate.engine import Cache
from hidecmoe_jax.runs import older, questions
from hidecmoe_jax.runs.config import config_of, write_config
from hidecmoe_jax.runs.questions import Question
from hidecmoe_jax.runs.reuse import cache_key


@pytest.fixture
def tasks(tmp_path) -> list[Path]:
    """Two tasks: one with two pictures that are not square and a marker behind its question, one without."""
    birds = write_task(tmp_path / "birds", "a wren", train=6, test=3)
    fish = write_task(tmp_path / "fish", "a carp", shade=80, train=6, test=3)
    Image.new("RGB", (16, 12), (9, 9, 9)).save(birds / "images" / "0.png")
    Image.new("RGB", (10, 16), (90, 9, 9)).save(birds / "images" / "7.png")
    items = json.loads((birds / "train.json").read_text())
    items[3]["conversations"][0]["value"] = "What is shown in picture 3?\n<image>"
    (birds / "train.json").write_text(json.dumps(items))
    return [birds, fish]


def of_version(config, *, is_older: bool):
    """The config as a version before TIFF wrote it, or as this one does."""
    if not is_older:
        return config
    limits = replace(config.stream.policy.limits, formats=older.FORMATS)
    return replace(config, stream=replace(config.stream, policy=replace(config.stream.policy, limits=limits)))


def test_fault_a10_a_run_of_before_says_what_todays_rules_change(tasks, tmp_path):
    config = run_config(Path("pocket"), "hide", tasks=tasks)
    stream = open_stream(config.stream.tasks)
    assert older.notes_of_older(config, stream.tasks) == ()
    run = tmp_path / "run"
    run.mkdir()
    write_config(of_version(config, is_older=True), run)
    recorded = config_of(run)
    (line,) = older.notes_of_older(recorded, stream.tasks)
    assert line.startswith("birds: 2 of 9 pictures are not square and 1 questions do not begin with their picture")
    assert [older.reads_otherwise(recorded, task) for task in stream.tasks] == [True, False]


def test_fault_a13_answers_to_other_pictures_are_not_taken_for_todays(tasks):
    """Only the task that is read otherwise gets another key: its answers alone are written again."""
    keys = []
    for is_older in (False, True):
        config = of_version(run_config(Path("pocket"), "hide", tasks=tasks), is_older=is_older)
        stream = open_stream(config.stream.tasks)
        session = SimpleNamespace(config=config, base_digest="ab", prompt_length=64, cache=Cache())
        serving = SimpleNamespace(bank=None, slot_LN=None, memory={})
        keys.append([cache_key(session, serving, task) for task in stream.tasks])
    assert [now == before for now, before in zip(*keys, strict=True)] == [False, True]


def test_fault_a13_answers_to_pictures_decoded_at_another_size_are_not_reused(tasks):
    keys = []
    for changed in ({}, {"max_pixels": 1000}, {"min_side": 4}):
        config = run_config(Path("pocket"), "hide", tasks=tasks)
        policy = config.stream.policy
        policy = replace(policy, limits=replace(policy.limits, **changed))
        config = replace(config, stream=replace(config.stream, policy=policy))
        session = SimpleNamespace(config=config, base_digest="ab", prompt_length=64, cache=Cache())
        serving = SimpleNamespace(bank=None, slot_LN=None, memory={})
        keys.append(cache_key(session, serving, open_stream(config.stream.tasks).tasks[1]))
    assert keys[0] != keys[1] and keys[0] == keys[2]


def test_fault_d8_an_older_run_is_asked_about_a_tiff(tasks, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.mkdir()
    config = of_version(run_config(write_base(tmp_path / "base"), "hide", tasks=tasks), is_older=True)
    write_config(config, run)
    monkeypatch.setattr(questions, "require_learned", lambda *_: None)

    def load(*_, **__):
        raise CheckpointError("the model is loaded")

    monkeypatch.setattr(questions, "load", load)
    for name, size in (("square.tif", (16, 16)), ("wide.tif", (20, 12))):
        Image.new("RGB", size, (9, 9, 9)).save(tmp_path / name)
        with pytest.raises(CheckpointError, match="the model is loaded"):
            questions.ask(run, [Question("What is this?", (str(tmp_path / name),))])
        note = capsys.readouterr().err
        assert ("1 pictures are not square" in note) == (name == "wide.tif")
    (tmp_path / "q.jsonl").write_text('{"question": "What is this?", "image": "square.tif"}\n')
    assert main(["ask", str(run), "--file", str(tmp_path / "q.jsonl")]) == CheckpointError.exit_code
    # What the run itself reads stays as it was recorded.
    assert config_of(run).stream.policy.limits.formats == older.FORMATS
