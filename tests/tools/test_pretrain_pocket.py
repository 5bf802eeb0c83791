"""Pre-training: the data of a step, the facts a stage leaves, and (slow) the whole chain at toy size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pretrain_pocket
import pytest
from pocket_facts import read_facts, write_facts
from pocket_language import NAMES, LanguagePlan, called, draw_conversations, name_tokens, naming_loss, weights
from pocket_probe import kinds_of, probe
from pocket_vision import CLASSES, VisionPlan, draw_batch, patch_truth

import hidecmoe_jax
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.words import place
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.store import load_model, pocket_folder

PLAIN = r"Repeat|Not .* but|Which option|What is \d|Write \d"
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


def test_an_answer_counts_by_the_square_root_of_its_length():
    where, mask = np.array([[4, 9, 10, 11, 12, 20, 21, 0]]), np.arange(8)[None] < 7
    found = weights(where, mask)
    np.testing.assert_allclose(found[0], [1, 0.5, 0.5, 0.5, 0.5, 0.5**0.5, 0.5**0.5, 0], rtol=1e-6)


def test_focused_conversations_ask_for_look_ups_alone(words):
    arrays = draw_conversations(replace(SMALL, focus=1.0), 0, 49, words)
    for tokens, mask in zip(arrays["tokens_BT"], arrays["mask_BT"], strict=True):
        said = words.decode([int(t) for t in tokens[mask] if t != words.image])
        asked = re.findall(r"USER: (.*?)ASSISTANT", said) or re.findall(r"([A-Z][^?]*\?)", said)
        wanted = r"colour is the|Where is the|small or large|Is there an?|box of the|How many|" + PLAIN
        assert asked and all(re.search(wanted, question) for question in asked), said


def test_names_are_lost_when_patches_point_elsewhere(words):
    names = name_tokens(words)
    assert (names[0][1:] >= 0).sum() > 30 and all((sort >= 0).all() for sort in names[1:])
    table = np.eye(words.size, dtype=np.float32)
    said = np.array([[[1, 2, 3, -1]], [[4, 5, 6, -1]], [[0, -1, 1, -1]], [[1, 0, -1, -1]], [[-1, 8, -1, -1]]], np.int32)
    told = sum(
        np.where(truth >= 0, 1.0, 0.0)[..., None] * table[t[truth]] for t, truth in zip(names, said, strict=True)
    )
    right, wrong = (float(naming_loss(table, seen, said, names)) for seen in (told, told[:, [1, 2, 0, 3]]))
    assert right < 0.5 < 5.0 < wrong


def test_a_patch_is_called_by_what_covers_it():
    for seed in range(10):
        picture = draw("scene", np.random.default_rng([seed, 1]), worn=0)
        kind, ink, row, column, _ = called(picture, 7)
        for thing in picture.things:
            at = int(7 * thing.centre[1]) * 7 + int(7 * thing.centre[0])
            words = [names[side[at]] for names, side in zip(NAMES[2:4], (row, column), strict=True) if side[at] >= 0]
            assert (NAMES[0][kind[at]], NAMES[1][ink[at]]) == (thing.name, thing.colour)
            assert (" ".join(words) or "middle") == place(thing)


def test_the_truth_of_a_patch_is_that_of_what_covers_it():
    for seed in range(20):
        picture = draw("scene", np.random.default_rng([seed, 1]), worn=0)
        kind, _, _, box = patch_truth(picture, 7)
        for thing in picture.things:
            x, y = (int(7 * c) for c in thing.centre)
            at = y * 7 + x
            assert CLASSES[kind[at]] == thing.name
            np.testing.assert_allclose(box[at], thing.box, atol=2e-3)
        shown = {thing.name for thing in picture.things}
        assert {CLASSES[k] for k in kind} - {"nothing"} == shown


def test_a_bar_is_called_by_its_letter_and_its_height():
    picture = draw("chart", np.random.default_rng(3), worn=0)
    kind, ink, _, _, value = called(picture, 7)
    bars = [thing for thing in picture.things if thing.kind == "bar"]
    for bar in bars:
        at = int(7 * bar.centre[1]) * 7 + int(7 * bar.centre[0])
        found = NAMES[0][kind[at]], NAMES[1][ink[at]], int(NAMES[4][value[at]])
        assert found == (bar.name, bar.colour, bar.value)
    assert (value[kind < 0] == -1).all() and (value >= 0).sum() >= len(bars)


def test_facts_add_up_over_a_resumed_stage(tmp_path):
    assert read_facts(tmp_path, "instruct") == {}
    write_facts(tmp_path, "instruct", SMALL, before={}, start=0, step=3, seconds=10.0, losses=[2.0, 1.0])
    before = read_facts(tmp_path, "instruct")
    longer = replace(SMALL, steps=9, batch=2)
    write_facts(tmp_path, "instruct", longer, before=before, start=3, step=9, seconds=5.0, losses=[0.5])
    facts = read_facts(tmp_path, "instruct")
    assert (facts["steps"], facts["samples"], facts["seconds"], facts["final_loss"]) == (9, 3 * 6 + 6 * 2, 15.0, 0.5)
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
    root = str(Path(hidecmoe_jax.__file__).resolve().parents[1])
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
