"""The check of a whole stream: it collects, counts, and finds exams that were practised."""

from __future__ import annotations

import json
import shutil

import pytest

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.check import check_stream
from hidecmoe_jax.data.records import Policy
from hidecmoe_jax.data.stream import TaskSpec


def test_clean_stream_is_ok(make_task):
    specs = [TaskSpec(str(make_task(name, seed=seed))) for seed, name in enumerate(("animals", "smiles"))]
    report = check_stream(specs)
    assert report.ok and report.require() is report
    text = report.text().splitlines()
    assert text[0].split() == ["task", "train", "val", "test", "pictures", "answer", "words", "scorer"]
    assert text[1].split() == ["animals", "18", "2", "5", "25", "2", "/", "2", "/", "2", "exact"]
    assert text[-1] == "ok"


def test_problems_of_all_tasks_are_collected(make_task, tmp_path):
    specs = []
    for name in ("animals", "smiles"):
        folder = make_task(name)
        (folder / "images" / "train_1.png").unlink()
        (folder / "images" / "train_2.png").write_bytes(b"")
        specs.append(TaskSpec(str(folder)))
    errors = tmp_path / "data_errors.jsonl"
    errors.write_text('{"problem": "old"}\n')
    report = check_stream([*specs, TaskSpec(str(tmp_path / "none"))], policy=Policy(errors=str(errors)))
    assert not report.ok and len(report.problems) == 5
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [line["source"] for line in lines[:4]] == ["train.json#1", "train.json#2"] * 2
    assert "refused: 5 problems" in report.text() and "no such task folder" in report.text()
    with pytest.raises(DataError, match="5 problems"):
        report.require()


def test_two_tasks_of_one_name_are_a_problem_beside_the_others(make_task):
    first = TaskSpec(str(make_task("animals", seed=0)), name="pets")
    second = TaskSpec(str(make_task("smiles", seed=1)), name="pets")
    broken = TaskSpec(str(make_task("trees", seed=2)), name="no/name")
    report = check_stream([first, second, broken])
    assert [problem.source for problem in report.problems] == [broken.folder, "pets"]
    assert "two tasks of a stream have one name" in report.text() and "cannot be the name" in report.text()
    assert report.exit_code == 2
    empty = check_stream([])
    assert [str(problem) for problem in empty.problems] == [
        "stream: a stream without tasks: the list of task folders is empty"
    ]
    assert empty.exit_code == 2


def test_items_of_a_test_in_training_data_of_any_task_are_refused(make_task):
    animals, smiles = make_task("animals", seed=0), make_task("smiles", seed=1)
    shutil.copy(animals / "images" / "train_4.png", smiles / "images" / "test_2.png")
    specs = [TaskSpec(str(animals)), TaskSpec(str(smiles))]
    # Item 4 must stand in the training split, so no validation split may have taken it.
    report = check_stream(specs, val_fraction=0.01)
    assert [(leak.task, leak.id, leak.trained_in, leak.trained_id) for leak in report.leaks] == [
        ("smiles", "smiles-2", "animals", "animals-4")
    ]
    with pytest.raises(DataError, match="(?s)1 test items.*allowed_leaks"):
        report.require()
    assert check_stream(specs, val_fraction=0.01, allowed_leaks=1).ok

    items = json.loads((smiles / "test.json").read_text())
    items[2]["text"] = "Another question?"
    (smiles / "test.json").write_text(json.dumps(items))
    report = check_stream(specs, val_fraction=0.01)
    assert report.ok and "with another question" in report.text()


def test_look_alikes_of_control_tokens_are_counted(make_task):
    folder = make_task("animals")
    items = json.loads((folder / "train.json").read_text())
    items[0]["conversations"][1]["value"] = "a dog</s> USER: more"
    (folder / "train.json").write_text(json.dumps(items))
    report = check_stream([TaskSpec(str(folder))])
    assert report.ok and any("1 texts contain" in warning for warning in report.warnings)


def test_contradicting_answers_are_a_warning(make_task):
    folder = make_task("animals")
    items = json.loads((folder / "train.json").read_text())
    twin = json.loads(json.dumps(items[0])) | {"id": "twin"}
    twin["conversations"][1]["value"] = "a cat"
    (folder / "train.json").write_text(json.dumps([*items, twin]))
    report = check_stream([TaskSpec(str(folder))], val_fraction=0.01)
    assert report.ok and any("several different answers" in warning for warning in report.warnings)
