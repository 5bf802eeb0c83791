"""Gates of a new task: what the file may say, what is measured, and that a task that does not pass leaves no trace."""

import json
import shutil

import pytest
from runs_world import make_world, outcome

from hidecmoe_jax.core.errors import ConfigError, GateError
from hidecmoe_jax.data.records import read_file
from hidecmoe_jax.runs import gates
from hidecmoe_jax.runs.evaluation import read_answers
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.gates import Force, GateResult, read_gates
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.runs.stream_loop import add, learn, rollback
from hidecmoe_jax.scoring.score import score


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with the tasks, and a run that learned birds."""
    root = tmp_path_factory.mktemp("gates")
    return root, learn(make_world(root, tasks=1), root / "run")


def written(root, text: str, **options):
    path = root / "gates.yaml"
    path.write_text(text)
    return read_gates(path, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "there is no gate"),
        ("new_task: {at_lest: 3}", "did you mean 'at_least'"),
        ("new_task: {at_least: high}", "expected a number"),
        ("old_tasks: {may_lose: -1}", "0 or more"),
        ("sets: [{folder: birds}]", "may_lose, at_least, or both"),
    ],
)
def test_a_file_of_gates_is_read_strictly(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        written(tmp_path, text)


def test_sets_are_of_a_task_and_only_old_ones_can_lose(world):
    root, _ = world
    with pytest.raises(ConfigError, match="it is of 'fish'"):
        written(root, "sets: [{folder: fish, at_least: 1}]").open_sets(["birds", "trees"])
    with pytest.raises(ConfigError, match="no score before"):
        written(root, "sets: [{folder: trees, may_lose: 1}]").open_sets(["birds", "trees"])
    with pytest.raises(ConfigError, match="gates are for a new task"):
        add(root / "run", root / "birds", redo=True, gating=written(root, "old_tasks: {may_lose: 1}"))


@pytest.mark.parametrize(
    ("value", "rule", "limit", "passed"),
    [(2.0, "at most", 2.0, True), (2.01, "at most", 2.0, False), (-5.0, "at most", 0.0, True),
     (80.0, "at least", 80.0, True), (79.9, "at least", 80.0, False), (None, "at least", 0.0, False)],
)  # fmt: skip
def test_a_limit_itself_is_kept_and_what_was_not_measured_passes_nothing(value, rule, limit, passed):
    assert GateResult("birds", None, None, value, rule, limit).passed is passed


def test_a_task_that_does_not_pass_is_taken_back_whole_and_one_by_force_is_recorded(world):
    root, run = world
    run = shutil.copytree(run, root / "gated")
    before = outcome(run)
    text = "old_tasks: {may_lose: 0}\nnew_task: {at_least: 101}\nsets: [{folder: birds, at_least: 0, may_lose: 100}]"
    with pytest.raises(GateError, match="fish was not committed: 1 of 4") as refused:
        add(run, root / "fish", gating=written(root, text))
    assert refused.value.exit_code == 9 and "at least 101" in str(refused.value)
    assert outcome(run) == before and task_names(run) == ["birds"]

    add(run, root / "fish", gating=written(root, text, force=Force("anna", "the old cameras are gone")))
    assert task_names(run) == ["birds", "fish"]
    decisions = json.loads((run / "gates.json").read_text())["decisions"]
    assert [decision["committed"] for decision in decisions] == [False, True]
    assert decisions[0]["force"] is None and decisions[1]["force"]["by"] == "anna"

    # What the gates measured is what an own count over the answers on the disk finds.
    records = read_file(root / "birds" / "test.json", root / "birds", test=True).records
    lines = read_answers(RunFolder(run).seed(0).answers(2, "birds", named=False))
    texts = {line["question_id"]: line["text"] for line in lines}
    truth = score("exact", texts, {record.id: record.references for record in records}).value
    by_gate = {line["gate"]: line["after"] for line in decisions[1]["gates"]}
    assert by_gate["birds"] == truth and by_gate["birds (birds)"] == truth

    with pytest.raises(ConfigError, match="committed already"):
        add(run, root / "fish", gating=written(root, text))
    rollback(run, 1)
    assert outcome(run) == before


def test_the_table_shows_every_gate_with_its_value_and_limit():
    lines = gates.gate_lines([GateResult("birds", 90.0, 85.5, 4.5, "at most", 2.0)])
    assert lines[1].split() == ["birds", "90.0", "85.5", "falls", "4.5", "at", "most", "2", "NOT", "PASSED"]
