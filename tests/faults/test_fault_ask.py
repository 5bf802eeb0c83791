"""`ask` and the assistant: no answer without a task, refusals, how near an input is, many questions, class folders."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from judges import judged
from PIL import Image
from tiny import mapping

import hidecmoe_jax as hj
from hidecmoe_jax.cli.commands import COMMANDS, EXIT_CODES
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError
from hidecmoe_jax.data.images import load
from hidecmoe_jax.data.stream import TaskSpec, open_stream
from hidecmoe_jax.evaluate.answer import Answer, Finding
from hidecmoe_jax.evaluate.fit import fit_of
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.port.exports import export
from hidecmoe_jax.runs import questions
from hidecmoe_jax.runs.assistant import Assistant
from hidecmoe_jax.runs.config import from_mapping, write_config
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.picture_files import picture_files
from hidecmoe_jax.runs.replies import OwnMatches, reply_of

NAMES = ("animals", "signs")
KNOWN = Finding(nearest=0, score=0.93, threshold=0.8, foreign=0.01, ahead=0.4, unknown=False, tied=False)
UNKNOWN = replace(KNOWN, score=0.5, unknown=True)


def answer(finding, weights=(1.0, 0.0, 0.0, 0.0), **fields) -> Answer:
    """An answer of a run of two tasks with room for four."""
    return Answer("0", "a cat", weights, (0.93, 0.53, 0.0, 0.0), ended=True, finding=finding, tasks=NAMES, **fields)


def reply(finding=KNOWN, scores=None, **fields):
    own = {"animals": (0.81, 0.9, 0.92, 0.95)} if scores is None else scores
    matches = {task: OwnMatches(values, ()) for task, values in own.items()}
    return reply_of(answer(finding, **fields), matches, named=None, fallback="answered by the base model alone")


REFUSED = {"finding": UNKNOWN, "weights": (0.0,) * 4, "refused": True}


def unlearned(root):
    """A run folder as it is while the first task is being learned."""
    run = root / "run"
    (run / "seed_0" / "tasks").mkdir(parents=True)
    write_config(from_mapping(mapping(root / "base", "hide", tasks=[root / "birds", root / "fish"])), run)
    identity = {"format": 1, "identity": {"tasks": ["birds", "fish"]}, "changes": [], "sessions": []}
    (run / "run.json").write_text(json.dumps(identity))
    return run


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test."""

    def load(*args, **kwargs):
        pytest.fail("a model was loaded")

    monkeypatch.setattr(questions, "load", load)


def test_fault_a5_a_run_without_a_learned_task_gives_no_answer(tmp_path, no_model, capsys):
    run = unlearned(tmp_path)
    assert main(["ask", str(run), "What is this?"]) == 4
    shown = capsys.readouterr()
    assert not shown.out and "0 of 2 are learned: birds is being learned" in shown.err
    assert f"hidecmoe run {run}/config.yaml --out {run} --resume" in shown.err
    # As before the first task it is no run's answer either.
    (run / "seed_0" / "tasks" / "000_birds").mkdir()
    assert main(["ask", str(run), "What is this?", "--task", "0"]) == 4
    assert "hidecmoe ask" in capsys.readouterr().err
    questions.require_learned(run)
    questions.require_learned(tmp_path / "base")


@pytest.mark.parametrize(("tasks", "missing"), [((), ()), (("birds",), ("birds",))])
def test_fault_a5_the_library_gives_no_answer_without_a_task_either(tasks, missing, tmp_path):
    config = from_mapping(mapping(tmp_path / "base", "hide"))
    model = Assistant(config, None, SimpleNamespace(missing=missing), None, tasks, tmp_path)
    for call in (model.generate, model.route, model.answer):
        with pytest.raises(CheckpointError, match="no learned task can answer"):
            call(None, "What is this?")


@pytest.mark.parametrize("form", ["peft", "hub"])
def test_fault_a5_a_run_without_a_learned_task_is_not_exported(form, tmp_path, monkeypatch, capsys):
    run = unlearned(tmp_path)
    loaded = SimpleNamespace(tasks=(), config=SimpleNamespace(method=Routed()), folder=RunFolder(run))
    monkeypatch.setattr(export, "load_run", lambda *_, **__: loaded)
    assert main(["export", str(run), str(tmp_path / "out"), "--to", form]) == CheckpointError.exit_code
    error = capsys.readouterr().err
    assert "learned no task yet" in error and f"hidecmoe run {run / 'config.yaml'} --out {run} --resume" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["retire", "birds"], ["merge", "birds", "fish"]])
def test_fault_c1_an_edit_of_an_unfinished_run_names_the_command_that_finishes_it(words, tmp_path, no_model, capsys):
    run = unlearned(tmp_path)
    assert main([words[0], str(run), *words[1:]]) == ConfigError.exit_code
    assert f"hidecmoe run {run / 'config.yaml'} --out {run} --resume" in capsys.readouterr().err


def test_fault_e7_a_merge_of_a_task_with_itself_and_no_edit_to_take_back_say_what_to_do(tmp_path, no_model, capsys):
    run = unlearned(tmp_path)
    assert main(["merge", str(run), "birds", "birds"]) == ConfigError.exit_code
    error = capsys.readouterr().err
    assert "both are the same task" in error and "do:    merge it into one of fish" in error
    assert main(["restore", str(run)]) == ConfigError.exit_code
    assert "do:    the run is as it was learned" in capsys.readouterr().err
    assert main(["retire", str(run), "birds", "--expert", "-1"]) == ConfigError.exit_code
    assert "do:    `hidecmoe retire --help`" in capsys.readouterr().err


def test_fault_a5_a_refused_question_has_its_own_exit_code(monkeypatch, capsys):
    replies = {"known": [reply()], "refused": [reply(**REFUSED)], "both": [reply(**REFUSED), reply()]}
    monkeypatch.setattr(hj, "ask", lambda run, asked, **options: replies[str(run)], raising=False)
    assert main(["ask", "known", "Q?"]) == 0 and main(["ask", "refused", "Q?"]) == 8
    assert "refused" in capsys.readouterr().out
    asked = [hj.Question("a"), hj.Question("b")]
    monkeypatch.setattr(hj, "read_questions", lambda path, run: asked, raising=False)
    assert main(["ask", "both", "--file", "q.jsonl", "--json"]) == 8
    lines = [judged("ask", line) for line in capsys.readouterr().out.splitlines()]
    assert [line["exit_code"] for line in lines] == [8, 0]
    assert [line["refused"] for line in lines] == [True, False] and [line["known"] for line in lines] == [False, True]
    assert "a question was refused" in EXIT_CODES[8]
    with pytest.raises(SystemExit):
        main(["ask", "--help"])
    assert "Exit code 8" in capsys.readouterr().out and "ask" in COMMANDS


@pytest.mark.parametrize(
    ("score", "threshold", "own", "word"),
    [
        (0.93, 0.8, (0.81, 0.9, 0.92), "well"),
        (0.805, 0.8, (0.81, 0.9, 0.92), "barely"),
        (0.7, 0.8, (0.81, 0.9, 0.92), "not at all"),
        (0.7, 0.8, (), "not at all"),
        (0.9, 0.8, (), None),
        # Without thresholds, and on scales of other gates: log densities, reconstruction errors.
        (0.93, None, (0.81, 0.9, 0.92), "well"),
        (-40.0, None, tuple(range(-60, -30)), "well"),
        (-59.5, None, tuple(range(-60, -30)), "barely"),
        (-61.0, None, tuple(range(-60, -30)), "not at all"),
        (-60.0003, None, tuple(range(-60, -30)), "barely"),
        (0.9, None, (), None),
    ],
)
def test_fault_f2_how_near_an_input_is_in_words_with_its_scale(score, threshold, own, word):
    unknown = threshold is not None and score < threshold
    fit = fit_of(replace(KNOWN, score=score, threshold=threshold, unknown=unknown), "animals", own)
    assert fit.word == word and f"score {score:.3f}" in str(fit)
    assert (f"threshold {threshold:.3f}" in str(fit)) if threshold else ("threshold" not in str(fit))
    if own:
        assert f"of its own {len(own)} test questions score lower" in str(fit)


def test_fault_f2_an_input_without_a_threshold_of_its_kind_has_no_number_for_one():
    fit = fit_of(replace(UNKNOWN, threshold=3.4028235e38), "animals", (0.8,))
    assert fit.word == "not at all" and fit.threshold is None and "e+38" not in str(fit) and len(str(fit)) < 120


def test_fault_f2_names_and_no_one_as_if_it_were_confidence(monkeypatch, capsys):
    mixed = reply(weights=(0.3, 0.7, 0.0, 0.0))
    shown = {"hard": [reply()], "mixed": [mixed]}
    monkeypatch.setattr(hj, "ask", lambda run, asked, **options: shown[str(run)], raising=False)
    assert main(["ask", "hard", "Q?"]) == 0
    text = capsys.readouterr().out
    assert "1.000" not in text and "100 %" not in text and "#" not in text
    assert text.splitlines()[0] == "a cat" and "routed to animals, its score is 0.400 ahead" in text
    fits = "fits animals: well (score 0.930, threshold 0.800, 75 % of its own 4 test questions score lower)"
    assert text.splitlines()[-1].strip() == fits
    assert main(["ask", "mixed", "Q?"]) == 0
    assert "signs 70 %, animals 30 %" in capsys.readouterr().out


def write_questions(folder, *lines):
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"no picture")
    path = folder / "questions.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_fault_f2_a_file_of_questions_is_read_with_pictures_beside_it(tmp_path):
    path = write_questions(
        tmp_path,
        {"question": "これは何ですか？\u2028", "image": "a.png", "id": 7},
        "",
        {"text": "Which?", "question_id": "t", "image": ["a.png", "a.png"], "category": "x"},
        {"question": "No picture?", "image": None},
    )
    first, second, third = hj.read_questions(path)
    assert first == hj.Question("これは何ですか？\u2028", (str(tmp_path / "a.png"),), "7", "questions.jsonl:1")
    assert len(second.images) == 2 and second.source == "questions.jsonl:3" and third.images == ()


def test_fault_f2_a_wrong_file_of_questions_is_refused_before_the_model_is_loaded(tmp_path, no_model, capsys):
    path = write_questions(
        tmp_path,
        {"question": "Good?", "image": "a.png"},
        '{"question": "Torn',
        {"question": "Film?", "video": "a.mp4"},
        {"question": "Gone?", "image": "none.png"},
        {"question": "Broken?", "image": "broken.png"},
        {"question": "<image> <image> two?", "image": "a.png"},
        {"question": "  "},
        {"image": "a.png"},
        '["no", "object"]',
        {"question": "Kind?", "image": 3},
        {"question": "Twice?", "text": "Twice?"},
    )
    assert main(["ask", str(tmp_path / "base"), "--file", str(path)]) == 3
    shown = capsys.readouterr().err
    for line, words in {
        2: "not valid JSON", 3: "'video' is not read", 4: "none.png", 5: "broken.png", 6: "2 <image> in the question",
        7: "empty and shows no picture", 8: "'question' (or 'text') must be the question", 9: "found an array",
        10: "'image' must be a path", 11: "2 of the keys",
    }.items():  # fmt: skip
        assert any(f"questions.jsonl:{line}: " in text and words in text for text in shown.splitlines()), (line, shown)
    assert "questions.jsonl:1:" not in shown and "nothing was asked" in shown
    path.write_text('[{"question": "a"}]')
    assert main(["ask", str(tmp_path / "base"), "--file", str(path)]) == 3
    assert "one object a line" in capsys.readouterr().err


def test_fault_f2_wrong_questions_of_the_command_line_are_refused_before_the_model_is_loaded(
    tmp_path, no_model, capsys
):
    path = write_questions(tmp_path, {"question": "Good?"})
    assert main(["ask", "run", "--image", str(tmp_path / "none.png"), "What?"]) == 3
    assert main(["ask", "run", "--image", str(tmp_path / "broken.png"), "What?"]) == 3
    assert main(["ask", "run", " "]) == 3
    assert main(["ask", "run"]) == 2
    assert main(["ask", "run", "What?", "--file", str(path)]) == 2
    assert main(["ask", "run", "--image", "a.png", "--file", str(path)]) == 2
    assert "both are given" in capsys.readouterr().err


def test_fault_d5_a_picture_of_a_near_name_is_named_by_ask(tmp_path, no_model, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "Wren.PNG")
    assert main(["ask", "run", "--image", str(tmp_path / "wren.png"), "What?"]) == DataError.exit_code
    assert f"did you mean '{tmp_path / 'Wren.PNG'}'?" in capsys.readouterr().err
    assert main(["ask", "run", "--image", str(tmp_path / "heron.png"), "What?"]) == DataError.exit_code
    assert "did you mean" not in capsys.readouterr().err


def test_fault_d9_a_large_picture_brings_no_warning_of_a_library(tmp_path, no_model, capsys, recwarn):
    Image.new("L", (10_000, 9_500)).save(tmp_path / "large.jpg", quality=1)
    (tmp_path / "empty.jpg").touch()
    pictures = [f"--image={tmp_path / name}" for name in ("large.jpg", "empty.jpg")]
    assert main(["ask", "run", *pictures, "What?"]) == DataError.exit_code
    assert "large.jpg" not in capsys.readouterr().err and not recwarn.list


def test_fault_f3_an_answer_has_text_task_known_and_routing_by_name():
    one = reply()
    assert (one.text, one.task, one.known, one.routing) == ("a cat", "animals", True, {"animals": 1.0, "signs": 0.0})
    mixed = answer(None, weights=(0.3, 0.7, 0.0, 0.0))
    assert list(mixed.routing) == ["signs", "animals"] and mixed.task == "signs" and mixed.known is None
    refused = reply(**REFUSED)
    assert (refused.task, refused.known, refused.exit_code) == (None, False, 8)
    without_threshold = reply(replace(KNOWN, threshold=None))
    assert without_threshold.known is None and without_threshold.task == "animals"
    base = Answer("0", "x", (), (), ended=True)
    assert (base.task, base.known, base.routing) == (None, None, {})
    assert json.loads(json.dumps(refused.to_json(), allow_nan=False))["fit"]["word"] == "not at all"


def test_fault_f3_pictures_are_paths_bytes_or_pil_images_one_or_a_list(tmp_path):
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    drawn.save(path, exif=exif)
    expected = load(path, 24)
    with Image.open(path) as opened:
        given = [path, str(path), path.read_bytes(), opened, [opened, path], None, []]
        with picture_files(given) as files:
            assert [len(paths) for paths in files] == [1, 1, 1, 1, 2, 0, 0]
            for paths in files:
                for name in paths:
                    np.testing.assert_array_equal(load(name, 24), expected)
    assert not any(name != str(path) and Path(name).exists() for paths in files for name in paths)
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F", "HSV"):
        source = Image.new("L", (8, 8), 77) if mode == "I;16" else drawn
        shown = source.convert("I").convert(mode) if mode == "I;16" else source.convert(mode)
        with picture_files([shown]) as files:
            assert load(files[0][0], 8).shape == (8, 8, 3), mode
    for wrong, words in ((np.zeros((8, 8, 3)), "found ndarray"), (b"no picture", "begins with"), (3, "found int")):
        with pytest.raises(DataError, match=words) as refused, picture_files([None, wrong]):
            pass
        assert refused.value.where == "prompt 1, picture 0"


def class_folders(root, counts):
    draw = np.random.default_rng(0)
    for answer_, count in counts.items():
        (root / answer_).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw.integers(0, 256, (8, 9, 3), np.uint8)).save(root / answer_ / f"{number}.PNG")
    return root


def test_fault_g_class_folders_become_a_task_with_japanese_questions(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", {"猫": 30, "犬": 30})
    (photos / ".DS_Store").write_bytes(b"x")
    (photos / "犬" / "copy.png").write_bytes((photos / "犬" / "3.PNG").read_bytes())
    task = tmp_path / "my" / "animals"
    words = ["data", "folders", str(photos), str(task), "--question", "この動物は何ですか？"]
    assert main(words) == 0
    assert "left out as copies of another picture: 1" in capsys.readouterr().out
    (opened,) = open_stream([TaskSpec(str(task))]).tasks
    assert opened.scorer == "exact" and len(opened.train) + len(opened.val) == 48 and len(opened.test) == 12
    asked = [record.turns[0] for record in opened.test]
    assert sorted({turn.answer for turn in asked}) == ["犬", "猫"]
    assert sum(turn.answer == "猫" for turn in asked) == 6
    assert all(turn.question == "<image>\nこの動物は何ですか？" for turn in asked)
    again = tmp_path / "again"
    hj.task_from_folders(photos, again, question="この動物は何ですか？")
    assert (again / "test.json").read_bytes() == (task / "test.json").read_bytes()
    assert main(words) == 2, "an existing task is not overwritten"


def test_fault_g_class_folders_that_cannot_be_a_task_are_refused_whole(tmp_path):
    photos = class_folders(tmp_path / "photos", {"cat": 3, "dog": 3, "owl": 1})
    target = tmp_path / "task"
    (photos / "notes.txt").write_text("x")
    (photos / "dog" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="2 problems") as refused:
        hj.task_from_folders(photos, target, question="Which?")
    assert "dog/notes.txt" in refused.value.why and "has no answer" in refused.value.why
    (photos / "notes.txt").unlink()
    (photos / "dog" / "notes.txt").unlink()
    (photos / "dog" / "same.png").write_bytes((photos / "cat" / "0.PNG").read_bytes())
    with pytest.raises(DataError, match="2 problems") as refused:
        hj.task_from_folders(photos, target, question="Which?")
    assert "under another answer" in refused.value.why and "owl: 1 pictures" in refused.value.why
    with pytest.raises(DataError, match="at least two answers"):
        hj.task_from_folders(photos / "cat", target, question="Which?")
    for options in ({"test": 1.0}, {"question": "<image> which?"}):
        with pytest.raises(ConfigError):
            hj.task_from_folders(photos, target, **{"question": "Which?"} | options)
    assert not target.exists()
