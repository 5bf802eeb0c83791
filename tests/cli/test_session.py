"""What a user does, word by word: learn two tasks, look, ask, add a third, compare; on random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from judges import judged
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import SMALL_LORA, write_base, write_config, write_task

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.runs.folder import SeedFolder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with base, tasks, configs, and the run `runs/hide` that learned birds and fish."""
    root = tmp_path_factory.mktemp("world")
    base = write_base(root / "base")
    tune = {"batch": 2, "bucket": 32}
    for shade, (task, answer) in enumerate({"birds": "a wren", "fish": "a carp", "trees": "an oak"}.items()):
        write_task(root / task, answer, shade=80 * shade)
    write_config(root / "hide.yaml", base, "hide", lora=SMALL_LORA, tune=tune)
    write_config(root / "sequential.yaml", base, "sequential", growth="shared", lora=SMALL_LORA, tune=tune)
    assert main([*learn(root, "hide"), "--out", str(root / "runs" / "hide"), "--track", "tensorboard"]) == 0
    return root


def learn(world: Path, name: str) -> list[str]:
    return ["run", str(world / f"{name}.yaml"), "--tasks", str(world / "birds"), str(world / "fish")]


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_a_run_leaves_a_report_and_the_resolved_config(world):
    run = world / "runs" / "hide"
    found = report(run)
    assert (found["method"], found["tasks"]) == ("hide", ["birds", "fish"])
    assert len(found["matrix"]) == 3 and len(found["matrix"][0]) == 2
    assert (run / "config.yaml").is_file() and (run / "report.html").is_file()


def test_tensorboard_has_the_numbers_of_the_run(world):
    seed = SeedFolder(world / "runs" / "hide" / "seed_0")
    lines = [json.loads(line) for line in seed.metrics.read_text().splitlines()]
    reader = EventAccumulator(str(seed.trackers / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    for name in ("loss", "gradient", "norm", "seconds"):
        points = [(event.step, event.value) for event in reader.Scalars(name)]
        assert points == [(number, float(np.float32(line[name]))) for number, line in enumerate(lines)]
    scores = [(event.step, event.value) for event in reader.Scalars("score/birds")]
    cells = json.loads(seed.cells.read_text())
    assert scores == [(int(row), float(np.float32(cells[row]["birds"]["score"]))) for row in cells]


def test_an_existing_run_is_neither_mixed_nor_lost(world, capsys):
    words = [*learn(world, "hide"), "--out", str(world / "runs" / "hide")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error and "--resume" in error
    assert main([*words, "--resume", "--overwrite"]) == 2
    assert main([*words, "--overwrite"]) == 2, "nobody is there to say yes"
    assert main([*words, "--resume"]) == 0, "a finished run has nothing left to do"


def test_nothing_to_resume_is_an_error(world, capsys):
    assert main([*learn(world, "hide"), "--out", str(world / "runs" / "none"), "--resume"]) == 4
    assert "nothing to resume" in capsys.readouterr().err


def test_a_run_does_not_turn_into_another(world, capsys):
    words = [
        *learn(world, "hide"),
        "--out",
        str(world / "runs" / "hide"),
        "--resume",
        "--set",
        "tune.rate=0.5",
    ]
    assert main(words) == 4
    error = capsys.readouterr().err
    # Every task is learned, so another rate could not be carried out and no flag allows it.
    assert "tune.rate" in error and "nothing is trained any more" in error
    assert "--allow-config-change" not in error


def test_wrong_settings_are_refused_before_anything_starts(world, capsys):
    out = world / "runs" / "wrong"
    assert main([*learn(world, "hide"), "--out", str(out), "--set", "tune.epoch=2"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err
    assert not out.exists()


def test_ask_shows_the_answer_and_who_spoke(world, capsys):
    picture = str(world / "birds" / "images" / "9.png")
    assert main(["ask", str(world / "runs" / "hide"), "--image", picture, "What is shown?"]) == 0
    out = capsys.readouterr().out
    assert "birds" in out and "fish" in out and "routed to" in out


def test_eval_report_and_inspect_read_a_run(world, capsys):
    run = str(world / "runs" / "hide")
    before = report(Path(run))
    assert main(["eval", run, "--task", "1", "--full-matrix"]) == 0
    (Path(run) / "report.json").unlink()
    assert main(["report", run]) == 0
    assert report(Path(run))["matrix"] == before["matrix"]
    capsys.readouterr()
    assert main(["inspect", run]) == 0
    text = capsys.readouterr().out
    assert main(["inspect", run, "--json"]) == 0
    (seed,) = judged("inspect", capsys.readouterr().out)["seeds"]
    assert [lesson["name"] for lesson in seed["lessons"]] == ["birds", "fish"]
    (bank,) = seed["banks"]
    for layer, owners in enumerate(bank["owners"], bank["first_layer"]):
        marks = " ".join({-1: ".", -2: "F"}.get(owner, str(owner)) for owner in owners)
        assert f"{layer:>5}  {marks}\n" in text
    assert f"stored: experts {seed['parameters']['stored']['experts']:,}" in text


def test_overlap_prints_a_record(world, capsys):
    run = world / "runs" / "hide"
    capsys.readouterr()
    assert main(["overlap", str(run), "--json", "--mixed", "0"]) == 0
    record = judged("overlap", capsys.readouterr().out)
    assert record == json.loads((run / "overlap.json").read_text())
    assert record["pairs"][0]["tasks"] == ["birds", "fish"] and record["pairs"][0]["near"]


def test_commands_refuse_what_is_no_run(world, capsys):
    for words in (["eval"], ["report"], ["inspect"], ["add"]):
        assert main([*words, str(world / "birds"), *([str(world / "fish")] if words == ["add"] else [])]) == 4
        assert "do:" in capsys.readouterr().err


def test_compare_writes_one_report_of_two_methods_and_one_of_them_goes_on(world, capsys):
    out, configs = world / "runs" / "both", [str(world / f"{name}.yaml") for name in ("hide", "sequential")]
    tasks = ["--tasks", str(world / "birds"), str(world / "fish")]
    assert main(["compare", *configs, "--out", str(out), *tasks]) == 0
    assert [method["method"] for method in report(out)["methods"]] == ["hide", "sequential"]
    (out / "report.json").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.json").is_file()

    assert main(["add", str(out / "hide"), str(world / "trees"), "--epochs", "2"]) == 0
    assert report(out / "hide")["tasks"] == ["birds", "fish", "trees"]
    assert main(["report", str(out)]) == 3, "the two have no stream in common any more"
    assert "hide" in capsys.readouterr().err


def test_fault_b1_a_run_ends_with_a_table_of_what_it_learned(world, capsys):
    words = [*learn(world, "hide"), "--out", str(world / "runs" / "hide"), "--resume"]
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["task", "zero-shot", "learned", "now", "floor", "outcome"]
    assert out[1].split()[0] == "birds" and out[1].split()[4] == "100.0", "every bird is a wren"
    assert out[3].startswith("0 of 2 tasks learned")
    assert any(line.startswith("warning: birds: ") for line in out), "nobody beats a floor of 100"
