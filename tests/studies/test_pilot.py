"""A pilot: its judgement, what it refuses, and one from class folders to the page."""

import json

import pytest
from PIL import Image
from tiny import write_base

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.report.gallery import Sample
from hidecmoe_jax.report.pilot_page import pilot_lines, pilot_page
from hidecmoe_jax.studies.pilot import PilotOptions, advice, interval, judged, pilot

DOCUMENT = {
    "task": "parts", "outcome": "do_not_use", "score": 29.0, "low": 20.9, "high": 38.5, "needed": 80.0, "floor": 50.0,
    "floor_answer": "no", "zero_shot": 3.0, "train": 90, "val": 10, "test": 100, "answers": 2,
    "advice": ["real_base", "more_pictures"], "unknown": None, "recalibrated": False, "base": "pocket", "run": "p/run",
    "next_task": {"seconds": 90.0, "bytes": 234944, "cost": None, "currency": "JPY"}, "verdict": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("points", "count", "floor", "outcome"),
    [
        (29, 100, 50, "do_not_use"),  # worse than a constant answer
        (50, 24, 50, "do_not_use"),  # no better
        (65, 20, 50, "unclear"),  # 13 of 20 may be chance: Wilson's interval begins at 43
        (65, 400, 50, "not_enough"),
        (90, 100, 50, "try_it"),
    ],
)
def test_a_score_is_judged_against_a_constant_answer_and_its_number_of_questions(points, count, floor, outcome):
    low, high = interval(points, count)
    assert low <= points <= high
    assert judged(points, low, floor=floor, needed=80) == outcome


def test_the_interval_is_wilsons():
    low, high = interval(65, 20)
    assert (low, high) == (pytest.approx(43.29, abs=0.01), pytest.approx(81.88, abs=0.01))
    assert interval(100, 10)[1] == pytest.approx(100) and interval(0, 10)[0] == 0


def test_advice_names_what_is_lacking():
    assert advice("do_not_use", train=90, answers=2, base="pocket", low=40, high=50) == ["real_base", "more_pictures"]
    assert advice("unclear", train=500, answers=2, base="bases/llava", low=43, high=82) == ["more_tests"]
    assert advice("try_it", train=500, answers=2, base="bases/llava", low=85, high=95) == ["serve_it"]


@pytest.mark.parametrize(
    ("language", "words"), [("en", "29 of 100 right, on 100 test"), ("ja", "常に「no」と答えるだけでも 50 問")]
)
def test_the_judgement_is_in_plain_words_and_hostile_texts_are_escaped(language, words):
    assert words in "\n".join(pilot_lines(DOCUMENT, language=language))
    hostile = "<img src=x onerror=alert(1)>"
    sample = Sample("parts", hostile, hostile, hostile, {}, None, "a", None, 0, 0.0)
    page = pilot_page(DOCUMENT | {"floor_answer": hostile}, [sample], language=language)
    assert "<img src=x" not in page and "&lt;img src=x" in page and "<script" not in page


def test_what_cannot_be_piloted_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="expected one of .csv"):
        pilot(tmp_path / "table.xlsx", out)
    with pytest.raises(DataError, match="nothing to learn"):
        pilot(tmp_path / "absent", out)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    with pytest.raises(ConfigError, match="have no question"):
        pilot(tmp_path / "photos", out)
    assert not out.exists()
    with pytest.raises(ConfigError, match="begins in an empty folder"):
        pilot(tmp_path / "photos", tmp_path)


@pytest.mark.slow
def test_class_folders_become_a_run_a_judgement_and_a_page(tmp_path):
    for number in range(16):
        for shade, answer in ((40, "cat"), (200, "dog")):
            folder = tmp_path / "pets" / answer
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (shade, number * 9, 0)).save(folder / f"{number}.png")
    base = write_base(tmp_path / "base")
    sets = (
        "tune.epochs=1",
        "tune.max_length=64",
        "evaluate.writing.max_new_tokens=3",
        "evaluate.writing.max_length=64",
    )
    options = PilotOptions("Which pet is this?", base=str(base), machine_hour=360.0, language="ja", sets=sets)
    document = pilot(tmp_path / "pets", tmp_path / "out", options)
    report = json.loads((tmp_path / "out" / "run" / "report.json").read_text())
    assert document["task"] == "pets" and report["tasks"] == ["pets"]
    assert document["score"] == report["matrix"][1][0] and document["floor"] == 50.0
    assert document["test"] == 6 and document["train"] + document["val"] == 26
    assert document["next_task"]["cost"] == pytest.approx(report["seconds"]["learning"] / 10)
    page = (tmp_path / "out" / "pilot.html").read_text()
    right = round(6 * document["score"] / 100)
    assert page.count("data:image/jpeg") == min(4, right) + min(4, 6 - right) and 'lang="ja"' in page
    assert json.loads((tmp_path / "out" / "pilot.json").read_text()) == json.loads(json.dumps(document))
