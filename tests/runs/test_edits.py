"""Retiring and merging on a tiny run: trials change nothing, commits serve and are measured, and all goes back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_resume_stages
from dying import death_before
from runs_world import make_world, outcome, sealed_as_is

from hidecmoe_jax.cli.editing import Modes
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import combine
from hidecmoe_jax.experts.bank import EMPTY
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.assistant import load
from hidecmoe_jax.runs.config import config_of, write_config
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.runs.stream_loop import add, learn, rollback
from hidecmoe_jax.studies.edit_trial import merge, restore, retire
from hidecmoe_jax.studies.inspect import describe
from hidecmoe_jax.studies.task_overlap import mixed_up, overlap

MIXTURE = {
    "kind": "mixture",
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "sites": ["ffn"]},
    "growth": "uniform",
    "start": "blank",
    "gate": {"kind": "locator", "by": {"kind": "nearest_mean"}, "kept_apart": 0.0},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder and a run that learned birds and fish, fish so well that its held-out question is answered."""
    root = tmp_path_factory.mktemp("edits")
    config = make_world(root, "cmoe", **MIXTURE)
    config = replace(config, tune=replace(config.tune, batch=4, epochs=15, rate=0.05, save_every=1000))
    return root, learn(config, root / "run")


def copied(world, name: str) -> Path:
    root, run = world
    return Path(shutil.copytree(run, root / name))


def owners(run: Path) -> np.ndarray:
    return np.asarray(load(run).serving.bank.owner_LS)


def fall(found: dict) -> float:
    return min(line["change"] for line in found["tasks"])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_trial_measures_every_task_and_leaves_the_seed_alone(world):
    run = copied(world, "trial")
    before = bytes_of(run / "seed_0")
    found = retire(run, "fish")
    assert bytes_of(run / "seed_0") == before and not RunFolder(run).edits.exists()
    assert [(line["task"], line["count"]) for line in found["tasks"]] == [("birds", 1), ("fish", 1)]
    assert all(line["change"] == line["after"] - line["before"] for line in found["tasks"])
    assert found["stored"]["0"]["after"] < found["stored"]["0"]["before"]
    assert json.loads((run / "retire.json").read_text()) == found and not found["committed"]
    with pytest.raises(ConfigError, match="no such task"):
        retire(run, "trees")
    with pytest.raises(ConfigError, match="at least one question"):
        retire(run, "fish", count=0)


def test_a_merge_that_hurts_is_a_candidate_and_not_committed(world):
    run = copied(world, "hurt")
    before = bytes_of(run / "seed_0")
    found = merge(run, "birds", "fish")
    assert fall(found) < -1
    with pytest.raises(ConfigError, match="fish would fall by") as refused:
        merge(run, "birds", "fish", commit=True)
    assert refused.value.exit_code == 2 and "--allowed 100" in str(refused.value)
    assert bytes_of(run / "seed_0") == before and not RunFolder(run).edits.exists()
    archived = outcome(run)["lessons"]
    assert merge(run, "birds", "fish", commit=True, allowed=100.0)["committed"]
    assert outcome(run)["lessons"] == archived, "the old experts are kept"


def test_a_commit_serves_and_is_measured_and_is_taken_back(world):
    root, _ = world
    run = copied(world, "committed")
    before, old, page = outcome(run), owners(run), json.loads((run / "report.json").read_text())
    retire(run, "fish", commit=True, allowed=100.0)
    assert (owners(run)[:, 2] == EMPTY).all() and (owners(run)[:, :2] == old[:, :2]).all()
    assert "retire the experts of fish" in describe(run)
    after, edited = outcome(run), json.loads((run / "report.json").read_text())
    assert after["lessons"] == before["lessons"]
    assert after["answers"]["answers/row_001/birds.jsonl"] == before["answers"]["answers/row_001/birds.jsonl"]
    assert after["answers"]["answers/row_002/fish.jsonl"] != before["answers"]["answers/row_002/fish.jsonl"]
    assert edited["stored_parameters"]["total"] < page["stored_parameters"]["total"]
    assert (np.asarray(load(run, task=1).serving.bank.owner_LS) == np.where(old == 1, EMPTY, old)).all()

    add(run, root / "trees")
    now = owners(run)
    assert (now[:, 2] == EMPTY).all() and (now[:, 3] == 2).all()
    assert not np.asarray(load(run).serving.memory.visible)[:, :, 2].any()
    with pytest.raises(ConfigError, match="learned on top"):
        restore(run)
    retire(run, "trees", commit=True, allowed=100.0)
    assert len(edits.read(run)) == 2
    rollback(run, 2)
    assert [one.what for one in edits.read(run)] == ["retire the experts of fish"]
    assert outcome(run) == after

    restore(run)
    assert outcome(run) == before and (owners(run) == old).all() and not RunFolder(run).edits.exists()
    with pytest.raises(ConfigError, match="no edit to take back"):
        restore(run)


def test_one_expert_of_a_task_is_retired_and_lists_of_before_are_still_read(world):
    run = copied(world, "one")
    old, found = owners(run), retire(run, "birds", expert=1, layers=(0, 2), commit=True, allowed=100.0)
    assert found["what"] == "retire expert 1 of birds"
    wanted = old.copy()
    wanted[[0, 2], np.flatnonzero(old[0] == 0)[1]] = EMPTY
    np.testing.assert_array_equal(owners(run), wanted)
    with pytest.raises(ConfigError, match="an expert number 2, counted from 0: none"):
        retire(run, "birds", expert=2)
    with pytest.raises(ConfigError, match="by its number, from 0"):
        retire(run, "birds", expert=-1)
    listed = json.loads(RunFolder(run).edits.read_text())
    assert listed["edits"][0]["edit"].pop("expert") == 1  # as versions wrote it that knew of whole tasks alone
    RunFolder(run).edits.write_text(json.dumps(listed))
    sealed_as_is(run)
    (one,) = edits.read(run)
    assert one.edit == edits.Edit("retire", 0, layers=(0, 2))
    assert not (owners(run)[[0, 2]] == 0).any()


def as_second_seed(run: Path) -> Path:
    """A second seed that has learned what the first one has."""
    first, seed = Ledger(run / "seed_0"), Path(shutil.copytree(run / "seed_0", run / "seed_1"))
    # A lesson names the seed that it was committed in.
    shutil.rmtree(seed / "tasks")
    for record in first.tasks():
        Ledger(seed).commit(record.index, record.name, first.load(record.index)[0], meta=first.meta(record.index))
    sealed_as_is(run)
    return seed


def with_second_seed(run: Path, layers: list[int]) -> Path:
    """Gives a run a second seed, in which fish grew experts only in `layers`."""
    seed = as_second_seed(run)
    groups, facts = Ledger(seed).load(1)[0], Ledger(seed).meta(1)
    owner = groups["experts"]["owner"]
    groups["experts"]["owner"] = np.where(np.isin(np.arange(len(owner)), layers)[:, None], owner, EMPTY)
    Ledger(seed).withdraw(1)
    Ledger(seed).commit(1, "fish", groups, meta=facts)
    return learn(replace(config_of(run), seeds=(0, 1)), run, resume=True, allow=("config.seeds",))


def test_fault_a13_every_seed_is_described_with_its_own_experts(world):
    run = copied(world, "described")
    seed = as_second_seed(run)
    Ledger(seed).withdraw(1)
    write_config(replace(config_of(run), seeds=(0, 1)), run)
    first, second = describe(run).partition("experts of seed 0:")[2].split("experts of seed 1:")
    tables = [[line for line in part.splitlines() if line.split()[:1] == ["0"]] for part in (first, second)]
    # The second task has no slot in a seed that has not learned it.
    assert "1" in tables[0][0].split()[1:] and "1" not in tables[1][0].split()[1:]


def test_fault_a13_every_seed_has_the_sizes_of_its_own_experts(world):
    run = copied(world, "sized")
    alone = [line for line in describe(run).splitlines() if line.startswith("stored: ")]
    seed = as_second_seed(run)
    # The same experts in both seeds are said once; a third seed has not begun.
    write_config(replace(config_of(run), seeds=(0, 1)), run)
    assert [line for line in describe(run).splitlines() if "stored: " in line] == alone and len(alone) == 1
    Ledger(seed).withdraw(1)
    write_config(replace(config_of(run), seeds=(0, 1, 2)), run)
    stored = [line for line in describe(run).splitlines() if "stored: " in line]
    assert stored[0] == f"seed 0, {alone[0]}" and stored[1].startswith("seed 1, stored: experts ")
    assert stored[1].removeprefix("seed 1, ") != alone[0] and "experts 0" in stored[2]


def test_a_seed_in_which_there_is_nothing_to_edit_is_left_as_it_is(world, capsys):
    run = with_second_seed(copied(world, "seeds"), [])
    before, untouched = outcome(run), bytes_of(run / "seed_1")
    found = merge(run, "birds", "fish")
    assert found["left"] == [1] and list(found["stored"]) == ["0"]
    assert "seed 1: there is nothing to merge, it is left as it is" in capsys.readouterr().err
    found = retire(run, "fish", commit=True, allowed=100.0)
    assert found["left"] == [1] and {line["seed"] for line in found["tasks"]} == {0}
    assert "seed 1: there is nothing to retire, it is left as it is" in capsys.readouterr().err
    assert (owners(run)[:, 2] == EMPTY).all() and outcome(run) != before
    for again in (lambda: retire(run, "fish"), lambda: merge(run, "birds", "fish")):
        with pytest.raises(ConfigError, match="no expert to edit"):
            again()
    restore(run)
    assert outcome(run) == before
    assert bytes_of(run / "seed_1") == untouched


def test_an_edit_of_layers_is_made_in_every_seed_where_there_are_experts(world, capsys):
    run = with_second_seed(copied(world, "layers"), [1])
    found = retire(run, "fish", layers=(0, 1))
    fall = {seed: size["kinds"]["experts"][0] - size["kinds"]["experts"][1] for seed, size in found["stored"].items()}
    assert fall["0"] == 2 * fall["1"] > 0 and found["left"] == []
    assert "seed 1: there is something to retire only in layers 1" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no such layers"):
        retire(run, "fish", layers=(0, 9))


@pytest.mark.slow
def test_growth_is_reported_under_the_edits_that_held_when_a_task_was_learned(tmp_path):
    run = learn(make_world(tmp_path, "cmoe", **test_resume_stages.MIXTURE), tmp_path / "run")
    retire(run, "birds", layers=(0,), commit=True, allowed=100.0)
    add(run, tmp_path / "trees")
    session, kept = open_session(config_of(run)), Ledger(run / "seed_0").archive()
    growth_of = session.config.method.growth_of
    was, then = (growth_of(session.model, session.learner_after(kept, edited)) for edited in (None, run))
    found = json.loads((run / "facts.json").read_text())["growth"]
    assert found == {name: [*parts[:2], then[name][2]] for name, parts in was.items()} != was


def test_a_run_that_starts_afresh_has_no_old_edits(world):
    root, _ = world
    run = copied(world, "afresh")
    one = edits.Committed(edits.Edit("retire", 1), 2, "retire the experts of fish", "now", {})
    edits.write(run, (one,))
    assert edits.read(run) == (one,)
    assert (owners(run)[:, 2] == EMPTY).all()
    edits.keep_until(run, 1)
    assert edits.read(run) == () and (owners(run)[:, 2] == 1).all()


def test_tasks_that_are_mixed_up_are_listed_with_the_command_that_merges_them(world):
    near = {0: np.array([[1.0, 1.0, -5.0], [2.0, 1.9, -5.0]]), 1: np.array([[1.1, 1.0, -5.0], [1.0, 1.0, -5.0]])}
    assert mixed_up(near | {2: np.array([[0.0, 0.0, 9.0]])}) == {(0, 1): 50.0, (0, 2): 0.0, (1, 2): 0.0}
    run = copied(world, "overlap")
    (pair,) = overlap(run, mixed=0.0)
    assert pair["tasks"] == ["birds", "fish"] and pair["suggestion"] == f"hidecmoe merge {run} birds fish"
    assert 0 <= pair["mixed"] <= 100 and -1 <= pair["cosine"] <= 1
    assert json.loads((run / "overlap.json").read_text())["pairs"] == [pair]
    (apart,) = overlap(run, mixed=101.0, alike=1.1)
    assert not apart["near"] and apart["suggestion"] is None


def test_the_command_line_knows_all_modes():
    assert set(Modes.__args__) == set(combine.MODES)


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("edits.json", 1),
        pytest.param("cells.json", 1, marks=pytest.mark.slow),
        pytest.param("journal.json", 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_commit_and_a_killed_restore_end_with_the_same_call(world, name, time):
    run = copied(world, f"killed_{name}_{time}")
    before = outcome(run)
    with death_before(name, time):
        retire(run, "fish", commit=True, allowed=100.0)
    found = retire(run, "fish", commit=True, allowed=100.0)
    assert found["committed"] and found == json.loads((run / "retire.json").read_text())
    assert [one.what for one in edits.read(run)] == ["retire the experts of fish"]
    assert (owners(run)[:, 2] == EMPTY).all() and set(outcome(run)["cells"]) == set(before["cells"])
    with death_before(name, time):
        restore(run)
    restore(run)
    assert outcome(run) == before
    with pytest.raises(ConfigError, match="no edit to take back"):
        restore(run)
