"""What a terminal shows: the outcome of a run, progress of a batch job, and messages that lead on."""

import copy
import io
import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.report import RunFacts, SeedResult, run_document
from hidecmoe_jax.report.verdict import POCKET_NOTE, verdict_lines, verdict_of
from hidecmoe_jax.runs import watching
from hidecmoe_jax.runs.config import from_mapping, load_config, to_mapping
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.missing import load_archive
from hidecmoe_jax.runs.progress import Progress
from hidecmoe_jax.runs.scores import Curve
from hidecmoe_jax.runs.seed_run import Options
from hidecmoe_jax.runs.status import Status, duration, new_bar
from hidecmoe_jax.runs.watching import StageMonitor
from hidecmoe_jax.scoring.floor import floor_of
from hidecmoe_jax.storage import files
from hidecmoe_jax.storage.signals import Stop
from hidecmoe_jax.train.optim import TrainConfig

TASKS = ("animals", "doubt", "signs")


def document_of(matrix, *, floors=(12.5, 50.0, 25.0), curves=None, base="pocket", lessons=None):
    """The document of a run over three tasks."""
    named = {task: {"answer": "a cat", "score": floor} for task, floor in zip(TASKS, floors, strict=True)}
    taught = [[task] for task in TASKS] if lessons is None else lessons
    facts = RunFacts(
        "hide", TASKS, ("exact",) * 3, floors=named, lessons=taught, settings={"base": {"path": base}},
    )  # fmt: skip
    falling = [(step, 3.0 - 0.02 * step) for step in range(100)]
    curves = dict.fromkeys(TASKS, falling) | (curves or {})
    return run_document(facts, [SeedResult(seed=0, matrix=matrix, curves=curves)])


def test_fault_b1_a_run_that_learned_nothing_is_not_told_as_a_success():
    matrix = [[0.0, 31.0, 5.0], [0.0, 31.0, 5.0], [0.0, 32.5, 5.0], [0.0, 32.5, 80.0]]
    flat = [(step, 2.0 + 0.001 * (step % 3)) for step in range(60)]
    verdict = verdict_of(document_of(matrix, curves={"animals": flat}))
    assert [task.outcome for task in verdict.tasks] == ["not learned", "not learned", "learned"]
    assert verdict.summary == "1 of 3 tasks learned, 2 not learned"
    animals, doubt, signs = verdict.tasks
    assert any("no better than a constant" in text and "12.5" in text for text in animals.warnings)
    assert any("not fallen" in text and "60 steps" in text for text in animals.warnings)
    assert len(doubt.warnings) == 1 and "50.0" in doubt.warnings[0]
    assert not signs.warnings and (signs.first_loss, signs.last_loss) == pytest.approx((2.81, 1.21))
    lines = verdict_lines(verdict)
    assert lines[0].split() == ["task", "zero-shot", "learned", "now", "floor", "outcome"]
    assert lines[1].split() == ["animals", "0.0", "0.0", "0.0", "12.5", "not", "learned"]
    assert lines[3].split() == ["signs", "5.0", "80.0", "80.0", "25.0", "learned"]
    assert sum(line.startswith("warning: ") for line in lines) == 3
    assert lines[-1] == f"note: {POCKET_NOTE}" and "photographs" in POCKET_NOTE


def test_fault_b1_forgotten_is_not_the_same_as_never_learned():
    matrix = [[0.0, 0.0, 0.0], [90.0, 0.0, 0.0], [50.0, 90.0, 0.0], [10.0, 90.0, 90.0]]
    verdict = verdict_of(document_of(matrix, base="bases/llava"))
    assert verdict.summary == "2 of 3 tasks learned, 1 forgotten"
    assert "90.0 right after learning" in verdict.tasks[0].warnings[0]
    assert not verdict.notes, "another base than the pocket one"


def test_fault_b1_missing_numbers_are_neither_praised_nor_blamed():
    unmeasured = [[0.0] * 3, [None] * 3, [None] * 3, [None] * 3]
    verdict = verdict_of(document_of(unmeasured))
    assert {task.outcome for task in verdict.tasks} == {"not judged"}
    assert not verdict.doubtful
    old = document_of([[0.0] * 3, [9.0] * 3, [9.0] * 3, [9.0] * 3])
    del old["floors"], old["lessons"]
    assert {task.outcome for task in verdict_of(old).tasks} == {"not judged"}, "a report of an earlier version"
    joint = document_of([[0.0] * 3, [None] * 3, [None] * 3, [60.0] * 3], lessons=[list(TASKS)], curves={"joint": []})
    assert {task.learned for task in verdict_of(joint).tasks} == {60.0}
    untaught = verdict_of(document_of([[0.0] * 3], lessons=[]))
    assert [task.now for task in untaught.tasks] == [0.0] * 3 and not untaught.doubtful


@pytest.mark.parametrize(
    ("scorer", "references", "answer", "value"),
    [
        ("exact", {"1": ("yes",), "2": ("no",), "3": ("Yes",), "4": ("yes",)}, "yes", 75.0),
        ("choice", {"1": ("B",), "2": ("A",), "3": ("(A)",), "4": ("B.",), "5": ("B",)}, "B", 60.0),
        ("number", {"1": ("3",), "2": ("3.0",), "3": ("4",)}, "3", 200 / 3),
        ("exact", {"1": ("a wren", "wren"), "2": ("wren",), "3": ("a wren",)}, "a wren", 200 / 3),
        ("iou", {"1": ("[0,0,1,1]",), "2": ("[0,0,0.9,1]",)}, "[0,0,1,1]", 100.0),
    ],
)
def test_fault_b1_the_floor_is_scored_by_the_tasks_own_scorer(scorer, references, answer, value):
    floor = floor_of(scorer, references)
    assert (floor.answer, floor.score) == (answer, pytest.approx(value))


def a_status(**options) -> tuple[Status, list[float]]:
    """A status without a terminal whose clock is the number in the list, in seconds."""
    now = [0.0]
    return Status(terminal=False, clock=lambda: now[0], **options), now


def test_fault_f1_a_batch_job_prints_a_line_at_the_start_and_every_few_minutes(capsys):
    status, now = a_status(minutes=5.0)
    status.begin("hide: 4 tasks", steps=400, questions=1000)
    assert "400 training steps, 1,000 questions" in capsys.readouterr().err
    printed = []
    for second in range(0, 1000, 10):
        now[0] = float(second)
        if status.is_due():
            printed.append(second)
    assert printed == [30, 330, 630, 930], "the first one early"


def test_fault_f1_a_line_names_task_step_loss_samples_and_both_times_left(tmp_path, capsys, monkeypatch):
    status, now = a_status(minutes=1.0)
    status.begin("hide: 4 tasks", steps=400, questions=0)
    status.place = "task 2 of 4 birds"
    status.lesson_left = 100
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    monitor = StageMonitor(
        Progress(tmp_path / "progress"), Curve(tmp_path / "metrics.jsonl"), Stop(), TrainConfig(batch=8),
        "birds", (1, 0), [], status=status,
    )  # fmt: skip
    stage = Stage(kind="tune")
    for step in range(50):
        now[0] += 3.0
        monitor.step(stage, step, 100, {"loss": 2.0 - 0.01 * step}, dict)
    first, *lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3, "after 30, 90 and 150 seconds"
    assert lines[0] == (
        "task 2 of 4 birds, tune step 10 of 100, loss 1.910, 2.67 samples/s; task done in 4 min, whole run in 20 min"
    )


def test_fault_f1_the_time_of_the_whole_run_counts_answers_and_says_what_it_does_not_count():
    status, _ = a_status()
    status.begin("hide: 1 task", steps=100, questions=60)
    assert status.time_left() == "", "nothing was timed"
    status.steps.add(1, None)
    status.steps.add(9, 90.0)
    assert status.time_left() == "whole run in at least 15 min"
    status.questions.add(10, 60.0)
    assert status.time_left() == "whole run in 20 min"
    assert [duration(seconds) for seconds in (20, 3900, 180_000)] == ["under 1 min", "1 h 05 min", "2 d 2 h"]


def test_fault_f1_loops_beside_training_print_lines_too(capsys):
    status, now = a_status(minutes=2.0)
    status.begin("hide: 1 task", steps=0, questions=0)
    capsys.readouterr()
    for _ in status.bar("features of birds train")(range(10)):
        now[0] += 20
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["features of birds train: 2 of 10", "features of birds train: 8 of 10"]


def test_fault_f1_nothing_is_printed_on_request_and_notes_come_once(capsys):
    status, now = a_status(minutes=0.0)
    status.begin("hide: 1 task", steps=10, questions=10)
    now[0] = 1e6
    assert not status.is_due()
    assert capsys.readouterr().err == ""
    status.note("birds: dropped 2 records")
    status.note("birds: dropped 2 records")
    assert capsys.readouterr().err == "birds: dropped 2 records\n"
    with pytest.raises(ConfigError, match="--status-minutes"):
        Options(status_minutes=-1.0)


def test_fault_f1_a_bar_of_a_short_loop_is_not_drawn():
    screen = io.StringIO()
    bar = new_bar("task 2 of 4 birds: tune", total=3, file=screen)
    for _ in range(3):
        bar.update(1)
    bar.close()
    assert screen.getvalue() == ""


def refusal(words: list[str], capsys, code: int) -> str:
    """What a refused command prints."""
    assert main(words) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def empty_run(folder: Path, names=("animals", "smiles")) -> Path:
    """A folder that looks like a run to everything that reads its identity alone."""
    folder.mkdir(parents=True)
    identity = {"tasks": list(names), "base": "0", "config": {}}
    run = {"format": 1, "identity": identity, "changes": [], "sessions": []}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.mark.parametrize("command", ["ask", "eval", "report", "inspect", "retire", "rollback"])
def test_fault_e3_what_is_no_run_names_runs_near_by(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    empty_run(tmp_path / "runs" / "animals")
    empty_run(tmp_path / "runs" / "fish")
    rest = {"ask": ["What is it?"], "retire": ["smiles"], "rollback": ["1"]}.get(command, [])
    error = refusal([command, "runs/animal", *rest], capsys, 4)
    assert "there is no such folder" in error and "base model there" not in error
    assert "runs near by: runs/animals, runs/fish" in error
    (tmp_path / "pictures").mkdir()
    error = refusal([command, "pictures", *rest], capsys, 4)
    assert "no run.json" in error and "runs/animals" in error, "also from beside the folder of all runs"
    error = refusal([command, "runs/animals/seed_0", *rest], capsys, 4)
    assert "runs near by: runs/animals" in error, "a folder inside a run"


def test_fault_e3_a_comparison_names_its_runs(tmp_path, capsys):
    for name in ("hide", "sequential"):
        empty_run(tmp_path / "both" / name)
    (tmp_path / "both" / "comparison.json").write_text(json.dumps({"runs": ["hide", "sequential"]}))
    error = refusal(["ask", str(tmp_path / "both"), "What is it?"], capsys, 4)
    assert "it is a comparison" in error and str(tmp_path / "both" / "sequential") in error


def test_fault_e3_without_any_run_it_says_what_to_give(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error = refusal(["ask", "nothing", "What is it?"], capsys, 4)
    assert "neither a run nor a base model" in error and "hidecmoe run" in error


def test_fault_e7_a_misspelt_task_gets_a_suggestion(tmp_path, capsys):
    run = str(empty_run(tmp_path / "run"))
    assert "did you mean 'smiles'" in refusal(["retire", run, "smile"], capsys, 2)
    assert "did you mean 'animals'" in refusal(["merge", run, "smiles", "animal"], capsys, 2)
    assert "known: animals, smiles" in refusal(["retire", run, "charts"], capsys, 2)


def test_fault_e8_a_state_that_the_run_has_not_reached_names_those_it_has(tmp_path):
    seed = RunFolder(empty_run(tmp_path / "run")).seed(0)
    for number, name in enumerate(("animals", "smiles")):
        seed.task(number, name).mkdir(parents=True)
    with pytest.raises(CheckpointError) as refused:
        load_archive(seed, Routed(), ("animals", "smiles"), count=9)
    message = str(refused.value)
    assert "after 9, learned are 2: animals, smiles" in message
    assert "from 1 to 2; 0 is the base model" in message


CLASSES = re.compile(r"<class|NoneType|\b(?:str|int|dict|bool|float)\b|\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b")


def places(value, path=()):
    """Paths of all keys of a config as plain values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))


def class_names(value) -> set[str]:
    """Names of all dataclasses in a config."""
    if not is_dataclass(value):
        return set()
    names = {type(value).__name__}
    for field in fields(value):
        names |= class_names(getattr(value, field.name))
    return names


@pytest.mark.parametrize("name", ["pocket/cmoe", "pocket/hide"])
def test_fault_e9_no_message_about_a_config_names_a_class(name):
    config = load_config(name)
    good = to_mapping(config)
    classes = class_names(config) | {"LayerChoice", "PocketStream", "TaskSpec"}
    refused = 0
    for path in places(good):
        for wrong in (None, "wrong", [1, "x"], {"wrong": 1}):
            mapping = copy.deepcopy(good)
            node = mapping
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = wrong
            try:
                from_mapping(mapping, "mine.yaml")
            except ConfigError as error:
                refused += 1
                message = str(error).replace("LLaVA", "")
                assert not CLASSES.search(message), message
                assert not classes & set(re.findall(r"\w+", message)), message
    assert refused > 100


def test_fault_e9_messages_call_kinds_of_values_by_their_words(tmp_path):
    with pytest.raises(ConfigError, match=r"expected 'last' or 'all' or 'none' or a list or keys such as"):
        from_mapping({"method": {"kind": "routed", "expand": 7}})
    with pytest.raises(ConfigError, match=r"`tune` has no such key"):
        from_mapping({"tune": {"epoch": 2}})
    with pytest.raises(ConfigError, match=r"`method` of kind 'routed' has no such key"):
        from_mapping({"method": {"kind": "routed", "growht": "shared"}})
    damaged = tmp_path / "cells.json"
    damaged.write_text("[1]")
    with pytest.raises(CheckpointError, match="holds a list, expected an object"):
        files.read_json(damaged)


@pytest.mark.parametrize("word", ["host", "train", "chat", "predict", "list"])
def test_fault_e10_an_unknown_command_gets_no_far_suggestion(word, capsys):
    error = refusal([word], capsys, 2)
    assert f"unknown command '{word}'" in error and "did you mean" not in error
    assert "known: add, adopt, ask" in error and "hidecmoe --help" in error


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "run", "--task", "birds"],
        ["ask", "run", "What?", "--task", "last"],
        ["add", "run", "birds", "--epochs", "two"],
        ["add", "run", "birds", "--rate", "1e-3x"],
        ["retire", "run", "birds", "--expert", "a"],
        ["export", "run", "out", "--to", "hub", "--after", "b"],
    ],
)
def test_fault_e9_a_wrong_number_of_a_command_line_is_refused_without_a_class(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err
    message = error.partition("Argument helptext")[0]
    assert re.search(r"expected a (whole )?number, got", " ".join(message.split()))
    assert not CLASSES.search(message), error


def test_fault_e2_a_file_of_records_in_the_place_of_a_config_names_the_command_for_it(tmp_path, capsys):
    (tmp_path / "train.json").write_text("[]")
    assert main(["data", "check", str(tmp_path / "train.json")]) == ConfigError.exit_code
    assert f"hidecmoe data check {tmp_path}" in capsys.readouterr().err
