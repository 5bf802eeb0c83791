"""The report says what was measured, what was not, and lets nothing of a user's text become markup."""

import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.report import RunFacts, Sample, SeedResult, compare_document, run_document, write_report
from hidecmoe_jax.report.figures import routing_confusion
from hidecmoe_jax.report.growth_figures import experts_added
from hidecmoe_jax.report.page import page

pytestmark = pytest.mark.figures
KEYS = """method tasks matrix last avg maa mft bwt_t_minus_1 bwt_t forgetting routing_accuracy named_task_last fwt
stored_parameters archived_parameters trained_parameters seconds seeds""".split()
COUNTS = {"total": 30, "experts": 20, "routers": 0, "locator": 4, "projector": 6}


def seed_result(seed, matrix, **more):
    return SeedResult(seed=seed, matrix=matrix, seconds={"learning": 2.0, "evaluation": 1.0}, **more)


def facts(method="hide", tasks=("digits", "charts")):
    scorers = tuple("exact" for _ in tasks)
    return RunFacts(
        method, tasks, scorers, stored_parameters=COUNTS, archived_parameters=COUNTS, trained_parameters=COUNTS
    )


@pytest.fixture
def document():
    seeds = [
        seed_result(
            0,
            [[10, 20], [80, 30], [60, 90]],
            named_task_matrix=[[None, None], [None, None], [70, 90]],
            routing_confusion=[[9, 1], [0, 10]],
            curves={"digits": [(0, 2.0), (1, 1.0)], "charts": [(0, 2.5), (1, 1.5)]},
        ),
        seed_result(
            1,
            [[10, 20], [90, 30], [80, 90]],
            named_task_matrix=[[None, None], [None, None], [90, 90]],
            routing_confusion=[[10, 0], [0, 10]],
        ),
    ]
    return run_document(facts(), seeds)


def test_the_keys_of_a_run(document):
    assert set(KEYS) <= set(document)
    assert document["matrix"] == [[10, 20], [85, 30], [70, 90]]
    assert document["last"] == pytest.approx(80.0)  # (75 + 85) / 2
    assert document["bwt_t_minus_1"] == pytest.approx(-15.0) and document["bwt_t"] == pytest.approx(-7.5)
    assert document["fwt"] == pytest.approx(10.0)  # 30 - 20 on the second task
    assert document["routing_accuracy"] == pytest.approx(97.5)
    assert document["named_task_last"] == pytest.approx(85.0)
    assert set(document["stored_parameters"]) == {"total", "experts", "routers", "locator", "projector"}
    assert [entry["last"] for entry in document["seeds"]["per_seed"]] == [75.0, 85.0]


def test_backward_transfer_is_split_into_routing_and_the_rest(document):
    named = [[None, None], [80, None], [78, 90]]
    found = run_document(facts(), [seed_result(0, [[10, 20], [80, 30], [60, 90]], named_task_matrix=named)])
    assert found["named_task_matrix"] == named and found["bwt_t"] == pytest.approx(-10.0)
    assert found["bwt_named_task"] == pytest.approx(-1.0) and found["bwt_routing"] == pytest.approx(-9.0)
    assert document["bwt_named_task"] is None and document["bwt_routing"] is None  # only the last row was measured


def test_the_locator_s_choices_are_counted_with_those_it_knows_nothing_of():
    matrix = [[10, 20], [80, 30], [60, 90]]
    located = [[[7, 1, 2], [0, 10, 0]], [[9, 1, 0], [1, 8, 1]]]
    seeds = [
        seed_result(seed, matrix, routing_confusion=[row[:2] for row in rows], locator_confusion=rows)
        for seed, rows in enumerate(located)
    ]
    found = run_document(facts(), seeds)
    assert found["locator_confusion"] == {
        "tasks": ["digits", "charts"],
        "columns": ["digits", "charts", "unknown"],
        "counts": [[16, 2, 2], [1, 18, 1]],
        "shares": [[0.8, 0.1, 0.1], [0.05, 0.9, 0.05]],
    }
    assert [entry["locator_confusion"]["counts"] for entry in found["seeds"]["per_seed"]] == located
    known = run_document(facts(), [seeds[0], replace(seeds[1], locator_confusion=None)])
    assert len(routing_confusion(found).axes[0].get_xticks()) == 3  # a column more
    assert known["locator_confusion"] is None and len(routing_confusion(known).axes[0].get_xticks()) == 2
    assert run_document(facts(), [seed_result(0, matrix)])["locator_confusion"] is None
    with pytest.raises(DataError, match="2 x 3"):
        run_document(facts(), [seed_result(0, matrix, locator_confusion=[[1, 2], [3, 4]])])


def test_scores_without_an_upper_end_are_named_and_a_mean_without_them_stands_beside():
    open_ended = RunFacts("hide", ("digits", "captions"), ("exact", "caption6"))
    found = run_document(open_ended, [seed_result(0, [[0, 0], [80, 0], [70, 117.5]])])
    assert found["open_ended"] == ["captions"]
    assert found["last"] == pytest.approx(93.75) and found["last_bounded"] == pytest.approx(70.0)
    shown = page(found, [], common={}, by_method=[{}])
    assert "but for captions: CIDEr-D" in shown and "Last, bounded tasks" in shown
    alike = run_document(facts(), [seed_result(0, [[0, 0], [80, 0], [70, 90]])])
    assert alike["open_ended"] == [] and alike["last_bounded"] == alike["last"]
    shown = page(alike, [], common={}, by_method=[{}])
    assert "CIDEr-D" not in shown and "Last, bounded tasks" not in shown


def test_work_and_time_stand_in_tables():
    cost = {"tokens": 96, "pictures": 1, "forward_base": 2_000_000, "forward_method": 2_100_000,
            "locator_prefill": 1_900_000, "total": 4_000_000, "ratio": 2.0}  # fmt: skip
    seconds = {"learning": 9.0, "learning/probe": 2.0, "learning/tune": 5.0, "evaluation": 1.0}
    result = SeedResult(
        seed=0, matrix=[[10, 20], [80, 30], [60, 90]], seconds=seconds, answers={"all": 12, "reused": 5}
    )
    found = run_document(replace(facts("cmoe"), flops_per_query=cost), [result])
    assert found["flops_per_query"] == cost and found["seconds"] == seconds
    plain = run_document(facts(), [seed_result(0, [[10, 20], [80, 30], [60, 90]])])
    shown = page(compare_document([plain, found]), [], common={}, by_method=[{}, {}])
    work = shown[shown.index('id="flops"') :]
    assert "1.9 M" in work and "2.0000" in work and "cmoe" in work
    phases = re.findall(r"<tr><th>([^<]+)</th>", shown[shown.index('id="seconds"') : shown.index("Work per query")])
    assert phases == ["phase", "learning", "– probe", "– tune", "evaluation"]
    assert re.findall(r">(\S+ \d+ of \d+) answers", shown) == ["cmoe: 5 of 12"]


def test_growth_is_drawn_by_task_and_layer(tmp_path):
    growth = {
        "experts": [[2, 2, 2], [0, 1, 0]],
        "frequency": [None, [0.2, 0.9, 0.5]],
        "threshold": [None, [0.67] * 3],
        "by_kind": [None, [[0.2, 0.1, 0.3]] * 3],
        "parameters": [{"experts": 6, "routers": 4, "locator": 1}, {"experts": 1, "routers": 5, "locator": 1}],
    }
    grown = replace(facts("cmoe"), growth=growth)
    found = run_document(grown, [seed_result(0, [[10, 20], [80, 30], [60, 90]])])
    assert found["growth"] == growth
    write_report(tmp_path, found, [])
    assert Image.open(tmp_path / "figures" / "growth.png").size[0] > 400
    assert "Experts that each task" in (tmp_path / "report.html").read_text()


def test_growth_is_drawn_where_layers_have_no_probe():
    growth = {
        "experts": [[0, 0, 2], [0, 0, 1]],
        "frequency": [None, [None, None, 0.9]],
        "threshold": [None, [None, None, 0.67]],
        "by_kind": [None, [None, None, [0.2, 0.1, 0.3]]],
        "used": [None, [[0.0, 0.0, 2.0]]],
        "parameters": [{"experts": 6, "routers": 4, "locator": 1}, {"experts": 1, "routers": 5, "locator": 1}],
    }
    document = run_document(replace(facts("stacked"), growth=growth), [seed_result(0, [[10, 20], [80, 30], [60, 90]])])
    added, used = experts_added(document).axes
    assert [text.get_text() for text in added.texts] == ["0", "0", "+2", "0", "0", "+1\n90%"]
    assert [text.get_text() for text in used.texts] == ["0.00", "0.00", "2.00"]


def test_growth_by_worth_is_drawn_with_the_gains():
    growth = {
        "experts": [[1, 1], [1, 0]],
        "frequency": [None, None],
        "gain": [None, [0.512, -0.03]],
        "control": [[0.1, 0.1], [0.1, 0.1]],
        "parameters": [{"experts": 6, "routers": 4, "locator": 1}, {"experts": 1, "routers": 5, "locator": 1}],
    }
    document = run_document(replace(facts("cmoe"), growth=growth), [seed_result(0, [[10, 20], [80, 30], [60, 90]])])
    (added,) = experts_added(document).axes
    assert [text.get_text() for text in added.texts] == ["+1", "+1", "+1\n0.51", "0\n-0.03"]


def test_a_cell_that_one_seed_lacks_is_null_and_stops_the_headline():
    document = run_document(
        facts(), [seed_result(0, [[1, 2], [50, None], [60, 70]]), seed_result(1, [[1, 2], [50, 3], [None, 70]])]
    )
    assert document["matrix"] == [[1, 2], [50, None], [None, 70]]
    assert document["last"] is None and "last" in document["missing"]


def test_the_page_is_whole_in_itself(document, tmp_path):
    picture = tmp_path / "seven.png"
    Image.new("RGB", (56, 56), (200, 10, 10)).save(picture)
    sample = Sample("digits", "Which digit?", "seven", "one", {"digits": 0.9, "charts": 0.1}, str(picture))
    write_report(tmp_path, document, [sample])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text())["last"] == document["last"]
    assert {"accuracy_matrix.png", "routing_confusion.png"} <= {p.name for p in (tmp_path / "figures").iterdir()}
    sources = re.findall(r'src="([^"]{1,30})', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    links = re.findall(r'href="([^"]+)"', page)
    assert links and all((tmp_path / link).is_file() for link in links)
    assert "Which digit?" in page and "seven" in page


@pytest.fixture
def no_figures(monkeypatch):
    """Draws nothing, for tests that read the page alone."""
    monkeypatch.setattr("hidecmoe_jax.report.page.run_figures", lambda document: {})


def test_text_never_becomes_markup(tmp_path, no_figures):
    evil = "<script>alert(1)</script>"
    document = run_document(facts(method=evil), [seed_result(0, [[0, 0], [1, 1], [1, 1]])])
    write_report(tmp_path, document, [Sample("digits", evil, evil, evil, {"digits": 1.0}, None)])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert evil not in page and "&lt;script&gt;alert(1)" in page


def test_what_was_not_measured_is_said(tmp_path, no_figures):
    document = run_document(facts(), [seed_result(0, [[0, 0], [1, None], [1, None]])])
    write_report(tmp_path, document, [])
    assert "not measured" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_comparison_puts_methods_side_by_side(document, tmp_path):
    other = run_document(facts("sequential"), [seed_result(0, [[10, 20], [80, 30], [20, 90]])])
    both = compare_document([document, other])
    assert [entry["method"] for entry in both["methods"]] == ["hide", "sequential"]
    write_report(tmp_path, both, [])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "sequential" in page and list((tmp_path / "figures").glob("*.png"))


def test_runs_over_different_streams_are_refused(document):
    other = run_document(facts("sequential", ("charts", "digits")), [seed_result(0, [[1, 2], [3, 4], [5, 6]])])
    with pytest.raises(DataError, match="different streams"):
        compare_document([document, other])


def test_chosen_layers_are_drawn_and_explained(tmp_path):
    found = {"expanded": [0, 2], "worth": [[0.0, 0.0, 0.0], [0.5, -0.1, 0.4]], "by": "loss"}
    grown = replace(facts(), growth=found)
    document = run_document(grown, [seed_result(0, [[10, 20], [80, 30], [60, 90]])])
    assert document["growth"] == found
    write_report(tmp_path, document, [])
    figures = tmp_path / "figures"
    assert (figures / "expansion.png").read_bytes().startswith(b"\x89PNG")
    assert not (figures / "growth.png").exists()
    assert "Framed layers are expanded" in (tmp_path / "report.html").read_text()
