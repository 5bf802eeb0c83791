"""A run from Python: what it leaves, what it refuses, how a task is added, and whose method it may be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dying import death_before
from runs_world import make_world, outcome, sealed_as_is
from tiny import SMALL_LORA, write_base, write_task

from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError, GateError
from hidecmoe_jax.data.records import read_file
from hidecmoe_jax.runs import evaluation
from hidecmoe_jax.runs.assistant import load
from hidecmoe_jax.runs.config import config_of, from_mapping, to_mapping
from hidecmoe_jax.runs.folder import RunFolder, SeedFolder
from hidecmoe_jax.runs.gates import Force, read_gates
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.results import rebuild
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.seed_run import Options, SeedRun
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.runs.stream_loop import add, evaluate_run, learn, rollback
from hidecmoe_jax.runs.watching import StageMonitor
from hidecmoe_jax.scoring.score import score
from hidecmoe_jax.storage.signals import Stop


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder, config, and a run that learned birds and fish."""
    root = tmp_path_factory.mktemp("loop")
    config = make_world(root)
    return root, config, learn(config, root / "run")


def copied(world, name: str) -> Path:
    root, _, run = world
    return Path(shutil.copytree(run, root / name))


def unmeasured(config) -> dict:
    """The config as plain values, with no more measured than one row."""
    mapping = to_mapping(config)
    mapping["evaluate"] |= {"zero_shot": False, "between": "none", "named": "none"}
    return mapping


def report(run: Path) -> dict:
    return json.loads((run / "report.json").read_text())


def test_a_run_leaves_lessons_answers_scores_and_a_report(world):
    _, config, run = world
    assert [record.name for record in Ledger(run / "seed_0").tasks()] == ["birds", "fish"]
    facts = Ledger(run / "seed_0").meta(0)
    assert (facts["tasks"], facts["samples"], facts["epochs"], facts["seed"]) == (["birds"], 7, 1, 0)
    found = report(run)
    assert found["tasks"] == ["birds", "fish"] and np.shape(found["matrix"]) == (3, 2)
    assert all(score is not None for row in found["matrix"] for score in row)
    assert found["named_task_last"] is not None
    # A run states the rule for pictures that was in force, here the base's own.
    assert config_of(run) == replace(config, base=replace(config.base, image_fit="pad"))
    lines = evaluation.read_answers(run / "seed_0" / "answers" / "row_002" / "birds.jsonl")
    assert [line["question_id"] for line in lines] == ["b8", "b9", "b10", "b11"]
    assert all(abs(sum(line["weights"].values()) - 1) < 1e-4 for line in lines)
    assert not list((run / "seed_0" / "progress").glob("0*")), "checkpoints are scaffolding"


def test_a_config_survives_its_file(world):
    _, config, _ = world
    assert from_mapping(to_mapping(config)) == config


def test_a_cell_that_is_missing_is_null_and_no_headline_is_made_of_the_rest(world):
    run = copied(world, "missing")
    cells = Cells(run / "seed_0" / "cells.json")
    known = cells.read()
    del known[2]["birds"]
    (run / "seed_0" / "cells.json").write_text(json.dumps(known))
    sealed_as_is(run)
    rebuild(run)
    found = report(run)
    assert found["matrix"][2][0] is None and found["matrix"][2][1] is not None
    assert found["avg"] is None and found["forgetting"] is None
    evaluate_run(run)
    assert report(run)["matrix"] == report(world[2])["matrix"]


@pytest.mark.parametrize(("between", "measured"), [("seen", (0, 1)), ("own", (0,)), ("none", ())])
def test_rows_between_the_first_and_the_last_are_measured_as_asked(world, between, measured):
    _, config, run = world
    session = open_session(replace(config, evaluate=replace(config.evaluate, between=between)))
    rows = [SeedRun(session, SeedFolder(run / "seed_0"), 0, Options(), Stop()).rows.wanted(row) for row in (0, 1, 2)]
    assert rows == [(0, 1), measured, (0, 1)]
    whole = SeedRun(session, SeedFolder(run / "seed_0"), 0, Options(full_matrix=True), Stop())
    assert whole.rows.wanted(1) == (0, 1)


def test_evaluating_again_measures_only_what_is_missing(world):
    run = copied(world, "again")
    before = outcome(run)
    evaluate_run(run, task=1, full_matrix=True)
    assert outcome(run) == before
    with pytest.raises(ConfigError, match="not learned so many tasks"):
        evaluate_run(run, task=3)


def test_a_changed_config_is_refused_field_by_field(world):
    _, config, run = world
    other = replace(config, method=replace(config.method, lora=replace(config.method.lora, rank=4)), seeds=(0, 1))
    with pytest.raises(CheckpointError) as refused:
        learn(other, run, resume=True)
    assert "config.method.lora.rank: was 2, now 4" in str(refused.value) and "config.seeds" in str(refused.value)
    assert refused.value.exit_code == 4
    order = replace(config, stream=replace(config.stream, tasks=config.stream.tasks[::-1]))
    with pytest.raises(CheckpointError, match="tasks.0: was 'birds', now 'fish'"):
        learn(order, run, resume=True)
    first, second = config.stream.tasks
    longer = replace(config, stream=replace(config.stream, tasks=(first, replace(second, epochs=3))))
    with pytest.raises(CheckpointError, match="own.fish.epochs: was None, now 3"):
        learn(longer, run, resume=True)


def test_changed_data_are_refused(world):
    root, config, run = world
    picture = root / "fish" / "images" / "2.png"
    kept = picture.read_bytes()
    try:
        picture.write_bytes((root / "fish" / "images" / "3.png").read_bytes())
        with pytest.raises(CheckpointError) as refused:
            learn(config, run, resume=True)
    finally:
        picture.write_bytes(kept)
    assert "data.fish.pictures" in str(refused.value) and "data.birds" not in str(refused.value)
    assert outcome(learn(config, run, resume=True)) == outcome(run)


def test_another_base_model_is_refused(world):
    root, config, run = world
    write_base(root / "other", seed=1)
    with pytest.raises(CheckpointError, match="base: was"):
        learn(replace(config, base=replace(config.base, path=str(root / "other"))), run, resume=True)


def test_a_method_that_touches_an_old_expert_is_caught_and_nothing_is_committed(world):
    root, config, _ = world
    broken = from_mapping(unmeasured(config) | {"method": {"kind": "own_method:Careless", "lora": SMALL_LORA}})
    with pytest.raises(CheckpointError, match="what is frozen changed") as caught:
        learn(broken, root / "careless")
    assert "experts of lesson 0" in caught.value.where
    assert [record.name for record in Ledger(root / "careless" / "seed_0").tasks()] == ["birds"]


def test_a_method_of_ones_own_is_named_in_the_config(world):
    root, config, _ = world
    mapping = unmeasured(config) | {
        "method": {"kind": "own_method:Gentle", "name": "gentle", "share": 0.25, "lora": SMALL_LORA}
    }
    mine = from_mapping(mapping)
    assert type(mine.method).__name__ == "Gentle" and from_mapping(to_mapping(mine)) == mine
    run = learn(mine, root / "gentle")
    assert report(run)["method"] == "gentle"
    assert config_of(run) == replace(mine, base=replace(mine.base, image_fit="pad"))
    for kind, message in {
        "own_method:Gentel": "cannot import",
        "rooted": "unknown kind",
        "none_such:Gentle": "cannot import",
        "own_method:Unfinished": "Unfinished has no name, init, stages, learned, to_archive, from_archive,",
        "own_method:Nameless": "(?m)Nameless has no name$",
        "collections:OrderedDict": "OrderedDict has no name, lora, gate, traits, gated, gate_memory, init",
    }.items():
        with pytest.raises(ConfigError, match=message):
            from_mapping(mapping | {"method": {"kind": kind}})


def test_a_task_is_added_and_earlier_experts_keep_every_byte(world):
    root, _, _ = world
    run = copied(world, "grown")
    before = outcome(run)
    add(run, root / "trees", epochs=2)
    after = outcome(run)
    assert list(after["lessons"]) == ["birds", "fish", "trees"]
    assert {name: after["lessons"][name] for name in before["lessons"]} == before["lessons"]
    assert Ledger(run / "seed_0").meta(2)["epochs"] == 2
    assert np.shape(report(run)["matrix"]) == (4, 3)
    assert after["answers"]["answers/row_001/birds.jsonl"] == before["answers"]["answers/row_001/birds.jsonl"]

    with pytest.raises(ConfigError, match="a task of this name"):
        add(run, root / "trees")

    add(run, root / "trees", epochs=1, redo=True)
    again = outcome(run)
    assert {name: again["lessons"][name] for name in before["lessons"]} == before["lessons"]
    assert again["lessons"]["trees"] != after["lessons"]["trees"]
    assert len([line for line in again["metrics"] if line["task"] == "trees"]) == 4
    assert np.shape(report(run)["matrix"]) == (4, 3)


def test_a_run_goes_back_to_an_earlier_task_and_on_from_there(world):
    root, _, _ = world
    run = copied(world, "rolled_back")
    before = outcome(run)
    add(run, root / "trees")
    after = outcome(run)
    rollback(run, 2)
    assert outcome(run) == before and report(run)["tasks"] == ["birds", "fish"]
    assert list((run / "seed_0" / "withdrawn").glob("002_trees*"))
    add(run, root / "trees")
    assert outcome(run) == after
    for wrong in (0, 3, 4):
        with pytest.raises(ConfigError, match="no such point"):
            rollback(run, wrong)


def gates_in(root: Path, text: str, **options):
    (root / "gates.yaml").write_text(text)
    return read_gates(root / "gates.yaml", **options)


def test_a_task_that_does_not_pass_is_taken_back_whole_and_one_by_force_is_recorded(world):
    root, _, _ = world
    run = copied(world, "gated")
    before = outcome(run)
    text = "old_tasks: {may_lose: 0}\nnew_task: {at_least: 101}\nsets: [{folder: birds, at_least: 0, may_lose: 100}]"
    with pytest.raises(GateError, match="trees was not committed: 1 of 5") as refused:
        add(run, root / "trees", gating=gates_in(root, text))
    assert refused.value.exit_code == 9 and "at least 101" in str(refused.value)
    assert outcome(run) == before and task_names(run) == ["birds", "fish"]

    add(run, root / "trees", gating=gates_in(root, text, force=Force("anna", "the old cameras are gone")))
    assert task_names(run) == ["birds", "fish", "trees"]
    decisions = json.loads((run / "gates.json").read_text())["decisions"]
    assert [decision["committed"] for decision in decisions] == [False, True]
    assert decisions[0]["force"] is None and decisions[1]["force"]["by"] == "anna"

    # What the gates measured is what an own count over the answers on the disk finds.
    records = read_file(root / "birds" / "test.json", root / "birds", test=True).records
    lines = evaluation.read_answers(RunFolder(run).seed(0).answers(3, "birds", named=False))
    texts = {line["question_id"]: line["text"] for line in lines}
    truth = score("exact", texts, {record.id: record.references for record in records}).value
    by_gate = {line["gate"]: line["after"] for line in decisions[1]["gates"]}
    assert by_gate["birds"] == truth and by_gate["birds (birds)"] == truth

    with pytest.raises(ConfigError, match="gates are for a new task"):
        add(run, root / "trees", redo=True, gating=gates_in(root, text))
    with pytest.raises(ConfigError, match="committed already"):
        add(run, root / "trees", gating=gates_in(root, text))
    rollback(run, 2)
    assert outcome(run) == before


def test_a_redone_task_of_other_data_leaves_no_old_answers(world):
    root, _, _ = world
    run = copied(world, "mended")
    folder = write_task(root / "mended_data" / "fish", "a pike", shade=40, test=6)
    add(run, folder, redo=True)
    found = Cells(run / "seed_0" / "cells.json").read()
    assert [found[row]["fish"]["count"] for row in (0, 1, 2)] == [6, 6, 6]
    assert outcome(run)["lessons"]["birds"] == outcome(world[2])["lessons"]["birds"]


def test_an_interrupted_addition_goes_on_with_the_same_call(world, monkeypatch):
    root, _, _ = world
    run = copied(world, "interrupted")
    write_task(root / "reeds", "an oak", shade=200)

    class Died(BaseException):
        pass

    def crash(here: str, about: str = "") -> None:
        if (here, about) == ("before_commit", "reeds"):
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr("hidecmoe_jax.runs.ledger.crash_point", crash)
        with pytest.raises(Died):
            add(run, root / "reeds")
    with pytest.raises(ConfigError, match="not finished"):
        add(run, root / "birds")
    add(run, root / "reeds")
    assert report(run)["tasks"] == ["birds", "fish", "reeds"]


def test_fault_c1_an_addition_is_refused_before_training_and_goes_on_where_it_stopped(world, monkeypatch):
    root, _, _ = world
    run = copied(world, "stuck")
    bad = write_task(root / "moss", "an oak", shade=220)
    (bad / "task.json").write_text(json.dumps({"scorer": "choice"}))
    before = {path.name: path.read_bytes() for path in (run / "config.yaml", run / "run.json")}
    with pytest.raises(DataError, match=r"(?s)test\.json#0 \(id 'b8'\).*can never be matched"):
        add(run, bad)
    assert {name: (run / name).read_bytes() for name in before} == before
    assert len(Ledger(run / "seed_0").tasks()) == 2
    (bad / "task.json").unlink()

    class Died(BaseException):
        pass

    def crash(here: str, about: str = "") -> None:
        if here == "mid_evaluate" and len(Ledger(run / "seed_0").tasks()) == 3:
            raise Died

    # Learned, and stopped while its questions were answered: the same call goes on.
    with monkeypatch.context() as patch:
        patch.setattr("hidecmoe_jax.runs.evaluation.crash_point", crash)
        with pytest.raises(Died):
            add(run, bad)
    learned = Ledger(run / "seed_0").meta(2)
    items = json.loads((bad / "test.json").read_text())
    (bad / "test.json").write_text(json.dumps(items[:-1]))
    for again in (lambda: add(run, bad), lambda: evaluate_run(run)):
        with pytest.raises(CheckpointError) as refused:
            again()
        assert "--allow-config-change" not in str(refused.value) and "add RUN DIR --redo" in str(refused.value)
    (bad / "test.json").write_text(json.dumps(items))
    add(run, bad)
    assert report(run)["tasks"] == ["birds", "fish", "moss"]
    assert Ledger(run / "seed_0").meta(2) == learned


@pytest.mark.slow  # test_given_up.py tests the same of checkpoints between and within stages of a mixture
def test_a_checkpoint_of_other_data_is_not_gone_on_from(world, monkeypatch, capsys):
    root, _, _ = world
    run, other = copied(world, "given_up"), write_task(root / "others" / "trees", "an elm", shade=30)
    wanted = outcome(add(copied(world, "never_begun"), other))
    left, finished = run / "seed_0" / "progress", StageMonitor.step

    class Died(BaseException):
        pass

    def step(self, stage, number, *rest):
        finished(self, stage, number, *rest)
        if number == 2:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(StageMonitor, "step", step)
        with pytest.raises(Died):
            add(run, root / "trees")
    kept = shutil.copytree(left, root / "left")
    assert list(kept.glob("0*"))
    rollback(run, 2)
    assert not list(left.glob("0*"))
    shutil.copytree(kept, left, dirs_exist_ok=True)
    assert outcome(add(run, other)) == wanted
    assert "trees: the checkpoint within stage tune is of other data" in capsys.readouterr().err


def test_a_method_that_learns_at_once_cannot_add(world):
    root, config, _ = world
    joint = replace(config, method=replace(config.method, name="joint", growth="shared", union=True))
    run = learn(joint, root / "joint")
    assert [record.name for record in Ledger(run / "seed_0").tasks()] == ["joint"]
    found = report(run)
    assert found["matrix"][1] == [None, None] and None not in found["matrix"][2]
    with pytest.raises(ConfigError, match="cannot add"):
        add(run, root / "birds")


PLACES = [
    ("journal.json", 1),  # nothing is changed yet
    pytest.param("001_fish", 1, marks=pytest.mark.slow),
    pytest.param("cells.json", 1, marks=pytest.mark.slow),
    ("row_002", 1),  # the lesson is taken out, its answers are not
    pytest.param("run.json", 1, marks=pytest.mark.slow),
    ("config.yaml", 1),
    pytest.param("journal.json", 2, marks=pytest.mark.slow),
    pytest.param("facts.json", 2, marks=pytest.mark.slow),
    ("journal.json", 3),  # all is done
]


@pytest.fixture(scope="module")
def rolled_back(world):
    return whole(rollback(copied(world, "rolled_back_at_once"), 1))


def whole(run: Path) -> dict:
    shown = {name: report(run)[name] for name in ("tasks", "matrix", "named_task_last", "stored_parameters")}
    return outcome(run) | shown | {"config": (run / "config.yaml").read_text(), "names": task_names(run)}


@pytest.mark.parametrize(("name", "time"), PLACES)
def test_a_killed_rollback_ends_with_the_same_call(world, rolled_back, name, time):
    run = copied(world, f"rolled_back_{name}_{time}")
    with death_before(name, time):
        rollback(run, 1)
    assert load(run).tasks == (("birds", "fish") if (name, time) == PLACES[0] else ("birds",))
    rollback(run, 1)
    assert whole(run) == rolled_back
    # The journal of a call that came back is no licence: one more is judged by what it finds.
    with pytest.raises(ConfigError, match="no such point"):
        rollback(run, 1)


def test_what_a_killed_command_began_is_carried_out_before_another(world, rolled_back):
    run = copied(world, "half_changed")
    with death_before("run.json"):
        rollback(run, 1)
    add(run, world[0] / "fish")
    again = outcome(run)
    assert again["lessons"] == outcome(world[2])["lessons"] and report(run)["tasks"] == ["birds", "fish"]
    with pytest.raises(ConfigError, match="no such point"):
        rollback(run, 2)


@pytest.mark.parametrize(
    ("redo", "name", "time"),
    [
        (False, "config.yaml", 1),
        pytest.param(False, "002_trees", 1, marks=pytest.mark.slow),
        pytest.param(False, "journal.json", 3, marks=pytest.mark.slow),
        pytest.param(True, "002_trees.0", 1, marks=pytest.mark.slow),
        pytest.param(True, "run.json", 1, marks=pytest.mark.slow),
        pytest.param(True, "journal.json", 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_addition_ends_with_the_same_call(world, redo, name, time):
    root, _, _ = world
    begun = copied(world, f"added_{redo}_{name}_{time}")
    if redo:
        add(begun, root / "trees", epochs=2)
    at_once = Path(shutil.copytree(begun, f"{begun}_at_once"))
    add(at_once, root / "trees", redo=redo)
    with death_before(name, time):
        add(begun, root / "trees", redo=redo)
    add(begun, root / "trees", redo=redo)
    assert whole(begun) == whole(at_once)
