"""Key figures of a served run: against a simulated truth, and against a count of the log's own bytes."""

import csv
import json
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError
from hidecmoe_jax.operate.decision_log import open_log
from hidecmoe_jax.operate.entries import AnswerEntry, ReviewEntry, StartEntry, StopEntry
from hidecmoe_jax.operate.misrouting import Stratum, rate_of, strata_of
from hidecmoe_jax.operate.prices import Limits, read_prices
from hidecmoe_jax.operate.stages import checks, stage_of
from hidecmoe_jax.report.kpi_page import kpi_page
from hidecmoe_jax.studies.kpi import kpi, kpi_lines

PRICES = """
currency: JPY
machine_hour: 350
review: 60
misrouting: 500
confusions: {digits: {charts: 1200, unknown: 80}}
gigabyte_month: 4
limits: {answers: 10, reviews: 3}
"""


def an_answer(number: int, **fields) -> AnswerEntry:
    plain = {
        "id": f"r{number}", "run": "mine", "base": "b", "version": "v", "model": "auto", "task": "digits",
        "nearest": "digits", "fit": "well", "score": 1.0, "threshold": 0.5, "second": "charts", "ahead": 2.0,
        "refused": False, "queued": False, "pictures": (), "question": "Which digit?", "answer": "six",
        "milliseconds": 10.5 + number, "by": None, "sampled": None,
    }  # fmt: skip
    return AnswerEntry(**plain | fields)


def write_log(folder, entries):
    """A log in which every line is 90 seconds after the one before."""
    times = iter(datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=90 * step) for step in range(10_000))
    with open_log(folder, clock=lambda: next(times)) as log:
        for entry in entries:
            log.append(entry)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run's folder with what the study reads of it, and a log of one day with a restart."""
    root = tmp_path_factory.mktemp("kpi")
    (root / "mine").mkdir()
    (root / "mine" / "run.json").write_text("{}")
    report = {"method": "hidecmoe", "tasks": ["digits", "charts"], "matrix": [[0, 0], [50, 0], [50, 5]],
              "floors": {"digits": {"answer": "six", "score": 10.0}, "charts": {"answer": "red", "score": 20.0}},
              "bytes_per_task": {"digits": 3000, "charts": 5001}}  # fmt: skip
    (root / "mine" / "report.json").write_text(json.dumps(report))
    kinds = {**{number: {"sampled": "random"} for number in (3, 5, 6, 7)}, 8: {"sampled": "near_tie", "task": "charts"},
             9: {"sampled": "near_tie", "task": "charts"}, 11: {"model": "charts", "task": "charts"},
             12: {"sampled": "unknown", "fit": "unknown", "task": None, "refused": True, "answer": None},
             13: {"shadow": True, "task": "charts"}, 14: {"run": "another"}}  # fmt: skip
    answers = [an_answer(number, **kinds.get(number, {})) for number in range(24)]
    reviews = [
        ReviewEntry("g", "r6", "right"), ReviewEntry("h", "r7", "answer", answer="five"),
        ReviewEntry("a", "r3", "right", by="ben"), ReviewEntry("b", "r5", "right"),
        ReviewEntry("c", "r5", "other_task", task="charts"), ReviewEntry("d", "r8", "right"),
        ReviewEntry("e", "r9", "new_task", task="stamps"), ReviewEntry("f", "r0", "other_task", task="charts"),
    ]  # fmt: skip
    start = StartEntry("mine", "0.1.0", {"review_share": 0.05})
    log = write_log(root / "log", [start, *answers[:10], StopEntry("signal"), start, *answers[10:], *reviews])
    (root / "prices.yaml").write_text(PRICES)
    return root, log


def recount(log) -> dict:
    """The figures of `served`, from the bytes of the log and the prices above alone."""
    lines = [json.loads(line) for path in sorted(log.glob("*.jsonl")) for line in path.read_text().splitlines()]
    answers = [line for line in lines if line["kind"] == "answer" and line["run"] == "mine" and "shadow" not in line]
    last = {line["of"]: line for line in lines if line["kind"] == "review"}
    count = len(lines)
    # 90 s a line; the step from the stop to the second start is not in service, and another run's line counts time.
    hours = (count - 2) * 90 / 3600
    milliseconds = sorted(line["milliseconds"] for line in answers)
    # Routed: all but r11. Always drawn: r8, r9, r12; r8 is right, r9 wrong. Of four of the rest r5 is wrong.
    routed = [line for line in answers if line["model"] == "auto"]
    rest = [line for line in routed if line["sampled"] in (None, "random")]
    rate = (3 / len(routed)) * (1 / 2) + (len(rest) / len(routed)) * (1 / 4)
    cost = {("digits", "charts"): len(rest) / 4 * 1200, ("charts", "unknown"): 2 / 2 * 500}
    total = hours * 350 + len(last) * 60 + sum(cost.values())
    return {
        "answers": len(answers), "rest": len(rest), "hours": hours, "rate": rate, "confusions": cost, "total": total,
        "p50": milliseconds[math.ceil(len(answers) / 2) - 1],
        "p95": milliseconds[math.ceil(0.95 * len(answers)) - 1], "reviews": len(last),
    }  # fmt: skip


def test_every_figure_is_that_of_a_count_over_the_logs_own_bytes(served):
    root, log = served
    figures = kpi(root / "mine", log, prices=root / "prices.yaml", tasks=(10,), out=root / "out")
    truth = recount(log)
    assert truth["answers"] == 22 and truth["rest"] == 18
    assert figures["answers"] == truth["answers"] and figures["reviews"] == truth["reviews"] == 7
    assert figures["period"]["hours"] == pytest.approx(truth["hours"], abs=1e-12)
    assert figures["latency"] == {"p50": truth["p50"], "p95": truth["p95"]}
    assert figures["misrouting"]["value"] == pytest.approx(truth["rate"], abs=1e-12)
    assert figures["misrouting"]["reviewed"] == 6 and figures["misrouting"]["pending"] == 1
    assert {(row["task"], row["right"]): row["cost"] for row in figures["confusions"]} == truth["confusions"]
    assert figures["cost"]["total"] == pytest.approx(truth["total"], abs=1e-9)
    assert sum(task["cost"]["total"] for task in figures["tasks"]) == pytest.approx(truth["total"], abs=1e-9)
    assert figures["cost"]["a_request"] * truth["answers"] == pytest.approx(truth["total"], abs=1e-9)
    assert figures["storage"]["forecast"] == [{"tasks": 10, "bytes": 40005.0, "a_month": 40005.0 / 1e9 * 4}]
    # The files say what the document says, unrounded.
    assert json.loads((root / "out" / "kpi.json").read_text()) == json.loads(json.dumps(figures))
    table = dict(csv.reader((root / "out" / "kpi.csv").open()))
    assert float(table["cost.total"]) == figures["cost"]["total"]
    assert float(table["misrouting.high"]) == figures["misrouting"]["high"]
    assert any("NOT KEPT" in line for line in kpi_lines(figures))


def test_the_interval_holds_the_known_truth_as_often_as_it_says():
    draw = np.random.default_rng(4)
    inside = 0
    means = []
    worlds = 400
    for _ in range(worlds):
        size = 1500
        near = draw.random(size) < 0.1
        # Near ties go wrong far more often: an estimate without weights would be 0.13 instead of 0.048.
        wrong = draw.random(size) < np.where(near, 0.3, 0.02)
        drawn = near | (draw.random(size) < 0.08)
        answers = []
        reviews = {}
        for number in range(size):
            kind = "near_tie" if near[number] else "random" if drawn[number] else None
            answers.append({"id": number, "model": "auto", "task": "digits", "sampled": kind})
            if drawn[number]:
                reviews[number] = (
                    {"decision": "other_task", "task": "charts"} if wrong[number] else {"decision": "right"}
                )
        rate = rate_of(strata_of(answers, reviews))
        inside += rate.low <= wrong.mean() <= rate.high
        means.append(rate.value - wrong.mean())
    assert inside / worlds >= 0.93
    assert abs(np.mean(means)) < 3 * np.std(means) / math.sqrt(worlds) + 1e-9


@pytest.mark.parametrize(
    ("strata", "value", "low", "high"),
    [
        # Wilson's interval of 2 in 20 (Newcombe 1998 has the formula); nearly nothing of the stratum was reviewed.
        ([Stratum(10**9, 20, 20, 2)], 0.1, 0.0279, 0.3010),
        ([Stratum(20, 20, 20, 2)], 0.1, 0.1, 0.1),
        ([Stratum(20, 20, 20, 0), Stratum(20, 4, 0, 0)], None, 0.0, 0.5),
    ],
)
def test_an_interval_is_wilsons_and_nothing_reviewed_is_nothing_known(strata, value, low, high):
    rate = rate_of(strata)
    assert rate.value == value
    assert (rate.low, rate.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


@pytest.mark.parametrize(
    ("wrong", "reviewed", "above_floor", "stage"),
    [(0, 400, (2, 2), "widen"), (0, 30, (2, 2), "pilot"), (160, 400, (2, 2), "stop"), (0, 400, (1, 2), "stop")],
)
def test_a_stage_follows_from_its_numbers(wrong, reviewed, above_floor, stage):
    rate = rate_of([Stratum(5000, reviewed, reviewed, wrong)])
    rows = checks(Limits(), answers=5000, misrouting=rate, unknown=0.1, p95=800.0, above_floor=above_floor)
    assert stage_of(rows) == stage


def test_wrong_input_is_refused(served, tmp_path):
    root, log = served
    with pytest.raises(CheckpointError, match="this is no run"):
        kpi(tmp_path / "none", log)
    other = root / "other"
    other.mkdir(exist_ok=True)
    (other / "run.json").write_text("{}")
    with pytest.raises(DataError, match="no answer of this run"):
        kpi(other, log)
    for text, message in (
        ("machine_hours: 3", "machine_hour"),
        ("review: -1", "0 or more"),
        ("limits: {unknown: 3}", "0..1"),
    ):
        (tmp_path / "prices.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_prices(tmp_path / "prices.yaml")
    with pytest.raises(ConfigError, match="no such language"):
        kpi(root / "mine", log, language="fr", out=tmp_path)


@pytest.mark.parametrize(("language", "headline"), [("en", "Stop and look"), ("ja", "いったん止めて")])
def test_the_page_is_in_the_language_and_escapes_names(served, tmp_path, language, headline):
    root, log = served
    figures = kpi(root / "mine", log, prices=root / "prices.yaml", out=tmp_path, language=language)
    assert headline in (tmp_path / "kpi.html").read_text()
    hostile = figures | {"run": "<script>alert(1)</script>"}
    page = kpi_page(hostile, language=language)
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
