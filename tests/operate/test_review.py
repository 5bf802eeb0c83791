"""A person in the loop: what waits, which decisions fit, and what becomes of them."""

import hashlib
import json

import pytest
from PIL import Image

from hidecmoe_jax.core.errors import BusyError, ConfigError, DataError
from hidecmoe_jax.data.records import read_file
from hidecmoe_jax.operate.corrections import corrections, write_corrections
from hidecmoe_jax.operate.decision_log import open_log, read_log
from hidecmoe_jax.operate.entries import AnswerEntry, ReviewEntry
from hidecmoe_jax.operate.kept_pictures import KeptPictures
from hidecmoe_jax.operate.review import Judgement, review_of, waiting
from hidecmoe_jax.operate.reviewing import decide, waiting_answers


def answered(number: int, pictures=(), **fields) -> AnswerEntry:
    plain = {
        "id": f"r{number}", "run": "mine", "base": "b", "version": "v", "model": "auto", "task": "birds",
        "nearest": "birds", "fit": "well", "score": 1.0, "threshold": 0.5, "second": "fish", "ahead": 2.0,
        "refused": False, "queued": False, "pictures": tuple(pictures), "question": f"What is {number}?",
        "answer": "a wren", "milliseconds": 10.0, "by": None, "sampled": "random",
    }  # fmt: skip
    return AnswerEntry(**plain | fields)


@pytest.fixture
def log(tmp_path):
    """A log of ten answers about pictures of their own, reviewed in every way."""
    folder = tmp_path / "log"
    digests = []
    with open_log(folder) as opened:
        for number in range(10):
            picture = tmp_path / f"{number}.png"
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(picture)
            digests.append(hashlib.sha256(picture.read_bytes()).hexdigest())
            KeptPictures(folder, 30).keep(picture, digests[-1])
        opened.append(*(answered(number, [digest]) for number, digest in enumerate(digests)))
        opened.append(answered(20, ["0" * 64]), answered(21, [digests[0]], question=None, answer=None))
        said = [
            ("r0", "right", None, None), ("r1", "answer", None, "a robin"), ("r2", "other_task", "fish", "a carp"),
            ("r3", "new_task", "owls", "a barn owl"), ("r4", "new_task", "owls", "a tawny owl"),
            ("r5", "new_task", "owls", "an eagle owl"), ("r6", "new_task", "owls", None),
            ("r7", "bad_picture", None, None),
            ("r8", "right", None, None), ("r8", "answer", None, "a dunnock"), ("r20", "right", None, None),
            ("r21", "right", None, None),
        ]  # fmt: skip
        for number, (of, decision, task, answer) in enumerate(said):
            opened.append(ReviewEntry(f"v{number}", of, decision, task, answer, "ben"))
    return folder


def test_what_was_drawn_waits_until_it_is_reviewed(log):
    assert [line["id"] for line in waiting(read_log(log))] == ["r9"]
    (line,) = waiting_answers(log)
    assert len(line["picture_files"]) == 1 and line["picture_files"][0].endswith(".png")
    answers = [vars(answered(1)) | {"kind": "answer"}, vars(answered(2, sampled=None)) | {"kind": "answer"}]
    shadow = vars(answered(3)) | {"kind": "answer", "shadow": True}
    assert [each["id"] for each in waiting([*answers, shadow])] == ["r1"]


@pytest.mark.parametrize(
    ("judgement", "problem"),
    [
        (Judgement("r1", "maybe"), "got 'maybe'"),
        (Judgement("r1", "other_task"), "the right task is missing"),
        (Judgement("r1", "other_task", "birds"), "birds is the task that answered"),
        (Judgement("r1", "other_task", "fsh"), "did you mean 'fish'"),
        (Judgement("r1", "answer"), "the right answer is missing"),
        (Judgement("r1", "answer", answer="  "), "not blank"),
        (Judgement("r1", "answer", answer="x" * 2001), "2001 characters"),
        (Judgement("r1", "right", task="fish"), "right names no task"),
        (Judgement("r1", "bad_picture", answer="a wren"), "has no other answer"),
    ],
)
def test_a_decision_that_does_not_fit_is_refused(judgement, problem):
    line = vars(answered(1))
    with pytest.raises(DataError, match=problem):
        review_of(judgement, line, tasks=("birds", "fish"), by="ben")


def test_a_decision_becomes_a_line_unless_a_server_writes(log):
    with pytest.raises(DataError, match="no such answer"):
        decide(log, Judgement("r99", "right"))
    with open_log(log) as opened:
        opened.append(answered(9, task="fish", shadow=True, sampled=None))
    with open_log(log), pytest.raises(BusyError, match="POST /v1/reviews"):
        decide(log, Judgement("r9", "right"), by="ben")
    assert decide(log, Judgement("r9", "other_task", "fish"), by="ben") == ["recorded: other_task, fish"]
    last = list(read_log(log))[-1]
    assert (last["of"], last["decision"], last["task"], last["by"]) == ("r9", "other_task", "fish", "ben")
    assert not waiting_answers(log)


def test_corrections_are_the_last_reviews_with_what_cannot_be_used_counted(log):
    reviewed = corrections(log)
    by_id = {correction.id: (correction.task, correction.answer) for correction in reviewed.usable}
    assert by_id == {
        "r0": ("birds", "a wren"), "r1": ("birds", "a robin"), "r2": ("fish", "a carp"), "r3": ("owls", "a barn owl"),
        "r4": ("owls", "a tawny owl"), "r5": ("owls", "an eagle owl"), "r6": ("owls", None),
        "r8": ("birds", "a dunnock"),
    }  # fmt: skip
    assert reviewed.left_out == {
        "a bad picture": 1, "a picture was not kept (serve --keep-pictures DAYS)": 1,
        "the question was not kept (serve --private)": 1,
    }  # fmt: skip


def test_a_new_task_is_a_folder_that_learning_reads_and_a_golden_set_is_for_gates(log, tmp_path):
    made = write_corrections(log, tmp_path / "owls", task="owls", test=0.34)
    assert made.counts == {"train": 2, "test": 1} and "nobody has typed" in str(made)
    train = read_file(tmp_path / "owls" / "train.json", tmp_path / "owls", test=False).records
    test = read_file(tmp_path / "owls" / "test.json", tmp_path / "owls", test=True).records
    answers = {record.turns[-1].answer for record in (*train, *test)}
    assert answers == {"a barn owl", "a tawny owl", "an eagle owl"}
    assert not {record.images for record in train} & {record.images for record in test}
    assert json.loads((tmp_path / "owls" / "task.json").read_text()) == {"name": "owls", "scorer": "exact"}

    golden = write_corrections(log, tmp_path / "check", task="birds", golden=True)
    assert golden.counts == {"test": 3} and not (tmp_path / "check" / "train.json").exists()
    records = read_file(tmp_path / "check" / "test.json", tmp_path / "check", test=True).records
    assert {record.id: record.references for record in records}["r8"] == ("a dunnock",)
    with pytest.raises(ConfigError):
        write_corrections(log, tmp_path / "check", task="birds", golden=True)


def test_too_few_corrections_name_what_there_is(log, tmp_path):
    with pytest.raises(DataError, match=r"1 question of fish with a right answer; reviewed: owls 4, birds 3, fish 1"):
        write_corrections(log, tmp_path / "fish", task="fish")
    assert not (tmp_path / "fish").exists()
