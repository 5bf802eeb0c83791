"""Thresholds set on a trained run, and inputs of a retired task, on a run whose gate had no thresholds."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs_world import make_world

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.methods.gates.unknown import BOTH, CALIBRATED, RETIRED
from hidecmoe_jax.operate.decision_log import open_log
from hidecmoe_jax.operate.entries import AnswerEntry, ReviewEntry
from hidecmoe_jax.operate.kept_pictures import KeptPictures
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.assistant import load
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.studies.calibrate import calibrate
from hidecmoe_jax.studies.edit_trial import restore, retire

GATE = {"kind": "locator", "by": {"kind": "nearest_mean"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("calibrate")
    config = make_world(root, gate=GATE, expand="all", train_projector=False)
    evaluate = replace(config.evaluate, zero_shot=False, between="none", named="none")
    return root, learn(replace(config, evaluate=evaluate), root / "run")


def copied(world, name: str) -> Path:
    root, run = world
    return Path(shutil.copytree(run, root / name))


def ask(run: Path, picture: str | None = "birds/images/9.png"):
    image = None if picture is None else str(run.parent / picture)
    return load(run).answer(image, "What is shown in picture 9?")


def test_a_calibration_is_recorded_shown_and_taken_back(world, capsys):
    root, _ = world
    run = copied(world, "set")
    before = [path.read_bytes() for path in sorted((run / "seed_0" / "tasks").rglob("*")) if path.is_file()]
    assert ask(run).known is None and ask(run, None).task is not None
    words = ["calibrate", str(run), "--data", str(root / "birds"), str(root / "fish"), "--false-alarms", "0.25"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "25 %" in shown and "<- set" in shown and "4 records" in shown and "restore" in shown
    (entry,) = edits.read(run)
    assert entry.edit is None and entry.calibration.records == {"0": 4, "1": 4}
    assert "lose 25 % of a task's own" in entry.what
    after = [path.read_bytes() for path in sorted((run / "seed_0" / "tasks").rglob("*")) if path.is_file()]
    assert before == after, "an archive never changes"
    reply = ask(run)
    assert reply.known is not None and reply.answer.finding.foreign == 0.25
    # No record lacked a picture, so a question without one belongs to no task.
    bare = ask(run, None)
    assert bare.known is False and "none of its records lacked" in bare.decision
    restore(run)
    assert edits.read(run) == () and ask(run).known is None


def test_the_threshold_loses_the_share_of_the_records_that_set_it(world):
    run = copied(world, "share")
    result = calibrate(run, data=[world[0] / "birds"], false_alarms=0.5)
    assistant = load(run)
    limit = float(np.asarray(assistant.serving.memory.gate[BOTH])[0])
    pictures = [str(world[0] / "birds" / "images" / f"{number}.png") for number in range(8, 12)]
    questions = [f"What is shown in picture {number}?" for number in range(8, 12)]
    answers = assistant.generate(pictures, questions)
    judged = [answer.finding for answer in answers if answer.finding.nearest == 0]
    assert judged and all(finding.unknown == (finding.score < limit) for finding in judged)
    # Of four records two are below the third score, which is the limit.
    assert sum(finding.unknown for finding in judged) <= 2
    assert result["tasks"]["birds"]["threshold"] == pytest.approx(limit)
    # The other task keeps what it was trained with.
    np.testing.assert_array_equal(np.asarray(assistant.serving.memory.gate[CALIBRATED])[:2], [True, False])


def test_what_cannot_be_calibrated_is_refused(world):
    root, run = world
    with pytest.raises(ConfigError, match="a folder of no task of the run"):
        calibrate(run, data=[root / "base"])
    with pytest.raises(ConfigError, match="0 <= x < 1"):
        calibrate(run, false_alarms=1.0)
    assert not (run / "edits.json").exists()
    empty = root / "elsewhere" / "birds"
    empty.mkdir(parents=True)
    with pytest.raises(DataError):
        calibrate(run, data=[empty])


def test_an_input_of_a_retired_task_is_recognised_and_no_other_task_answers_it(world, capsys):
    run = copied(world, "retired")
    pictures = [str(world[0] / task / "images" / f"{number}.png") for task in ("birds", "fish") for number in range(4)]
    questions = ["What is shown in picture 1?"] * len(pictures)
    before = [reply.task for reply in load(run).replies([[path] for path in pictures], questions)]
    assert set(before) == {"birds", "fish"} and ask(run).task == "birds"
    retire(run, "birds", commit=True, allowed=100.0)
    assistant = load(run)
    after = [reply.task for reply in assistant.replies([[path] for path in pictures], questions)]
    assert after == [None if task == "birds" else task for task in before]
    assert assistant.retired == ("birds",) and bool(np.asarray(assistant.serving.memory.gate[RETIRED])[0])
    reply = ask(run)
    assert reply.task is None and reply.known is False and "this task was retired" in reply.decision
    assert reply.to_json()["retired"] == "birds"
    assert RETIRED not in Ledger(run / "seed_0").load(0)[0]["memory"]
    restore(run)
    assert ask(run).task == "birds"
    assert json.loads((run / "report.json").read_text())["format"] == 1


def test_reviews_of_a_log_set_the_thresholds_that_a_folder_of_the_same_questions_sets(world, tmp_path):
    root, _ = world
    with open_log(tmp_path / "log") as log:
        for name in ("birds", "fish"):
            for number in range(8, 12):
                picture = root / name / "images" / f"{number}.png"
                digest = hashlib.sha256(picture.read_bytes()).hexdigest()
                KeptPictures(tmp_path / "log", 30).keep(picture, digest)
                plain = dict.fromkeys(("base", "fit", "score", "threshold", "second", "ahead", "by", "sampled"))
                log.append(
                    AnswerEntry(
                        id=f"{name}{number}", run="run", version="v", model="auto", task="fish", nearest="fish",
                        refused=False, queued=False, pictures=(digest,), question=f"What is shown in picture {number}?",
                        answer="a wren", milliseconds=1.0, **plain,
                    )
                )  # fmt: skip
                decision = "right" if name == "fish" else "other_task"
                log.append(ReviewEntry("v", f"{name}{number}", decision, None if name == "fish" else "birds"))
    run = copied(world, "reviewed")
    of_log = calibrate(run, log=tmp_path / "log", false_alarms=0.25)
    assert edits.read(run)[0].calibration.records == {"0": 4, "1": 4} and "reviews in" in of_log["source"]
    restore(run)
    of_folders = calibrate(run, data=[root / "birds", root / "fish"], false_alarms=0.25)
    assert of_log["tasks"] == of_folders["tasks"] and of_log["settings"] == of_folders["settings"]
    with pytest.raises(ConfigError, match="both are named"):
        calibrate(run, log=tmp_path / "log", data=[root / "birds"])
    with open_log(tmp_path / "empty"), pytest.raises(DataError, match="no reviewed question"):
        calibrate(run, log=tmp_path / "empty")
