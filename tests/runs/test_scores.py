"""Scores and curves as files: cells are added and forgotten, lines of steps that are done again are taken back."""

import json

from hidecmoe_jax.runs.evaluation import read_answers
from hidecmoe_jax.runs.scores import Cells, Curve


def test_cells_are_kept_by_row_and_task(tmp_path):
    cells = Cells(tmp_path / "cells.json")
    assert cells.read() == {}
    for row, task in ((0, "birds"), (2, "birds"), (2, "fish"), (1, "fish"), (1, "fish (named)"), (1, "birds")):
        cells.write(row, task, {"score": row})
    assert list(cells.read()) == [0, 1, 2] and set(cells.read()[2]) == {"birds", "fish"}
    cells.forget(2, "fish")
    assert cells.read() == {0: {"birds": {"score": 0}}, 1: {"birds": {"score": 1}}}


def curve(path, *steps) -> Curve:
    found = Curve(path)
    for at in steps:
        found.add({"at": list(at), "loss": 0.5})
    return found


def test_rows_stand_in_the_order_of_their_numbers(tmp_path):
    cells = Cells(tmp_path / "cells.json")
    for row in (10, 2, 0):
        cells.write(row, "birds", {"score": 1.0})
    assert list(json.loads(cells.path.read_text())) == ["0", "2", "10"]


def test_lines_reach_the_disk_with_a_flush(tmp_path):
    found = curve(tmp_path / "metrics.jsonl", (0, 0, 0), (0, 0, 1))
    assert found.read() == []
    found.flush()
    found.flush()
    assert [line["at"] for line in found.read()] == [[0, 0, 0], [0, 0, 1]]


def test_steps_that_are_done_again_are_not_told_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curve(path, (0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1), (1, 0, 2)).flush()
    with open(path, "a") as file:
        file.write('{"at": [1, 0, 3], "lo')
    again = curve(path, (9, 9, 9))
    again.rewind((1, 0, 1))
    again.add({"at": [1, 0, 1]})
    again.flush()
    assert [line["at"] for line in Curve(path).read()] == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]


def test_a_torn_answer_is_left_out(tmp_path):
    path = tmp_path / "answers.jsonl"
    assert read_answers(path) == []
    path.write_text('{"question_id": "a", "text": "one\u2028two"}\n{"question_id": "b", "te', encoding="utf-8")
    assert [line["question_id"] for line in read_answers(path)] == ["a"]
