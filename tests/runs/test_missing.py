"""Runs that miss an expert, runs that refuse a question, and what a lesson's facts tell of its experts."""

import json
import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from runs_world import make_world

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.runs import evaluation
from hidecmoe_jax.runs.assistant import load
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.stream_loop import evaluate_run, learn
from hidecmoe_jax.studies.inspect import describe

DOUBTING = {"gate": {"kind": "anchors", "foreign": 0.0, "kept_apart": 0.25}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("missing")
    config = make_world(root, **DOUBTING)
    return root, config, learn(config, root / "run")


@pytest.fixture(scope="module")
def maimed(world):
    """The run without the folder of its first task."""
    run = shutil.copytree(world[2], world[0] / "maimed")
    shutil.rmtree(run / "seed_0" / "tasks" / "000_birds")
    return run


def asked(world, task: str = "birds"):
    return [str(world[0] / task / "images" / "8.png")], "What is shown in picture 8?"


def test_a_run_that_misses_experts_names_every_one_and_is_not_served(world, maimed):
    other = shutil.copytree(maimed, world[0] / "worse")
    victim = next((other / "seed_0" / "tasks" / "001_fish").rglob("meta.json"))
    victim.write_bytes(victim.read_bytes()[:-1])
    for open_it in (load, evaluate_run):
        with pytest.raises(CheckpointError, match="1 of 2 tasks cannot be loaded") as refused:
            open_it(maimed)
        assert "000_birds: there is no such folder" in refused.value.why and "--skip-missing" in refused.value.remedy
        with pytest.raises(CheckpointError, match="2 of 2 tasks cannot be loaded") as refused:
            open_it(other)
        assert "000_birds" in refused.value.why and "meta.json is truncated" in refused.value.why
        assert refused.value.exit_code == 4


def test_a_last_task_that_was_measured_is_missed_too(world):
    run = shutil.copytree(world[2], world[0] / "short")
    shutil.rmtree(run / "seed_0" / "tasks" / "001_fish")
    with pytest.raises(CheckpointError, match="1 of 2 tasks cannot be loaded") as refused:
        load(run)
    assert "001_fish" in refused.value.why and "--task 1" in refused.value.remedy
    whole, early = load(world[2], task=1), load(run, task=1)
    assert early.tasks == ("birds",) and early.answer(*asked(world)).text == whole.answer(*asked(world)).text


def test_skip_missing_masks_the_task_and_every_answer_says_so(world, maimed):
    run = load(maimed, skip_missing=True)
    reply = run.answer(*asked(world))
    assert reply.weights["birds"] == 0 and reply.answer.missing == ("birds",)
    assert "left out because they could not be loaded: birds" in reply.decision
    assert run.route([asked(world, "fish")[0]], [asked(world)[1]])[0] == {"birds": 0, "fish": pytest.approx(1.0)}
    with pytest.raises(CheckpointError, match="could not be loaded"):
        run.answer(*asked(world), named="birds")
    # Fused of fish alone: what a run that never learned birds would fold in.
    method, model = run.run.method, run.base
    kept = Ledger(world[2] / "seed_0").archive()
    bank = method.from_archive(model, 2, [None, kept[1]]).past["linears"]
    for site, b in bank.b.items():
        own = np.asarray(kept[1]["experts"][f"b/{site}"])[:-1, 0]
        np.testing.assert_array_equal(np.asarray(b)[:-1, 0], own, err_msg=site)


def test_eval_measures_what_is_left_beside_the_run(world, maimed, capsys):
    before = (maimed / "report.json").read_bytes(), Cells(maimed / "seed_0" / "cells.json").read()
    assert main(["eval", str(maimed), "--skip-missing"]) == 0
    aside = maimed / "seed_0" / "without" / "birds"
    assert set(Cells(aside / "cells.json").read()[2]) == {"birds", "fish"}
    lines = evaluation.read_answers(aside / "answers" / "row_002" / "fish.jsonl")
    assert len(lines) == 4 and all(line["missing"] == ["birds"] and not line["weights"]["birds"] for line in lines)
    assert before == ((maimed / "report.json").read_bytes(), Cells(maimed / "seed_0" / "cells.json").read())
    assert main(["ask", str(maimed), asked(world)[1]]) == 4
    assert main(["ask", str(maimed), asked(world)[1], "--skip-missing"]) == 0
    assert "left out" in capsys.readouterr().out


def test_an_unknown_input_is_refused_or_answered_by_the_base_and_says_why(world):
    run = load(world[2])
    gate = dict(run.serving.memory.gate)
    for name in ("threshold_N", "threshold_seen_N", "threshold_read_N"):
        gate[name] = jnp.full_like(gate[name], 2.0)  # no cosine reaches it
    strict = replace(run, serving=run.serving.replace(memory=run.serving.memory.replace(gate=gate)))
    images, question = asked(world)
    given = strict.generate([images[0]], [question])[0]
    nobody = strict.serving.replace(memory=strict.serving.memory)
    assert not any(given.weights) and given.finding.unknown and given.finding.threshold == 2.0 and not given.refused
    assert given.finding.foreign == 0.0 and given.finding.score == pytest.approx(max(given.scores[:2]), abs=1e-6)
    known = run.generate([images[0]], [question], named="birds")[0]
    silent = replace(run, serving=nobody.replace(bank=None, slot_LN=None)).generate([images[0]], [question])[0]
    assert given.text == silent.text and known.finding is None
    refused = strict.generate([images[0]], [question], unknown="refuse")[0]
    assert refused.text == "" and refused.refused and refused.finding == given.finding
    told = strict.answer(images, question).decision
    assert "belongs to no known task" in told and "below its threshold 2.000" in told and "loses 0 %" in told
    evaluate = replace(run.run.evaluate, writing=replace(run.run.evaluate.writing, unknown="refuse"))
    refusing = replace(strict, run=replace(run.run, evaluate=evaluate))
    assert refusing.answer(images, question).decision.endswith("refused")


def test_evaluated_answers_carry_score_threshold_and_margin(world):
    lines = evaluation.read_answers(world[2] / "seed_0" / "answers" / "row_002" / "birds.jsonl")
    for line in lines:
        found = line["finding"]
        assert found["score"] == pytest.approx(max(line["scores"][name] for name in ("birds", "fish")), abs=1e-5)
        assert found["unknown"] == (found["score"] < found["threshold"]) == (not any(line["weights"].values()))
        apart = abs(line["scores"]["birds"] - line["scores"]["fish"])
        assert found["foreign"] == 0.0 and found["ahead"] == pytest.approx(apart, abs=1e-5)
        assert found["nearest"] in ("birds", "fish") and not found["refused"]
    cell = Cells(world[2] / "seed_0" / "cells.json").read()[2]["birds"]
    assert cell["unknown"] == sum(line["finding"]["unknown"] for line in lines)
    zero = evaluation.read_answers(world[2] / "seed_0" / "answers" / "row_000" / "birds.jsonl")
    assert all("finding" not in line and json.dumps(line, allow_nan=False) for line in zero)


def test_dead_experts_stand_in_the_facts_of_their_task_and_in_inspect(world):
    root, config, run = world
    facts = Ledger(run / "seed_0").meta(1)["experts"]["linears"]
    assert facts["dead"] == [] and np.shape(facts["norm"]) == (3, 1) and min(facts["norm"])[0] > 0
    still = learn(replace(config, tune=replace(config.tune, rate=0.0)), root / "still")
    dead = Ledger(still / "seed_0").meta(0)["experts"]["linears"]["dead"]
    assert dead == [[layer, 0, "its update is zero"] for layer in range(3)]
    assert "3 dead experts: layer 0 expert 0 (its update is zero)" in describe(still)
    assert "dead experts" not in describe(run)
