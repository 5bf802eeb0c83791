"""Rows that fill a batch, and what an answer says of its routing."""

import numpy as np
import pytest

from hidecmoe_jax.evaluate.answer import Answer, Finding
from hidecmoe_jax.evaluate.engine import batch_rows


@pytest.mark.parametrize(("count", "start", "batch"), [(5, 0, 4), (5, 4, 4), (9, 6, 6), (4, 0, 4)])
def test_a_batch_is_filled_with_its_last_row(count, start, batch):
    rows, filled = batch_rows(count, start, batch)
    expected = list(range(start, min(start + batch, count)))
    assert rows.tolist() == expected and rows.dtype == filled.dtype == np.int32
    assert filled.tolist() == expected + [expected[-1]] * (batch - len(expected))


def answer(**changes) -> Answer:
    return Answer(
        "a", "text", (0.2, 0.7, 0.1), (1.0, 2.0, 0.5), ended=True, tasks=("birds", "fish", "trees"), **changes
    )


def finding(threshold: float | None, unknown: bool) -> Finding:
    return Finding(1, 2.0, threshold, 0.1, 1.0, unknown, tied=False)


def test_the_largest_weight_comes_first():
    assert list(answer().routing.items()) == [("fish", 0.7), ("birds", 0.2), ("trees", 0.1)]
    assert answer().task == "fish" and answer().choice == 1
    silent = Answer("a", "", (0.0, 0.0), (), ended=True, tasks=("birds", "fish"))
    assert silent.task is None


def test_known_is_said_only_where_something_judged_it():
    assert answer().known is None
    assert answer(finding=finding(None, False)).known is None
    assert answer(finding=finding(None, True)).known is False
    assert answer(finding=finding(1.0, False)).known is True
    assert answer(finding=finding(3.0, True)).known is False
