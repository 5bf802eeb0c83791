"""Pre-training: the data of a step, the facts a stage leaves, and (slow) the whole chain at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pretrain_pocket
import pytest
from pocket_facts import read_facts, write_facts
from pocket_language import LanguagePlan, draw_conversations
from pocket_probe import kinds_of, probe
from pocket_vision import CLASSES, VisionPlan, draw_batch, patch_truth

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.store import load_model, pocket_folder

SMALL = LanguagePlan("instruct", steps=6, batch=6)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.load(pocket_folder())


def same(one: dict, two: dict) -> bool:
    return all(np.array_equal(one[name], two[name]) for name in one)


def test_a_step_of_vision_is_a_function_of_seed_and_step(words):
    plan = VisionPlan(batch=6, pairs=2)
    one, again, next_one = (draw_batch(plan, step, 7, words, 48) for step in (3, 3, 4))
    assert same(one, again) and not same(one, next_one)
    assert one["kind"].shape == (6, 49) and one["box"].shape == (6, 49, 4) and one["ids"].shape == (2, 48)


def test_a_step_of_language_fits_its_shape_and_repeats(words):
    one, again = (draw_conversations(SMALL, 3, 49, words) for _ in range(2))
    assert same(one, again) and one["tokens_BT"].shape == (6, SMALL.length)
    assert ((one["tokens_BT"] == words.image).sum(1) == 49).all(), "one picture a conversation"
    said = one["answer_BA"][one["answer_mask_BA"]]
    assert (said == words.eos).sum() >= 6, "every answer ends"
    for row, places in enumerate(one["where_BA"]):
        kept = one["answer_mask_BA"][row]
        np.testing.assert_array_equal(one["tokens_BT"][row, places[kept] + 1], one["answer_BA"][row, kept])
    with pytest.raises(ConfigError, match="no turn fits"):
        draw_conversations(replace(SMALL, length=52), 0, 49, words)


def test_the_truth_of_a_patch_is_that_of_what_covers_it():
    for seed in range(20):
        picture = draw("scene", np.random.default_rng([seed, 1]), worn=0)
        kind, _, _, box = patch_truth(picture, 7)
        for thing in picture.things:
            x, y = (int(7 * c) for c in thing.centre)
            place = y * 7 + x
            assert CLASSES[kind[place]] == thing.name
            centre = np.array([x + 0.5, y + 0.5]) / 7
            np.testing.assert_allclose(box[place] + np.tile(centre, 2), thing.box, atol=2e-3)
        shown = {thing.name for thing in picture.things}
        assert {CLASSES[k] for k in kind} - {"nothing"} == shown


def test_facts_add_up_over_a_resumed_stage(tmp_path):
    assert read_facts(tmp_path, "instruct") == {}
    write_facts(tmp_path, "instruct", SMALL, before={}, start=0, step=3, seconds=10.0, losses=[2.0, 1.0])
    before = read_facts(tmp_path, "instruct")
    longer = replace(SMALL, steps=9)
    write_facts(tmp_path, "instruct", longer, before=before, start=3, step=9, seconds=5.0, losses=[0.5])
    facts = read_facts(tmp_path, "instruct")
    assert (facts["steps"], facts["samples"], facts["seconds"], facts["final_loss"]) == (9, 54, 15.0, 0.5)
    assert [(entry["from_step"], entry["plan"]["steps"]) for entry in facts["plans"]] == [(0, 6), (3, 9)]
    assert list(tmp_path.glob("*.part*")) == []


def test_a_probe_finds_what_is_there_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    labels = np.array(list("abc"))[rng.integers(3, size=300)]
    noise = rng.normal(size=(300, 4, 6)).astype(np.float32)
    told = noise.copy()
    told[np.arange(300), rng.integers(4, size=300), np.searchsorted(list("abc"), labels)] += (
        8  # anywhere in the picture
    )
    assert kinds_of(told)["pooled"].shape == (300, 12)
    found = probe(told, labels, 200)
    assert found["percent"] > 95 and found["features"] == "pooled" and (found["train"], found["test"]) == (200, 100)
    assert probe(noise, labels, 200)["percent"] < 50


def test_stages_out_of_order_say_what_to_run_first(tmp_path, capsys):
    assert pretrain_pocket.main(["projector", "--work", str(tmp_path)]) == CheckpointError.exit_code
    assert "pretrain_pocket.py vision" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pretrain_pocket.main(["export", "--steps", "3", "--work", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_chain_runs_at_toy_size_and_goes_on(tmp_path):
    program = str(Path(pretrain_pocket.__file__))
    root = str(Path(program).parents[1])
    command = [sys.executable, program, "all", "--toy", "--work", str(tmp_path)]
    for _ in range(2):  # the second time every stage is already done
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": root}, capture_output=True)
    model = load_model(tmp_path / "export")
    assert model.config == LlavaConfig()
    record = json.loads((tmp_path / "export" / pretrain_pocket.RECORD).read_text())
    assert {name: facts["steps"] for name, facts in record["stages"].items()} == dict.fromkeys(record["stages"], 6)
    assert set(record["probes"]) == {
        "digits",
        "shapes",
        "colours",
        "positions",
        "characters",
        "counts",
        "match",
    }
    assert record["parameters"]["total"] == sum(v for k, v in record["parameters"].items() if k != "total")
