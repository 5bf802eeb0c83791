"""What a reader of a report sees first, and what a figure, a table or a picture must not leave out or invent."""

import csv
import hashlib
import html
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hidecmoe_jax.data.items import Record, Turn
from hidecmoe_jax.report import RunFacts, Sample, SeedResult, compare_document, run_document, write_report
from hidecmoe_jax.report.canvas import png
from hidecmoe_jax.report.comparison_figures import last_and_forgetting, last_by_task
from hidecmoe_jax.report.figures import (
    accuracy_matrix,
    expert_sizes,
    forgetting_curves,
    routing_confusion,
    training_loss,
)
from hidecmoe_jax.report.growth_figures import experts_added
from hidecmoe_jax.report.outcome_figure import outcome
from hidecmoe_jax.report.page import page
from hidecmoe_jax.report.verdict import verdict_lines, verdict_of

COUNTS = {"total": 30, "experts": 20, "routers": 0, "locator": 4, "projector": 6}
LONG = "customer_complaints_of_the_northern_branch_2024"
TWIN = "customer_complaints_of_the_northern_branch_2025"


def facts(tasks, method="hide", **more):
    scorers = tuple("exact" for _ in tasks)
    sizes = {name: COUNTS for name in ("stored_parameters", "archived_parameters", "trained_parameters")}
    floors = {task: {"answer": "yes", "score": 25.0} for task in tasks}
    return RunFacts(method, tuple(tasks), scorers, **sizes, **{"floors": floors, **more})


def document(matrix=((10, 20), (85, 30), (70, 90)), tasks=("digits", "charts"), about=None, **more):
    curves = {task: [(step, 2.0 / (step + 1)) for step in range(30)] for task in tasks}
    result = {"seconds": {"learning": 2.0, "evaluation": 1.0}, "curves": curves, **more}
    rows = [list(row) for row in matrix]
    return run_document(about or facts(tasks), [SeedResult(seed=0, matrix=rows, **result)])


def shown(found, samples=(), **more):
    several = "methods" in found
    figures = [{}] * (len(found["methods"]) if several else 1)
    return page(found, list(samples), common={}, by_method=figures, **more)


def first_screen(text):
    """The part of a page from its heading to the first heading behind the verdict, without markup."""
    start = text.index('<section id="verdict"')
    section = text[start : text.index("</section>", start)]
    return section, " ".join(re.sub(r"<[^>]+>", " ", section).split())


def titles(figure):
    """Title artists of all panels."""
    return [axis._left_title for axis in figure.axes if axis.get_title(loc="left")]


def test_fault_f4_first_screen_is_a_verdict_in_words_with_three_numbers_and_one_picture():
    found = document(routing_confusion=[[97, 3], [0, 100]])
    text = page(found, [], common={}, by_method=[{"outcome.png": b"", "outcome.svg": b"", "accuracy_matrix.png": b""}])
    section, words = first_screen(text)
    assert "Learned, and partly forgotten" in words
    assert "After 2 tasks the mean score is 80.0 of 100; it was 15.0 before training" in words
    assert "the most frequent answer scores 25.0" in words
    assert "lost 15.0 points" in words and "98.5 %" in words and "lowest score is that of digits, 70.0" in words
    assert re.findall(r'<dd class="value">([^<]+)<', section) == ["80.0", "−15.0", "98.5 %"]
    assert section.count("<img") == 1
    assert text.index("<section") < text.index("<h2>Headline numbers")
    _, single = first_screen(shown(document([[10], [85]], ["digits"])))
    assert "After 1 task the mean score is 85.0 of 100; it was 10.0 before training" in single


def test_fault_f4_first_screen_of_a_comparison_names_the_best_method_and_its_lead():
    worse = document([[10, 20], [85, 30], [20, 90]], about=facts(("digits", "charts"), "sequential"))
    _, words = first_screen(shown(compare_document([worse, document()])))
    assert "Best at the end: hide" in words and "hide is 25.0 points ahead of sequential." in words
    assert "hide: 2 of 2 tasks learned." in words and "sequential, digits: 20.0 now against 85.0" in words
    _, words = first_screen(shown(compare_document([document(), document()])))
    assert "No difference at the end between hide and hide (2)" in words


def test_fault_f4_first_screen_says_what_was_not_measured():
    _, words = first_screen(shown(document([[10, 20], [85, 30], [None, 90]])))
    assert "Not measured to the end" in words and "not measured" in words
    _, words = first_screen(shown(document([[0, 0]])))
    assert "Nothing was trained" in words and "mean score 0.0" in words


def test_fault_b_report_warns_of_a_task_at_its_floor_and_of_a_loss_that_has_not_fallen():
    curves = {"digits": [(0, 1.0), (1, 0.5)], "charts": [(0, 1.0), (1, 1.25)]}
    floors = {"digits": {"answer": "7", "score": 20.0}, "charts": {"answer": "red", "score": 25.0}}
    about = facts(("digits", "charts"), floors=floors, settings={"base": {"path": "pocket"}})
    found = document([[10, 20], [85, 30], [20, 25]], about=about, curves=curves)
    _, words = first_screen(shown(found))
    words = html.unescape(words)
    assert verdict_of(found).summary == "0 of 2 tasks learned, 1 forgotten, 1 not learned"
    # The terminal and the page say the same.
    assert verdict_of(found).summary in words
    for line in verdict_lines(verdict_of(found)):
        kind, _, text = line.partition(": ")
        assert kind not in ("warning", "note") or text in words
    assert "digits: 20.0 now against 85.0 right after learning" in words
    assert "charts: its training loss has not fallen: 1.000 at first, 1.250 after 2 steps." in words
    assert "digits: its training loss" not in words
    assert "not photographs" in words
    _, words = first_screen(shown(document(about=about)))
    assert "no better" not in words and "has not fallen" not in words and "photographs" not in words


def test_fault_b_report_does_not_praise_what_it_cannot_judge_or_what_the_base_could_do_before():
    _, words = first_screen(shown(document(about=facts(("digits", "charts"), floors={}))))
    assert "Not judged: the score of a constant answer was not recorded" in words and "hidecmoe eval RUN" in words
    _, words = first_screen(shown(document([[70, 20], [85, 30], [70, 90]])))
    assert "1 of 2 tasks no better than before training" in words
    assert "digits: 70.0 is no better than before training: 70.0." in words
    _, words = first_screen(shown(document([[0], [0]], ["digits"])))
    assert words.startswith("Not learned After 1 task")


def test_fault_f4_one_backward_transfer_on_the_page_the_other_divisor_in_the_json():
    found = document(named_task_matrix=[[None, None], [85, None], [84, 90]])
    rows = re.findall(r'<tr id="metric-[^"]*"><th>([^<]*)', shown(found))
    assert [row for row in rows if row.startswith("BWT")] == ["BWT", "BWT, task named", "BWT by routing"]
    assert "−7.50" not in shown(found)  # the sum over both tasks divided by two
    assert found["bwt_t"] == pytest.approx(-7.5) and found["bwt_t_minus_1"] == pytest.approx(-15.0)
    # The split adds up to the number on the page.
    assert found["bwt_t_minus_1_named_task"] == pytest.approx(-1.0)
    assert found["bwt_t_minus_1_routing"] == pytest.approx(-14.0)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_fault_f4_titles_are_never_cut(count):
    tasks = [LONG, TWIN][:count]
    matrix = [[10] * count] + [[50] * count for _ in tasks]
    confusion = np.eye(count, dtype=int).tolist()
    added = {task: {"experts": 20} for task in tasks}
    about = facts(tasks, "hide-frozen-projector-with-a-long-name", added_parameters=added)
    found = document(matrix, tasks, about, routing_confusion=confusion)
    both = compare_document([found, found])
    drawings = [accuracy_matrix, forgetting_curves, routing_confusion, training_loss, expert_sizes, outcome]
    figures = [draw(found) for draw in drawings] + [last_and_forgetting(both), last_by_task(both)]
    for figure in figures:
        png(figure)
        # The file has other dots per inch than the figure that is measured here.
        figure.draw_without_rendering()
        edges = [axis.bbox for axis in figure.axes]
        for title in titles(figure):
            box = title.get_window_extent()
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, title.get_text()
            next_panels = [edge.x0 for edge in edges if edge.x0 > box.x0 + 1 and edge.y0 < box.y0 < edge.y1 + 30]
            assert all(box.x1 < left for left in next_panels), title.get_text()
            assert "\u2026" not in title.get_text()
    title = titles(figures[0])[0].get_text()
    assert "hide-frozen-projector-with-a-long-name" in re.sub(r"\s+", "", title)


def test_fault_f4_names_on_axes_and_in_legends_keep_what_tells_them_apart():
    found = document(tasks=(LONG, TWIN), about=facts((LONG, TWIN)))
    axis = accuracy_matrix(found).axes[0]
    ticks = ["".join(tick.get_text().split()) for tick in axis.get_xticklabels()]
    assert ticks == [LONG, TWIN]
    legend = forgetting_curves(found).axes[0].get_legend().get_texts()
    assert ["".join(text.get_text().split()) for text in legend] == [LONG, TWIN]


def test_fault_f4_lines_run_only_through_measured_points():
    tasks = ("a", "b", "c", "d")
    own_and_last = [[1, 2, 3, 4], [50, *[None] * 3], [None, 60, None, None], [None, None, 70, None], [40, 50, 60, 70]]
    axis = forgetting_curves(document(own_and_last, tasks)).axes[0]
    measured = {(row, score) for row, scores in enumerate(own_and_last) for score in scores if score is not None}
    joined = 0
    points = set()
    for line in axis.lines:
        places = [tuple(map(float, point)) for point in line.get_xydata()]
        finite = [place for place in places if not np.isnan(place[1])]
        assert all((int(x), y) in measured for x, y in finite)
        if line.get_marker() not in ("", "None", None):
            points |= set(finite)
        for left, right in zip(finite, finite[1:], strict=False):
            is_unbroken = places.index(right) == places.index(left) + 1
            joined += is_unbroken
            assert not is_unbroken or right[0] == left[0] + 1
    assert points == measured  # each has a mark of its own, also where no line reaches it
    assert joined == 2  # of a the rows before and right after its lesson, of c the last two


def test_fault_f4_a_gap_in_the_loss_is_no_line():
    losses = [(0, 2.0), (1, 1.5), (2, float("nan")), (3, 1.0), (4, 0.5)]
    axis = training_loss(document(curves={"digits": losses})).axes[0]
    for line in axis.lines:
        steps = line.get_xydata()
        assert len(steps) == 5 and np.isnan(steps[2, 1])


def test_fault_f4_loss_is_drawn_against_steps():
    axis = training_loss(document()).axes[0]
    ticks = [tick.get_text() for tick in axis.get_xticklabels()]
    assert "step" in axis.get_xlabel()
    assert len(ticks) > 2 and all(re.fullmatch(r"[0-9]+", tick) for tick in ticks)
    names = [tick.get_text() for child in axis.child_axes for tick in child.get_xticklabels()]
    assert names == ["digits", "charts"]


def test_fault_f4_a_value_of_zero_is_printed():
    found = document([[0, 0], [0, 0], [0, 0]])
    bars = last_by_task(compare_document([found, document([[0, 0], [1, 1], [None, 1]])])).axes[0]
    assert sorted(text.get_text() for text in bars.texts) == ["0", "0", "\u2013"]
    growth = {"experts": [[0, 2], [0, 1]], "frequency": [None, [0.0, 0.5]], "used": [None, [[0.0, 1.0]]]}
    about = facts(("digits", "charts"), growth=growth)
    added, used = experts_added(document(about=about)).axes
    assert [text.get_text() for text in added.texts] == ["0", "+2", "0\n0%", "+1\n50%"]
    assert [text.get_text() for text in used.texts] == ["0.00", "1.00"]
    section, _ = first_screen(shown(found))
    assert re.findall(r'<dd class="value">([^<]+)<', section)[0] == "0.0"


def test_fault_f4_a_narrow_screen_loses_no_column():
    both = compare_document([document(), document(named_task_matrix=[[None, None], [85, None], [84, 90]])])
    for text in (shown(document()), shown(both)):
        assert all("stack" in attributes for attributes in re.findall(r"<table([^>]*)>", text))
        # Below each other, a number stands beside the name of its column.
        cells = re.findall(r'<td class="n"([^>]*)>', text)
        assert cells and all('data-label="' in attributes for attributes in cells)
        assert "@media (max-width: 40rem)" in text


def test_fault_f4_alternative_texts_carry_numbers():
    growth = {"experts": [[0, 2], [0, 1]], "frequency": [None, None], "expanded": [1]}
    growth["worth"] = [[0.0, 0.0], [0.5, 2.5]]
    about = facts(("digits", "charts"), growth=growth)
    found = document(routing_confusion=[[97, 3], [0, 100]], about=about)
    stems = """outcome accuracy_matrix forgetting_curves routing_confusion expert_sizes growth expansion
    training_loss""".split()
    figures = {f"{stem}.png": b"" for stem in stems}
    text = page(found, [], common={}, by_method=[figures])
    texts = dict(zip(stems, re.findall(r'<img src="data:image/png[^>]*alt="([^"]*)"', text), strict=True))
    assert all(re.search(r"\d", words) for words in texts.values())
    assert "after charts digits 70.0, charts 90.0" in texts["accuracy_matrix"]
    assert "of 100 questions of digits 97 to digits, 3 to charts" in texts["routing_confusion"]
    assert "digits from 2.000 at step 0 to 0.067 at step 29" in texts["training_loss"]
    both = compare_document([found, found])
    common = {"last_and_forgetting.png": b"", "last_by_task.png": b""}
    text = page(both, [], common=common, by_method=[{}, {}])
    assert "hide Last 80.0, forgetting 15.0" in text and "hide (2) digits 70.0, charts 90.0" in text


def picture(path, color):
    Image.new("RGB", (40, 30), color).save(path)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def test_fault_f4_gallery_shows_every_task_with_pictures_and_what_was_right(tmp_path):
    path, digest = picture(tmp_path / "seven.png", (200, 10, 10))
    seven = Sample("digits", "Which digit?", "seven", "one", {"digits": 0.1, "charts": 0.9}, path)
    seven = replace(seven, id="q7", digest=digest, score=0.0, chosen="charts")
    tall = Sample("charts", "Tallest bar?", "red", "red", {"charts": 1.0}, None, id="q8", score=100.0, chosen="charts")
    about = facts(("digits", "charts"), confusions={"digits": [{"expected": "seven", "answered": "one", "count": 9}]})
    text = shown(document(about=about), [seven, tall])
    assert text.index("</section>") < text.index('id="gallery"') < text.index("<h2>Headline numbers")
    gallery = text[text.index('id="gallery"') : text.index("<h2>Headline numbers")]
    assert gallery.count("data:image/jpeg;base64,") == 1
    assert "seven answered as one, 9 times" in gallery
    wrong, right = gallery.split('<div class="card ')[1:]
    for word in ("wrong", "Which digit?", "seven", "one", "charts", "not its own"):
        assert word in wrong
    assert right.startswith("right") and "Tallest bar?" in right and "not its own" not in right


def test_fault_d4_titles_of_tasks_are_in_the_report():
    zoo = "Große Tiere <im Zoo> von Hannover und im Wald daneben, aufgenommen im Winter"
    about = facts(("digits", "task_76ec6b"), titles={"task_76ec6b": zoo})
    tasks = ("digits", "task_76ec6b")
    sample = Sample("task_76ec6b", "q", "a", "b", {}, None, id="q1", score=0.0)
    text = shown(document(tasks=tasks, about=about), [sample])
    shown_title = f"task_76ec6b: {html.escape(zoo)}"
    assert text.count(shown_title) == 2 and f"<h3>{shown_title}</h3>" in text
    assert "digits (exact), " in text
    assert "titles" not in document()


def test_fault_f4_gallery_embeds_the_run_s_own_pictures_alone_and_names_those_it_lacks(tmp_path):
    path, digest = picture(tmp_path / "mine.png", (200, 10, 10))
    secret, _ = picture(tmp_path / "secret.png", (0, 0, 250))
    sample = Sample("digits", "q", "a", "b", {"digits": 1.0}, path, id="q1", digest=digest, score=0.0, chosen="digits")
    device = "/dev/zero"
    gone = str(tmp_path / "gone.png")
    others = [replace(sample, image=image) for image in (secret, gone, device, str(tmp_path))]
    unrecorded = replace(sample, digest=None)
    text = shown(document(), [sample, *others, unrecorded])
    assert text.count("data:image/jpeg") == 1
    for name, why in (
        (secret, "the file is not the one that was evaluated"),
        (gone, "No such file or directory"),
        (device, "only regular files are read"),
        (path, "its digest was not recorded"),
    ):
        assert re.search(f"<code>{re.escape(Path(name).name)}: [^<]*{why}", text), name


def test_fault_f4_gallery_takes_the_worst_confusions_first_and_mixes_classes():
    from hidecmoe_jax.runs.asked import SHOWN, asked

    # Sorted by class, as test files are: the first questions would all be cats.
    pairs = [("cat", "cat")] * 20 + [("cat", "dog")] * 3 + [("dog", "dog")] * 20 + [("dog", "cow")] * 9
    pairs += [("cow", "cow")] * 20 + [("cow", " DOG")] * 5
    records = tuple(Record(f"q{i}", (), (Turn("?", want),), f"test.json#{i}") for i, (want, _) in enumerate(pairs))
    answers = {record.id: got for record, (_, got) in zip(records, pairs, strict=True)}
    task = SimpleNamespace(scorer="exact", digests={})
    chosen = asked(task, records, answers)
    found = [(item["answer"], answers[item["id"]].strip(), item["score"]) for item in chosen.questions]
    assert len(found) == SHOWN
    assert found[:3] == [("dog", "cow", 0.0), ("cow", "DOG", 0.0), ("cat", "dog", 0.0)]
    assert found[3:6] == found[:3]
    assert {want for want, _, score in found[6:] if score == 100.0} <= {"cat", "dog", "cow"} and len(found[6:]) == 2
    assert [(row["expected"], row["answered"], row["count"]) for row in chosen.confusions] == [
        ("dog", "cow", 9),
        ("cow", "DOG", 5),
        ("cat", "dog", 3),
    ]
    # Before the last row is measured there are no answers: many classes all the same.
    early = asked(task, records, {})
    assert {item["answer"] for item in early.questions} == {"cat", "dog", "cow"} and early.confusions == []
    assert {item["score"] for item in early.questions} == {None}


def test_fault_f4_milliseconds_an_answer_and_megabytes_a_task():
    about = facts(("digits", "charts"), bytes_per_task={"digits": 1_000_000, "charts": 3_000_000})
    found = document(about=about, milliseconds_per_answer=12.5)
    assert found["milliseconds_per_answer"] == 12.5
    _, words = first_screen(shown(found))
    assert "n answer takes 12.5 ms" in words and "a task takes 2.0 MB on disk" in words
    assert "3.0 MB" in shown(found)
    _, words = first_screen(shown(document()))
    assert "n answer takes an unmeasured time" in words


def test_fault_f4_milliseconds_count_generated_answers_alone():
    from hidecmoe_jax.runs.seed_results import _milliseconds_per_answer

    cells = {
        0: {"digits": {"count": 10, "seconds": 9.0}},  # compiles
        1: {"digits": {"count": 10, "seconds": 2.0}, "charts": {"count": 10, "seconds": 0.1, "reused": 10}},
        2: {"digits": {"count": 10, "seconds": 1.5, "reused": 5}},
    }
    assert _milliseconds_per_answer(cells) == pytest.approx(300.0)
    assert _milliseconds_per_answer({}) is None


def test_fault_f4_milliseconds_leave_compilation_out_or_say_so():
    from hidecmoe_jax.runs.evaluation import _timed
    from hidecmoe_jax.runs.seed_results import _warm_milliseconds
    from hidecmoe_jax.runs.status import Status, Work

    # Two cells: the batches but the first one of each are timed, whatever was answered before in the process.
    status = Status()
    cells: dict = {0: {}}
    for name, batches in (("digits", [4, 4, 2]), ("charts", [4])):
        pace = Work()
        list(_timed([["answer"] * size for size in batches], status, pace))
        warm = 0.05 if pace.timed else None
        cells[0][name] = {"count": sum(batches), "seconds": 9.0, "warm": {"seconds": warm}}
        assert (pace.done, pace.timed) == (sum(batches), sum(batches[1:]))
    assert _warm_milliseconds(cells) == pytest.approx(50.0)
    assert _warm_milliseconds({0: {"charts": cells[0]["charts"]}}) is None
    _, words = first_screen(shown(document(milliseconds_per_answer=12.5)))
    assert "n answer takes 12.5 ms;" in words
    _, words = first_screen(shown(document(milliseconds_per_answer=900.0, answers_compiled=True)))
    assert "n answer takes 900.0 ms, compilation included;" in words


def test_fault_f4_tables_are_written_as_csv_and_latex_and_linked(tmp_path):
    tasks = ("digits_50%", "charts & bars")
    evil = "=cmd|' /C calc'!A0"
    about = facts(tasks, confusions={tasks[0]: [{"expected": "-7", "answered": evil, "count": 2}]})
    found = document([[0, 20], [85, None], [70, 90]], tasks, about)
    write_report(tmp_path, found, [])
    links = re.findall(r'href="([^"]+)"', (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"tables/scores.csv", "tables/scores.tex", "tables/headline.csv"} <= set(links)
    assert all((tmp_path / link).is_file() for link in links)
    rows = list(csv.reader(io.StringIO((tmp_path / "tables" / "scores.csv").read_text(encoding="utf-8"))))
    assert rows[0] == ["", *tasks] and rows[1] == ["zero-shot", "0.0", "20.0"] and rows[2][1:] == ["85.0", ""]
    latex = (tmp_path / "tables" / "scores.tex").read_text(encoding="utf-8")
    assert r"digits\_50\% & charts \& bars \\" in latex and r"zero-shot & 0.00 & 20.00 \\" in latex
    assert latex.count(r"\\") == 4 and r"after digits\_50\% & 85.00 & -- \\" in latex
    pairs = list(csv.reader(io.StringIO((tmp_path / "tables" / "confusions.csv").read_text(encoding="utf-8"))))
    assert pairs[1] == [tasks[0], "-7", f"'{evil}", "2"]
    assert json.loads((tmp_path / "report.json").read_text())["confusions"][tasks[0]][0]["answered"] == evil


def test_fault_f4_figures_are_svg_too_and_the_same_every_time():
    from hidecmoe_jax.report.canvas import images

    once = images({"outcome": outcome(document())})
    again = images({"outcome": outcome(document())})
    assert list(once) == ["outcome.png", "outcome.svg"] and once == again
    assert ElementTree.fromstring(once["outcome.svg"]).tag == "{http://www.w3.org/2000/svg}svg"
