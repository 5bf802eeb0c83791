"""Opening of a config: what can be known before training is refused before training, by every command alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny import mapping, write_task

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.core.paths import find_config
from hidecmoe_jax.data.stream import TaskSpec
from hidecmoe_jax.models.store import pocket_folder
from hidecmoe_jax.runs import stream_loop
from hidecmoe_jax.runs.config import from_mapping, load_config, write_config
from hidecmoe_jax.runs.opening import check_stream, open_config
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.scoring.score import SCORERS, mismatch
from hidecmoe_jax.storage.files import write_json

# References by scorer that are right, and some that no answer could ever match.
RIGHT = {
    "exact": ("a wren", "B) green", "..."),
    "contains": ("a wren",),
    "either_contains": ("a wren",),
    "choice": ("B", "b.", "(B) green"),
    "number": ("3", "1,000", "-2.50"),
    "iou": ("[0.1,0.2,0.5,0.6]", "the box is [10, 20, 30.5, 40]"),
    "iou_legacy": ("[0.10,0.20,0.50,0.60]",),
    "caption6": ("a dog", "a dog runs over the wide green field"),
    "vqa": ("a wren", "3", "yes"),
    "relaxed": ("a wren", "3.5", "50%"),
    "anls": ("a wren", "3"),
}
WRONG = {
    "choice": ("B) green", "green", "both"),
    "number": ("three", "3 cm", "50 %"),
    "iou": ("[0.50,0.50,0.20,0.20]", "0.1,0.2,0.5,0.6", "[0.1,0.1,0.1,0.4]"),
    "iou_legacy": ("[0.50,0.50,0.20,0.20]", "[1,2,3,4]"),
    "caption6": ("...", "\u3002"),
    "vqa": ("...", "the"),
}


def rewrite(folder: Path, split: str, change) -> None:
    """Changes the items of a split's file in place."""
    path = folder / f"{split}.json"
    items = json.loads(path.read_text())
    change(items)
    path.write_text(json.dumps(items, ensure_ascii=False))


def answer(number: int, text: str):
    """A change of one test item's answer."""

    def change(items) -> None:
        items[number]["answer"] = text

    return change


BASE = Path("pocket")  # opened without its weights, which takes no time
LONG = {"max_length": 512}


def settings(**more) -> dict:
    """A config as plain values, on the pocket base."""
    plain = mapping(BASE, "hide", tune=LONG, **more)
    plain["evaluate"]["writing"] |= LONG
    return plain


@pytest.fixture
def task(tmp_path) -> Path:
    return write_task(tmp_path / "birds", "a wren")


def scored(task: Path, scorer: str) -> Path:
    (task / "task.json").write_text(json.dumps({"scorer": scorer}))
    return task


def test_fault_a1_every_scorer_gives_its_own_reference_full_marks_or_refuses_it():
    assert set(RIGHT) == set(SCORERS)
    for scorer, references in RIGHT.items():
        assert [mismatch(scorer, reference) for reference in references] == [None] * len(references), scorer
    for scorer, references in WRONG.items():
        for reference in references:
            reason = mismatch(scorer, reference)
            assert reason is not None and repr(reference) in reason and scorer in reason


def test_fault_a1_of_several_annotators_one_needs_a_readable_answer(task):
    several = ["a wren"] * 7 + ["the", "...", "a robin"]
    rewrite(scored(task, "vqa"), "test", lambda items: [item.update(answers=several) for item in items])
    assert not check_stream([TaskSpec(str(task))]).problems
    rewrite(task, "test", lambda items: items[1].update(answers=["the", "..."]))
    problems = check_stream([TaskSpec(str(task))]).problems
    assert len(problems) == 2 and all("b9" in str(problem) for problem in problems)


def test_fault_a1_boxes_as_x_y_width_height_get_the_corners_as_a_hint():
    assert "[0.5,0.6,0.8,0.7]" in mismatch("iou", "[0.50,0.60,0.30,0.10]")
    assert "'B'" in mismatch("choice", "B) green") and "'3.5'" in mismatch("number", "three")


def test_fault_a1_a_reference_is_judged_in_check_run_and_eval_with_file_and_record(task, tmp_path, capsys):
    rewrite(scored(task, "choice"), "test", lambda items: [item.update(answer="B") for item in items])
    rewrite(task, "test", answer(2, "B) green"))
    assert main(["data", "check", str(task), "--errors", str(tmp_path / "e.jsonl")]) == DataError.exit_code
    assert f"{task}/test.json: test.json#2 (id 'b10'): reference 'B) green'" in capsys.readouterr().out
    config = from_mapping(settings(tasks=[task]))
    with pytest.raises(DataError, match=r"test\.json#2 \(id 'b10'\)"):
        stream_loop.learn(config, tmp_path / "run")
    assert not (tmp_path / "run" / "seed_0").exists()
    # A run of an older version may have learned it: evaluating it again says the same.
    identity = {"format": 1, "identity": {"tasks": ["birds"]}, "changes": [], "sessions": []}
    write_json(tmp_path / "run" / "run.json", identity)
    write_config(config, tmp_path / "run")
    with pytest.raises(DataError, match=r"can never be matched by the scorer 'choice'"):
        stream_loop.evaluate_run(tmp_path / "run")
    report = check_stream([TaskSpec(str(task))])
    assert [problem.id for problem in report.problems] == ["b10"]


def test_fault_a1_training_answers_that_the_scorer_cannot_read_are_a_warning(task):
    rewrite(scored(task, "choice"), "test", lambda items: [item.update(answer="B") for item in items])
    report = check_stream([TaskSpec(str(task))])
    assert report.ok
    assert any("7 of 7 training answers" in warning and "train.json#0" in warning for warning in report.warnings)


def test_fault_a2_check_of_folders_reads_every_assignment(task, tmp_path, capsys):
    words = ["data", "check", str(task), "--errors", str(tmp_path / "e.jsonl")]
    assert main([*words, "--set", "nonsense.key=1"]) == ConfigError.exit_code
    assert "unknown key 'nonsense'" in capsys.readouterr().err
    train = json.loads((task / "train.json").read_text())
    rewrite(task, "test", lambda items: items.append(
        {"question_id": "leak", "image": train[0]["image"], "text": "What is shown in picture 0?", "answer": "a wren"}
    ))  # fmt: skip
    assert main([*words, "--set", "stream.val_fraction=0.01"]) == DataError.exit_code
    assert main([*words, "--set", "stream.val_fraction=0.01", "stream.allowed_leaks=1"]) == 0
    assert main([*words, "--set", "base.path=/no/such/base"]) == 4
    assert main([*words, "--set", "stream.tasks.0.scorer=nonsense"]) == ConfigError.exit_code


def test_fault_a2_a_config_is_checked_as_run_opens_it(task, tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    plain = settings()
    plain["stream"] = {"pocket": None, "policy": {"dedupe": "keep-first"}}
    config.write_text(yaml.safe_dump(plain))
    rewrite(task, "train", lambda items: items.append(items[0]))
    words = ["data", "check", str(config), "--tasks", str(task), "--errors", str(tmp_path / "e.jsonl")]
    assert main(words) == 0
    assert "longest training record" in capsys.readouterr().out
    open_session(load_config(config, tasks=[task]))
    assert main([*words, "--set", "stream.policy.dedupe=refuse"]) == DataError.exit_code
    assert main([*words, "--set", "tune.max_length=8"]) == DataError.exit_code
    assert "at most 8 are trained on" in capsys.readouterr().out
    # Half a base is found before its weights are read.
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((pocket_folder() / "config.json").read_text())
    assert main([*words, "--set", f"base.path={tmp_path / 'half'}"]) == 4
    assert "without weights" in capsys.readouterr().err


# Settings that a run would refuse, most of them after a task was trained.
NOT_LEARNABLE = {
    "method.expand=[50]": "method.expand",
    "method.eps=[1.0]": "1 weights for 2 tasks",
    "method.gate={kind: locator, by: {kind: shared_gaussian}, state: {layer: 99}}": "method.gate.state.layer",
    "method.gate.temperature=0": "temperature 0",
    "evaluate.writing.batch=0": "batch",
    "evaluate.writing.max_new_tokens=0": "max_new_tokens",
    "evaluate.writing.top_p=0": "top_p",
    "evaluate.writing.temperature=-1": "temperature -1",
    "base.dtype=float8": "base.dtype",
    "base.feature_batch=0": "feature_batch",
    "seeds=[-1]": "seeds",
    "seeds=[0,4294967296]": "seeds",
    "stream.val_fraction=-0.1": "val_fraction",
    "stream.tasks.0.rate=-1": "rate",
}


@pytest.mark.parametrize(("assignment", "named"), NOT_LEARNABLE.items())
def test_fault_a2_check_refuses_what_a_run_cannot_learn(assignment, named, task, tmp_path, capsys):
    other = write_task(tmp_path / "fish", "a carp", shade=90)
    words = ["pocket/hide", "--tasks", str(task), str(other), "--set", assignment]
    assert main(["data", "check", *words, "--errors", str(tmp_path / "e.jsonl")]) == ConfigError.exit_code
    checked = capsys.readouterr().err
    assert named in checked
    assert main(["run", *words, "--out", str(tmp_path / "run")]) == ConfigError.exit_code
    assert capsys.readouterr().err == checked
    assert not (tmp_path / "run").exists()


def test_fault_a8_settings_without_effect_are_named(task, tmp_path, capsys):
    words = ["data", "check", "pocket/hidecmoe", "--tasks", str(task), "--errors", str(tmp_path / "e.jsonl")]
    assignments = ["evaluate.writing.unknown=refuse", "evaluate.writing.top_p=0.5"]
    assert main([*words, "--set", *assignments, "method.gate.foreign=null"]) == 0
    report = capsys.readouterr().out
    assert all(f"{name.partition('=')[0]}" in report for name in assignments)
    assert report.count("has no effect") == 2
    assert main([*words, "--set", *assignments, "method.gate.foreign=0.05"]) == 0
    assert capsys.readouterr().out.count("has no effect") == 1


def test_fault_a8_an_answer_to_ties_without_ties_is_named(task, tmp_path, capsys):
    words = ["data", "check", "pocket/cmoe", "--tasks", str(task), "--errors", str(tmp_path / "e.jsonl"), "--set"]
    assert main([*words, "method.gate.tied=base"]) == 0
    assert "tied=base of the gate has no effect" in capsys.readouterr().out
    assert main([*words, "method.gate.tied=base", "method.gate.tie=0.1"]) == 0
    assert "has no effect" not in capsys.readouterr().out


# Records a task has, the method's settings, and what is named: the task, the number and the least number.
TOO_FEW = [
    (1, "pocket/cmoe_published", [], ["task fish", "1, at least 2 are needed"]),
    (3, "pocket/cmoe_published", [], ["task birds", "3 training records", "takes at least 4", "at least 4 records"]),
    (6, "pocket/cmoe_published", ["method.gate.kept_apart=0.5"], ["6 training records", "at least 8 records"]),
    (1, "pocket/hide", ["method.expand={by: probe, layers: 1}"], ["task fish", "1, at least 2 are needed"]),
]


@pytest.mark.parametrize(("count", "config", "assignments", "named"), TOO_FEW)
def test_fault_c1_a_task_of_too_few_records_is_refused_before_training(
    count, config, assignments, named, tmp_path, capsys
):
    folders = [str(write_task(tmp_path / name, "a wren", shade=9 * number, train=count, test=2))
               for number, name in enumerate(("birds", "fish"))]  # fmt: skip
    # Without a fraction to validate on, all records are trained on.
    for folder in folders:
        rewrite_as_validation(Path(folder))
    words = [config, "--tasks", *folders, "--set", *assignments]
    words = words if assignments else words[:-1]
    assert main(["run", *words, "--out", str(tmp_path / "run")]) == DataError.exit_code
    error = capsys.readouterr().err
    assert all(text in error for text in named), error
    assert not (tmp_path / "run").exists()
    assert main(["data", "check", *words, "--errors", str(tmp_path / "e.jsonl")]) == DataError.exit_code
    report = capsys.readouterr().out
    assert all(text in report for text in named), report


def rewrite_as_validation(folder: Path) -> None:
    """Gives a task its test items as validation items too."""
    items = json.loads((folder / "test.json").read_text())
    (folder / "val.json").write_text(json.dumps(items))


def test_fault_a8_a_task_too_small_for_a_threshold_is_named(tmp_path, capsys):
    task = write_task(tmp_path / "birds", "a wren", train=4, test=2)
    rewrite_as_validation(task)
    words = ["data", "check", "pocket/hide", "--tasks", str(task), "--errors", str(tmp_path / "e.jsonl"), "--set"]
    assert main([*words, "method.gate.foreign=0.05"]) == 0
    assert "birds: of 4 training records none is held out" in capsys.readouterr().out
    assert main([*words, "method.gate.foreign=0.05", "method.gate.kept_apart=0.5"]) == 0
    assert "none is held out" not in capsys.readouterr().out


@pytest.mark.parametrize("reference", ["A wren.", "a\u00a0wren", "\u200ba wren", "\uff41 wren"])
def test_fault_a1_references_of_another_form_than_training_answers_are_a_warning(reference, task):
    assert not check_stream([TaskSpec(str(task))]).warnings
    rewrite(task, "train", lambda items: [item["conversations"][1].update(value="a wren") for item in items])
    rewrite(task, "test", lambda items: [item.update(answer="a wren") for item in items])
    rewrite(task, "test", answer(1, reference))
    warnings = check_stream([TaskSpec(str(task))]).warnings
    forms = [line for line in warnings if "differ in their form alone" in line]
    assert len(forms) == 1 and "1 of " in forms[0] and "test.json#1" in forms[0]


def test_fault_a2_set_may_change_the_entry_of_a_folder(task, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings()))
    config = load_config(path, overrides=["stream.tasks.0.name=finches"], tasks=[task])
    assert config.stream.tasks[0].name == "finches"


def test_fault_c1_a_prompt_that_is_too_long_is_refused_without_a_zero_shot_row(task):
    rewrite(task, "test", lambda items: items[1].update(text="Which " * 600))
    config = from_mapping(settings(tasks=[task]))
    config = replace(config, evaluate=replace(config.evaluate, zero_shot=False))
    with pytest.raises(DataError, match=r"(?s)test\.json#1 \(id 'b9'\).*evaluate\.writing\.max_length="):
        open_session(config)


def test_fault_c1_too_long_a_training_record_is_refused_when_the_config_is_opened(task):
    config = from_mapping(settings(tasks=[task]))
    config = replace(config, tune=replace(config.tune, max_length=8))
    with pytest.raises(DataError, match=r"(?s)train\.json#0 \(id 'a0'\).*--set tune\.max_length="):
        open_session(config)
    assert open_config(replace(config, tune=replace(config.tune, max_length=512))).report.ok


def test_fault_e4_identical_problems_are_one_line(tmp_path):
    task = write_task(tmp_path / "birds", "a wren")
    (task / "images").rename(task / "pictures")
    with pytest.raises(DataError) as refused:
        check_stream([TaskSpec(str(task))]).require()
    why = refused.value.why
    assert f"there is no folder {task / 'images'}" in why and "(and 7 more of this kind)" in why
    assert why.count("does not exist") == 1


def test_fault_e5_a_wrong_key_in_test_json_is_named_with_the_right_one(task):
    rewrite(task, "test", lambda items: [item.update(question=item.pop("text")) for item in items])
    report = check_stream([TaskSpec(str(task))])
    assert "no 'text', the question; rename 'question' to 'text'" in report.problems[0].problem
    rewrite(task, "test", lambda items: [item.update(text=item.pop("question")) for item in items])
    rewrite(task, "test", lambda items: [item.update(anwser=item.pop("answer")) for item in items])
    report = check_stream([TaskSpec(str(task))])
    assert "rename 'anwser' to 'answer'" in report.problems[0].problem
    assert report.text().count("rename 'anwser'") == 1


def test_fault_e1_a_typo_in_a_folder_names_the_nearest_folder(task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "brids"]) == ConfigError.exit_code
    error = capsys.readouterr().err
    assert "did you mean 'birds'?" in error and "pocket/" not in error
    assert main(["data", "check", "birds", "brids"]) == DataError.exit_code
    assert "did you mean 'birds'?" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"did you mean 'pocket/hide.yaml'\?"):
        find_config("pocket/hid")


def test_fault_e1_the_last_part_of_a_shipped_configs_name_is_enough_for_a_hint():
    for name, hint in (("hidecmoe", "'pocket/hidecmoe.yaml'"), ("pocket/hidcmoe", "'pocket/hidecmoe.yaml'")):
        with pytest.raises(ConfigError) as refused:
            find_config(name)
        assert refused.value.remedy == f"did you mean {hint}?"


def test_fault_e2_run_of_a_folder_says_what_takes_one(task, tmp_path, capsys):
    assert main(["run", str(task)]) == ConfigError.exit_code
    assert f"hidecmoe run pocket/hide --tasks {task}" in capsys.readouterr().err
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "run.json").write_text("{}")
    assert main(["run", str(tmp_path / "done")]) == ConfigError.exit_code
    assert "a run is no config" in capsys.readouterr().err


def test_fault_e6_two_folders_of_one_name_get_a_remedy_that_works(task, tmp_path, capsys):
    other = write_task(tmp_path / "south" / "birds", "a carp", shade=90)
    words = ["data", "check", str(task), str(other), "--errors", str(tmp_path / "e.jsonl")]
    assert main(words) == ConfigError.exit_code
    assert "two tasks of a stream have one name" in capsys.readouterr().out
    with pytest.raises(ConfigError) as refused:
        check_stream([TaskSpec(str(task)), TaskSpec(str(other))]).require()
    assert str(other / "task.json") in refused.value.remedy
    about = refused.value.remedy.partition("write ")[2].partition(" into ")[0]
    (other / "task.json").write_text(about)
    assert main(words) == 0


def test_fault_e5_settings_of_training_in_task_json_are_sent_to_the_config(task):
    (task / "task.json").write_text('{"epochs": 3}')
    with pytest.raises(DataError) as refused:
        check_stream([TaskSpec(str(task))]).require()
    assert "unknown key" in str(refused.value) and "the config's stream entry" in str(refused.value)
