"""Several methods on one stream: one zero-shot row, one report, no mixing of what cannot be compared."""

import json
from dataclasses import replace

import pytest
from runs_world import make_world

from hidecmoe_jax.core.errors import BusyError, ConfigError
from hidecmoe_jax.runs import evaluation
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.storage.lock import writer_lock
from hidecmoe_jax.studies.compare import _settings_that_change_scores, compare


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder, configs, the comparison, and which cells were answered in it."""
    root, asked = tmp_path_factory.mktemp("compare"), []
    hide = make_world(root)
    configs = [hide, replace(hide, method=replace(hide.method, name="zero_shot", growth="none"))]
    write = evaluation.write_answers

    def counted(session, serving, task, path, **given):
        asked.append((session.config.method.name, path.parent.name, path.name))
        return write(session, serving, task, path, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "write_answers", counted)
        out = compare(configs, root / "both")
    return root, configs, out, asked


def test_the_zero_shot_row_is_measured_once(world):
    _, _, out, asked = world
    assert [cell for cell in asked if cell[1] == "row_000"] == [
        ("hide", "row_000", "birds.jsonl"),
        ("hide", "row_000", "fish.jsonl"),
    ]
    assert not [cell for cell in asked if cell[0] == "zero_shot"]
    first, second = (Cells(out / name / "seed_0" / "cells.json").read()[0] for name in ("hide", "zero_shot"))
    assert {task: cell["score"] for task, cell in first.items()} == {
        task: cell["score"] for task, cell in second.items()
    }
    for task in ("birds", "fish"):
        own, shared = (
            (out / name / "seed_0" / "answers" / "row_000" / f"{task}.jsonl") for name in ("hide", "zero_shot")
        )
        assert own.read_bytes() == shared.read_bytes()


def test_one_report_shows_both(world):
    _, _, out, _ = world
    found = json.loads((out / "report.json").read_text())
    assert [method["method"] for method in found["methods"]] == ["hide", "zero_shot"]
    assert found["methods"][0]["matrix"][0] == found["methods"][1]["matrix"][0]


def test_a_comparison_goes_on_where_it_stopped(world):
    root, configs, out, _ = world
    (out / "zero_shot" / "run.json").unlink()
    for path in sorted((out / "zero_shot").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    before = (out / "hide" / "seed_0" / "cells.json").read_bytes()
    compare(configs, out, resume=True)
    assert (out / "hide" / "seed_0" / "cells.json").read_bytes() == before
    assert (out / "zero_shot" / "report.json").is_file()


def test_two_commands_do_not_write_one_comparison(world):
    _, configs, out, _ = world
    with writer_lock(out), pytest.raises(BusyError):
        compare(configs, out, resume=True)


def test_what_cannot_be_compared_is_refused_before_anything_runs(world):
    root, (hide, other), out, _ = world
    with pytest.raises(ConfigError, match="one name"):
        compare([hide, hide], root / "twice")
    shorter = replace(other, stream=replace(other.stream, tasks=other.stream.tasks[:1]))
    with pytest.raises(ConfigError, match="zero_shot: stream"):
        compare([hide, shorter], root / "unlike")
    other_split = replace(other, evaluate=replace(other.evaluate, split="val"))
    with pytest.raises(ConfigError, match="zero_shot: evaluate"):
        compare([hide, other_split], root / "unlike")
    with pytest.raises(ConfigError, match="already exists"):
        compare([replace(hide, method=replace(hide.method, name="new")), other], out)
    assert not (out / "new").exists()


@pytest.mark.slow  # test_budget.py finds the ranks; test_examples.py compares with --budget up to the first step
def test_equal_budgets_change_the_rank_alone_and_are_reported(world, tmp_path):
    _, (hide, _), _, _ = world
    # One task is enough for a size.
    hide = replace(hide, stream=replace(hide.stream, tasks=hide.stream.tasks[:1]))
    short = replace(hide, evaluate=replace(hide.evaluate, zero_shot=False, named="none", variants=False))
    full = replace(short, evaluate=replace(short.evaluate, named="all"))  # more rows for one of them are no obstacle
    every = replace(full, method=replace(hide.method, name="everywhere", expand="all", train_projector=False))
    out = compare([short, every], tmp_path / "equal", budget=20_000)
    found = json.loads((out / "report.json").read_text())
    assert found["budget"] == 20_000 and len(found["methods"]) == 2
    for method in found["methods"]:
        assert method["of_budget"] == method["stored_parameters"]["total"] / 20_000 == pytest.approx(1.0, abs=0.05)
        lora = method["settings"]["method"]["lora"]
        assert lora["rank"] > hide.method.lora.rank
        assert lora["alpha"] == hide.method.lora.alpha
    assert "Equal budget of 20,000" in (out / "report.html").read_text()


def test_senseless_budgets_are_refused(world, tmp_path):
    _, (hide, none), _, _ = world
    for budget, why in (
        ("hid", "hide"),
        (0, "above 0"),
        ("zero_shot", "stores nothing"),
        (10, "larger budget"),
        (-5, "above 0"),
    ):
        with pytest.raises(ConfigError, match=why):
            compare([hide, none], tmp_path / str(budget), budget=budget)


def test_a_method_that_does_not_fit_is_refused_before_another_learns(world):
    root, configs, _, _ = world
    wide = replace(configs[0], method=replace(configs[0].method, name="wide", expand=(9,)))
    with pytest.raises(ConfigError, match=r"\[9\] of a decoder with 3 layers"):
        compare([configs[0], wide], root / "unfit")
    assert not list((root / "unfit").glob("*/run.json"))


def test_taking_answers_over_or_not_is_the_own_affair_of_a_run(world):
    _, configs, _, _ = world
    again = replace(configs[0], evaluate=replace(configs[0].evaluate, reuse=False))
    assert _settings_that_change_scores(again, "evaluate") == _settings_that_change_scores(configs[0], "evaluate")
    other = replace(configs[0], evaluate=replace(configs[0].evaluate, split="val"))
    assert _settings_that_change_scores(other, "evaluate") != _settings_that_change_scores(configs[0], "evaluate")
