"""Merging two tasks of a run with one expert per task: tried, committed, learned on top of, exported, taken back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs_world import make_world, outcome
from safetensors.numpy import load_file

import hidecmoe_jax as hj
from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts.bank import EMPTY
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.assistant import load
from hidecmoe_jax.runs.config import config_of
from hidecmoe_jax.runs.finished import load_run
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.runs.stream_loop import add, learn, rollback
from hidecmoe_jax.studies.edit_trial import merge, restore, retire
from hidecmoe_jax.studies.inspect import describe
from hidecmoe_jax.studies.task_overlap import overlap

WORLDS = {"all": {"expand": "all"}, "chosen": {"expand": {"layers": 1, "share": 1.0}}}


@pytest.fixture(scope="module", params=[pytest.param("all", marks=pytest.mark.slow), "chosen"])
def world(request, tmp_path_factory):
    """Folder and a run that learned birds and fish, one expert each."""
    root = tmp_path_factory.mktemp(request.param)
    return root, learn(make_world(root, "hide", **WORLDS[request.param]), root / "run")


@pytest.fixture(scope="module")
def merged(world):
    """Folder, the run with its two tasks merged, and what the command said."""
    root, run = world
    copy = Path(shutil.copytree(run, root / "merged"))
    return root, copy, merge(copy, "birds", "fish", allowed=100.0, commit=True)


def copied(world, name: str) -> Path:
    root, run, *_ = world
    return Path(shutil.copytree(run, root / name))


def slots(run: Path) -> np.ndarray:
    return np.asarray(load(run).serving.slot_LN)


def choosing(seed: Path, number: int, task: str, layer: int) -> None:
    """Rewrites what a task found layers worth, so that `layer` is the one that keeps tasks apart."""
    groups, facts = Ledger(seed).load(number)[0], Ledger(seed).meta(number)
    groups["memory"]["worth"] = 100.0 * np.eye(3, dtype=np.float32)[layer]
    Ledger(seed).withdraw(number)
    Ledger(seed).commit(number, task, groups, meta=facts)


def test_a_merge_serves_is_learned_on_top_of_and_taken_back(world, merged):
    root, run = merged[0], copied(merged, "edited")
    before, facts = outcome(world[1]), json.loads((world[1] / "report.json").read_text())
    was, method = load_run(run), load_run(run).config.method
    rows, one = method.expanded(3, was.learner.memory), method.lora.size(was.model)
    assert merged[2]["stored"]["0"]["before"] - merged[2]["stored"]["0"]["after"] == one * len(rows)
    report = json.loads((run / "report.json").read_text())
    assert facts["stored_parameters"]["total"] - report["stored_parameters"]["total"] == one * len(rows)
    assert report["archived_parameters"] == facts["archived_parameters"]
    assert outcome(run)["lessons"] == before["lessons"]
    assert (slots(run)[:, :2] == 1).all() and len(slots(run)) == len(rows)
    said = f"task 1 is answered from the expert of task 0 in layers {', '.join(map(str, rows))}"
    assert said in describe(run) and said not in describe(world[1])
    after = outcome(run)

    add(run, root / "trees")
    learner, archive = load_run(run).learner, Ledger(run / "seed_0").archive()
    assert method.learned(learner) == (0, 1, 2)
    for task in (0, 1):
        then, later = (method.to_archive(found, task)["experts"] for found in (was.learner, learner))
        assert trees.digests(then) == trees.digests(later)
    assert trees.digests(method.to_archive(learner, 2)["experts"]) == trees.digests(archive[2]["experts"])
    np.testing.assert_array_equal(learner.memory.home, was.learner.memory.home)
    if method.chooses:
        choosing(run / "seed_0", 2, "trees", (rows[0] + 1) % 3)
        learner = load_run(run).learner
        assert method.expanded(3, learner.memory) != rows
    # Whatever is chosen now: birds and fish share a slot where they were merged, and have their own elsewhere.
    now = method.expanded(3, learner.memory)
    slot_LN = slots(run)
    assert slot_LN[:, 2].tolist() == [3] * len(now)
    assert slot_LN[:, 1].tolist() == [1 if layer in rows else 2 for layer in now]
    with pytest.raises(ConfigError, match="learned on top"):
        restore(run)
    rollback(run, 2)
    assert outcome(run) == after
    restore(run)
    assert outcome(run) == before and load_run(run).learner.memory.home is None


def test_only_what_stays_can_be_edited_further(merged):
    run = copied(merged, "further")
    for wrong in (lambda: merge(run, "birds", "fish"), lambda: merge(run, "fish", "birds")):
        with pytest.raises(ConfigError, match="number 1 is served from the slot of number 0"):
            wrong()
    with pytest.raises(ConfigError, match="hidecmoe restore RUN"):
        retire(run, "birds")
    assert retire(run, "fish", allowed=100.0, commit=True)["committed"]
    assert load_run(run).config.method.learned(load_run(run).learner) == (0,)


def test_wrong_merges_are_refused_in_words_of_the_command(world):
    run = copied(world, "wrong")
    before = outcome(run)
    assert not merge(run, "birds", "fish", allowed=100.0)["committed"]
    with pytest.raises(ConfigError, match="a merge needs two tasks"):
        merge(run, "birds", "birds")
    with pytest.raises(ConfigError, match="no such layers"):
        merge(run, "birds", "fish", layers=(7,))
    with pytest.raises(ConfigError, match="no such task"):
        merge(run, "birds", "trees")
    with pytest.raises(ConfigError, match="only pools have several"):
        retire(run, "birds", expert=0)
    apart = load_run(run).config.method.expanded(3, load_run(run).learner.memory)
    for layer in set(range(3)) - set(apart):
        with pytest.raises(ConfigError, match=f"layers that keep tasks apart: {apart[0]}; the others are fused"):
            merge(run, "birds", "fish", layers=(layer,))
    assert outcome(run) == before


def test_an_edited_run_leaves_as_what_it_answers_with(merged, tmp_path):
    run = merged[1]
    hj.export(run, tmp_path / "adapters", hj.ExportOptions("peft"))
    # Fused layers are the same for all tasks, and so now are the others.
    one, other = (load_file(tmp_path / "adapters" / task / "adapter_model.safetensors") for task in ("birds", "fish"))
    assert trees.digests(one) == trees.digests(other)
    hj.export(run, tmp_path / "hub", hj.ExportOptions("hub"))
    hj.adopt(config_of(run).base.path, [tmp_path / "hub"], tmp_path / "again")
    np.testing.assert_array_equal(slots(tmp_path / "again"), slots(run))
    assert trees.digests(trees.flatten(load_run(tmp_path / "again").learner.past)) == trees.digests(
        trees.flatten(load_run(run).learner.past)
    )


@pytest.mark.slow
def test_every_seed_is_merged_where_it_keeps_tasks_apart(tmp_path, capsys):
    config = make_world(tmp_path, "hide", **WORLDS["chosen"])
    run = learn(replace(config, seeds=(0, 1)), tmp_path / "run")
    session = open_session(config_of(run))
    folders = [run / f"seed_{seed}" for seed in (0, 1)]
    for folder, layer in zip(folders, (0, 1), strict=True):
        choosing(folder, 1, "fish", layer)
    merge(run, "birds", "fish", allowed=100.0, commit=True)
    for folder, layer in zip(folders, (0, 1), strict=True):
        learner = session.learner_after(Ledger(folder).archive(), run)
        assert np.flatnonzero(np.asarray(learner.past[LINEARS].owner_LS)[:, 2] == EMPTY).tolist() == [layer]
    with pytest.raises(ConfigError, match="number 1 is served from the slot of number 0"):
        merge(run, "birds", "fish", layers=(1,))
    edits.write(run, ())
    found = merge(run, "birds", "fish", layers=(1,), allowed=100.0)
    assert found["left"] == [0] and "seed 0: there is nothing to merge" in capsys.readouterr().err


def test_overlap_proposes_the_merge_and_nothing_once_it_is_made(world, merged):
    (pair,) = overlap(world[1], mixed=0.0)
    assert pair["suggestion"] == f"hidecmoe merge {world[1]} birds fish"
    (pair,) = overlap(merged[1], mixed=0.0)
    assert pair["near"] and pair["suggestion"] is None
