"""The bench of twenty ratios: goals and table, and every part at the smallest size."""

import numpy as np
import pytest


def measured(bench, part: str) -> dict:
    return bench("ratios").measure_part(part, "smallest", "cpu")["rows"]


def test_the_table_has_twenty_rows_and_leaves_empty_what_was_not_measured(bench):
    rows = bench("ratio_rows")
    assert [row.number for row in rows.ROWS] == list(range(1, 21))
    known = set(bench("ratios").PARTS)
    assert {rows.part_of(row, kind) for row in rows.ROWS for kind in ("cpu", "gpu")} - {""} <= known
    text = rows.table({"here": ("cpu", {"1": {"FLOPs / ideal": 1.5}, "2": {"FLOPs": 1.5}}), "there": ("gpu", {})})
    lines = text.splitlines()
    assert len(lines) == 2 + 20
    assert lines[2].endswith("| FLOPs / ideal 1.5 missed |  |")
    assert lines[3].endswith("| FLOPs 1.5 met |  |")
    assert all(line.endswith("|  |  |") for line in lines[4:])


def test_the_bank_is_two_products_and_equals_a_loop_and_other_ways(bench):
    row = measured(bench, "bank")["7"]
    assert (row["products of the bank"], row["products of the loop"]) == (2, 16)
    assert max(row["prefill apart"], row["decode apart"]) < 1e-5
    ways = measured(bench, "paths")["8"]
    assert ways["apart"] < 1e-5
    experts = bench("ratio_experts")
    # One token a sample and few experts: the bank reads least. Many long samples and many experts: a sort pays.
    assert experts.cost_of("bank", (4, 8, 1, 2), 4096, 8) < experts.cost_of("gather", (4, 8, 1, 2), 4096, 8)
    assert experts.cost_of("ragged", (16, 32, 640, 1), 4096, 8) < experts.cost_of("bank", (16, 32, 640, 1), 4096, 8)


def test_a_stored_result_keeps_the_rows_that_were_not_measured_again(bench, tmp_path):
    ratios = bench("ratios")
    out = tmp_path / "ratios_cpu.json"
    ratios.save(out, ("cpu", "cpu"), "toy", {"2": {"FLOPs": 1.5}}, [{"part": "training"}])
    ratios.save(out, ("cpu", "cpu"), "toy", {"1": {"FLOPs": 2.0}}, [{"part": "bank"}])
    ((title, (kind, rows)), (other, (_, nothing))) = ratios.results_of(tmp_path).items()
    assert title.startswith("cpu, 20") and kind == "cpu"
    assert rows == {"1": {"FLOPs": 2.0}, "2": {"FLOPs": 1.5}}
    assert "tools/bench/ratios.py" in other and nothing == {}


def test_a_part_that_fails_or_takes_too_long_says_so(bench, monkeypatch):
    ratios = bench("ratios")
    monkeypatch.setitem(ratios.PARTS, "bank", ("no_such_module", "bank", 1, 1))
    assert ratios.run_part("bank", "smallest", "cpu", 0.01)["failed"] == "not finished after 0 s"


def test_formulas_of_the_7b_shapes_are_those_of_the_published_arithmetic(bench):
    peers = bench("ratio_peers")
    size = bench("ratio_work").size_of("7b")
    # A step of LoRA of rank 64 on 704 tokens, without recomputation, takes 20.0 TFLOP a sample.
    assert peers.useful_operations(size) == pytest.approx(20.0e12, rel=0.02)
    # 640 tokens with their picture take 8.80 TFLOP; a decoded token reads 13.2 GB of weights and 0.336 GB of cache.
    weights, cache = peers.read_bytes(size)
    assert (weights, cache) == (pytest.approx(13.2e9, rel=0.01), pytest.approx(0.336e9, rel=0.01))
    run = {"flops": 788e12, "bytes": 4.3e12}
    assert peers.roofline(size, 60.0, 64, run)["limit"] == pytest.approx(85.7, rel=0.02)
    assert peers.roofline(size, 60.0, 8, run)["limit"] == pytest.approx(76.8, rel=0.02)


@pytest.mark.slow  # test_generation.py and test_assistant.py compare batches with single questions
def test_answers_of_a_batch_are_those_of_one_question(bench):
    peers = bench("ratio_peers")
    work = bench("ratio_work")
    size = work.size_of("smallest")
    routing = peers.routed(work.drawn_model(size.config))
    tokens = work.drawn_tokens(size, 4, size.prompt)
    pixels = work.drawn_pixels(size.config, 4)
    together, single = (peers.answerer(routing, tokens, pixels, batch=batch, written=3)() for batch in (4, 1))
    np.testing.assert_array_equal(together, single)
    assert len({tuple(text) for text in single.tolist()}) > 1, "equal answers to all questions show nothing"


@pytest.mark.slow
def test_peers_give_the_same_answers_and_losses(bench):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    row = measured(bench, "answers")["9"]
    assert set(row["equal by batch"].values()) == {1.0}
    assert row["answers that experts change"] > 0.5
    losses = measured(bench, "peft")["4"]["first losses"]
    assert losses["ours"] == pytest.approx(losses["PEFT"], rel=1e-4)


@pytest.mark.slow
def test_whole_runs_and_meshes_at_the_smallest_size(bench):
    ratios = bench("ratios")
    gathered = ratios.run_part("mesh", "smallest", "cpu", 900)["rows"]["14"]
    assert gathered["gathered"] == 2.0
    assert (gathered["base reduced"], gathered["gathered when replicated"]) == (0, 0)
    assert 0 < measured(bench, "lengths")["17"]["tokens"] <= 1
    rows = measured(bench, "stream")
    assert rows["12"]["compiled by the second start"] == 0
    assert 0 < rows["20"]["share"] < 1


@pytest.mark.slow
def test_every_other_part_runs_at_the_smallest_size(bench):
    found = measured(bench, "training") | measured(bench, "routing") | measured(bench, "memory")
    found |= measured(bench, "compile") | measured(bench, "int8")
    assert set(found) == {"1", "2", "5", "6", "13", "15", "16", "18", "19"}
    first = found["18"]["first losses"]
    assert first["int8"] == pytest.approx(first["plain"], abs=0.01)
    # Gradients of all weights cost three forward passes, those of experts two and a little.
    assert 2.0 < found["1"]["FLOPs"] < found["1"]["FLOPs"] * found["2"]["FLOPs"] < 3.1
    assert found["1"]["FLOPs / ideal"] == pytest.approx(1.0, abs=0.03)
    assert found["15"]["bytes"] <= 0.5
    assert found["13"]["apart"] < 1e-5
