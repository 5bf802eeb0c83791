"""What a report takes from a run folder: whom the gate chose, what a query costs, and where the time went."""

import json
from collections import Counter
from pathlib import Path

import pytest
from runs_world import make_world
from test_resume_stages import MIXTURE
from tiny import TINY

from hidecmoe_jax.methods.gates.anchors import NamedGate
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.runs.costs import flops_per_query
from hidecmoe_jax.runs.evaluation import confusion
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.results import rebuild, seed_result
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.session import open_base
from hidecmoe_jax.runs.stream_loop import learn

TASKS = ("birds", "fish")


@pytest.fixture(scope="module", params=["cmoe", "hide"])
def run(request, tmp_path_factory):
    """(name, folder, config, report) of two tasks learned; the mixture's gate knows some inputs for nobody's."""
    root = tmp_path_factory.mktemp(request.param)
    gate = MIXTURE["gate"] | {"foreign": 0.4}
    config = make_world(root, request.param, **(MIXTURE | {"gate": gate} if request.param == "cmoe" else {}))
    folder = learn(config, root / "run")
    return request.param, folder, config, json.loads((folder / "report.json").read_text())


def test_locator_confusion_counts_the_last_row_s_answers(run):
    name, folder, _, report = run
    found = report["locator_confusion"]
    assert found["tasks"] == list(TASKS) and found["columns"] == [*TASKS, "unknown"]
    for task, counts, shares in zip(TASKS, found["counts"], found["shares"], strict=True):
        lines = (folder / "seed_0" / "answers" / "row_002" / f"{task}.jsonl").read_text().splitlines()
        chosen = Counter()
        for line in lines:
            weights = json.loads(line)["weights"]
            loudest = max(weights.values())
            chosen["unknown" if loudest == 0 else min(t for t in weights if weights[t] == loudest)] += 1
        assert counts == [chosen[column] for column in found["columns"]]
        assert shares == pytest.approx([count / len(lines) for count in counts])
    assert report["seeds"]["per_seed"][0]["locator_confusion"] == found
    right = sum(found["counts"][task][task] for task in range(2))
    assert report["routing_accuracy"] == pytest.approx(100 * right / 8)


def test_a_report_says_of_no_file_where_it_lies(run):
    _, folder, config, _ = run
    pictures = [Path(item["image"]) for items in json.loads((folder / "facts.json").read_text())["asked"].values()
                for item in items]  # fmt: skip
    pictures[0].rename(pictures[0].with_suffix(".away"))
    rebuild(folder)
    pictures[0].with_suffix(".away").rename(pictures[0])
    reports = [path for path in folder.glob("report.*")] + list((folder / "tables").iterdir())
    page = (folder / "report.html").read_text()
    assert len(reports) > 3 and f"{pictures[0].name}: " in page
    for path in reports:
        assert str(Path(config.base.path).parent) not in path.read_text(), path


def test_locator_confusion_is_null_for_a_method_that_is_told_the_task(run):
    _, folder, _, _ = run
    lessons = [[task] for task in TASKS]
    assert seed_result(RunFolder(folder).seed(0), 0, TASKS, lessons).locator_confusion is not None
    assert seed_result(RunFolder(folder).seed(0), 0, TASKS, lessons, named=True).locator_confusion is None


def test_a_gate_that_knows_nobody_is_not_a_method_without_gate():
    cell = {"routed": {"birds": 3, "fish": 1}, "unknown": 0}
    lost = {"routed": None, "unknown": 4}
    assert confusion({"birds": cell, "fish": lost}, TASKS).tolist() == [[3, 1, 0], [0, 0, 4]]
    assert confusion({"birds": cell, "fish": {"routed": None, "unknown": 0}}, TASKS) is None
    assert confusion({"birds": cell}, TASKS) is None


def test_seconds_are_split_by_stage(run):
    name, folder, _, report = run
    kinds = ["probe", "weigh", "tune", "locate"] if name == "cmoe" else ["tune", "locate"]
    assert list(report["seconds"]) == ["learning", *(f"learning/{kind}" for kind in kinds), "evaluation"]
    metas = [Ledger(folder / "seed_0").meta(task) for task in range(2)]
    for kind in kinds:
        wanted = sum(meta["stages"].get(kind, 0.0) for meta in metas)
        assert report["seconds"][f"learning/{kind}"] == pytest.approx(wanted, abs=1e-2) and wanted > 0
    assert sum(report["seconds"][f"learning/{kind}"] for kind in kinds) <= report["seconds"]["learning"]
    page = (folder / "report.html").read_text()
    assert all(f"<th>– {kind}</th>" in page for kind in kinds)


def test_a_query_costs_what_it_hears_and_what_its_locator_reads(run):
    name, folder, config, report = run
    found, d = report["flops_per_query"], TINY.decoder
    assert found["total"] == found["forward_method"] + found["locator_prefill"]
    assert found["ratio"] == pytest.approx(found["total"] / found["forward_base"])
    assert found["pictures"] == 1 and found["tokens"] % config.evaluate.writing.bucket == 0
    t, extra = found["tokens"], found["forward_method"] - found["forward_base"]
    if name == "cmoe":  # capacity 4: slots 2 + 3 of rank 2 in each of 3 layers; the locator is 2 small networks
        width = 5 * 2
        products = 3 * t * (2 * d.width * (2 * width + 5) + width + d.width)
        assert extra == products + 2 * report["stored_parameters"]["locator"]
        assert 0.5 * found["forward_base"] < found["locator_prefill"] < found["forward_base"]
    else:  # one layer with 4 + 1 slots of rank 2 at a query and a down projection, but no second prefill
        assert config.method.lora.sites == ("q_proj", "down_proj")
        assert found["locator_prefill"] == 0 and extra > 2 * t * 10 * (2 * d.width + (d.width + d.hidden))
    assert "Work per query" in (folder / "report.html").read_text()


def test_methods_that_add_nothing_to_a_query_cost_what_the_model_costs(run):
    _, _, config, _ = run
    model, _ = open_base(config)
    for method in (Routed(growth="none"), Routed(growth="shared")):
        found = flops_per_query(method, model, method.init(model, 2), tokens=32)
        assert found["ratio"] == 1.0 and found["locator_prefill"] == 0
    named = Routed(expand="all", gate=NamedGate())
    assert flops_per_query(named, model, named.init(model, 2), tokens=32)["ratio"] == 1.0  # nothing learned yet


def test_the_last_row_is_the_one_that_is_counted(run):
    _, folder, _, report = run
    cells = Cells(folder / "seed_0" / "cells.json").read()
    assert [sum(row) for row in report["locator_confusion"]["counts"]] == [cells[2][task]["count"] for task in TASKS]
