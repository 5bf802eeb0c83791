"""Continual metrics against published tables, hand-made matrices, and the rule that a missing cell is never
averaged away."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from staged import staged_matrix

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.scoring.matrix import METRICS, mean_and_spread, mean_matrix, summary


def from_rows(own, final):
    """Only the diagonal and the last row are known, as in most published tables."""
    tasks = len(own)
    matrix = [[None] * tasks for _ in range(tasks + 1)]
    for task, value in enumerate(own):
        matrix[task + 1][task] = value
    matrix[tasks] = list(final)
    return matrix


def test_fixture_1_disco_on_ucit():
    final = [87.43, 93.07, 46.96, 68.13, 65.70, 56.69]
    own = [(6 * 75.87 - final[-1]) / 5] * 5 + [final[-1]]
    result = summary(from_rows(own, final))
    assert result["last"] == pytest.approx(69.66, abs=0.005)
    assert result["mft"] == pytest.approx(75.87)
    assert result["bwt_t_minus_1"] == pytest.approx(-7.45, abs=0.006)


def test_cmoe_6_fixture_3_bwt_of_coin_lora():
    own = [82.45, 49.99, 96.05, 56.40, 55.45, 31.27, 62.20, 57.08]
    final = [21.26, 28.74, 10.25, 36.78, 32.45, 0.83, 42.50, 57.08]
    result = summary(from_rows(own, final))
    assert result["bwt_t"] == pytest.approx(-261.00 / 8) == pytest.approx(-32.62, abs=0.006)
    assert result["bwt_t_minus_1"] == pytest.approx(-37.29, abs=0.005)


def test_cmoe_6_fixture_4_bwt_of_coin_moelora():
    own = [75.78, 51.73, 96.70, 59.42, 58.88, 37.50, 64.22, 60.08]
    final = [63.09, 38.63, 10.50, 37.38, 43.62, 0.59, 43.15, 60.08]
    assert summary(from_rows(own, final))["bwt_t"] == pytest.approx(-25.91, abs=0.005)


@pytest.mark.parametrize(
    "final, mft, last, bwt",
    [
        ([69.65, 41.59, 25.43, 40.88, 87.45], 64.98, 53.00, -14.97),
        ([74.64, 44.42, 30.02, 41.47, 87.15], 65.16, 55.54, -12.03),
        ([77.54, 41.85, 27.62, 40.13, 86.75], 64.94, 54.78, -12.70),
        ([71.34, 46.84, 26.33, 41.17, 88.74], 66.06, 54.88, -13.96),
        ([74.31, 48.95, 33.21, 38.54, 81.55], 60.77, 55.31, -6.82),
        ([77.26, 50.37, 37.21, 40.87, 86.82], 65.01, 58.51, -8.13),
        ([76.03, 45.20, 43.79, 42.33, 88.95], 64.43, 59.26, -6.46),
        ([85.68, 69.74, 57.73, 61.55, 95.28], 74.29, 74.00, -0.37),
    ],
)
def test_fixture_5_mllm_dcl(final, mft, last, bwt):
    own = [(5 * mft - final[-1]) / 4] * 4 + [final[-1]]
    result = summary(from_rows(own, final))
    assert result["last"] == pytest.approx(last, abs=0.006)
    assert result["mft"] == pytest.approx(mft)
    assert result["bwt_t_minus_1"] == pytest.approx(bwt, abs=0.016)
    assert result["bwt_t"] == pytest.approx(result["last"] - result["mft"])


@pytest.mark.parametrize(
    "final, mean",
    [
        ([91.67, 90.83, 57.87, 78.43, 76.63, 61.72], 76.19),
        ([65.77, 71.27, 45.05, 51.20, 49.60, 57.47], 56.73),
        ([23.5, 73.37, 47.35, 51.83, 63.57, 58.17], 52.97),
    ],
)
def test_fixture_6_ucit_means(final, mean):
    matrix = [[None] * 6 for _ in range(6)] + [final]
    assert summary(matrix)["last"] == pytest.approx(mean, abs=0.006)


FULL = [[10, 20, 30], [80, 25, 31], [60, 90, 35], [50, 95, 70]]


def test_every_metric_by_hand():
    result = summary(FULL)
    assert result["missing"] == {}
    assert result["last"] == pytest.approx((50 + 95 + 70) / 3)
    assert result["avg"] == pytest.approx(((80 + 60 + 50) / 3 + (90 + 95) / 2 + 70) / 3)
    assert result["maa"] == pytest.approx((80 + (60 + 90) / 2 + (50 + 95 + 70) / 3) / 3)
    assert result["mft"] == pytest.approx((80 + 90 + 70) / 3)
    assert result["bwt_t_minus_1"] == pytest.approx((-30 + 5) / 2)
    assert result["bwt_t"] == pytest.approx((-30 + 5) / 3)
    assert result["forgetting"] == pytest.approx(((80 - 50) + (90 - 95)) / 2)
    assert result["fwt"] == pytest.approx(((25 - 20) + (35 - 30)) / 2)


def test_forgetting_takes_the_best_stage_not_the_first():
    matrix = [[0, 0, 0], [70, 0, 0], [90, 50, 0], [60, 50, 50]]
    assert summary(matrix)["forgetting"] == pytest.approx((30 + 0) / 2)
    assert summary(matrix)["bwt_t_minus_1"] == pytest.approx((-10 + 0) / 2)


NEEDS = {
    "last": {(3, 1), (3, 2), (3, 3)},
    "avg": {(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)},
    "mft": {(1, 1), (2, 2), (3, 3)},
    "bwt_t_minus_1": {(1, 1), (2, 2), (3, 1), (3, 2)},
    "bwt_t": {(1, 1), (2, 2), (3, 1), (3, 2), (3, 3)},
    "forgetting": {(1, 1), (2, 1), (2, 2), (3, 1), (3, 2)},
    "fwt": {(0, 2), (1, 2), (0, 3), (2, 3)},
}
NEEDS["maa"] = NEEDS["avg"]


@pytest.mark.parametrize("absent", [None, math.nan, np.float32("nan").item()])
@pytest.mark.parametrize("stage, task", [(k, i) for k in range(4) for i in (1, 2, 3)])
def test_a_missing_cell_empties_exactly_the_metrics_that_need_it(stage, task, absent):
    matrix = [list(row) for row in FULL]
    matrix[stage][task - 1] = absent
    result, whole = summary(matrix), summary(FULL)
    for name in METRICS:
        if (stage, task) in NEEDS[name]:
            assert result[name] is None and result["missing"][name] == [f"R[{stage},{task}]"]
        else:
            assert result[name] == whole[name] and name not in result["missing"]


def test_joint_has_only_a_last_row():
    result = summary([[None] * 3, [None] * 3, [None] * 3, [60.0, 70.0, 80.0]])
    assert result["last"] == 70 and set(result["missing"]) == set(METRICS) - {"last"}
    assert result["missing"]["fwt"] == ["R[0,2]", "R[0,3]", "R[1,2]", "R[2,3]"]


def test_zero_shot_has_a_single_row():
    result = summary([[10.0, 20.0, 30.0]])
    assert result["last"] == 20 and set(result["missing"]) == set(METRICS) - {"last"}


def test_one_task_leaves_metrics_between_tasks_undefined():
    result = summary([[5.0], [80.0]])
    assert (result["last"], result["avg"], result["maa"], result["mft"], result["bwt_t"]) == (80, 80, 80, 80, 0)
    assert result["missing"] == {name: ["at least two tasks"] for name in ("bwt_t_minus_1", "forgetting", "fwt")}


@pytest.mark.parametrize("matrix", [[], [[]], [[1, 2], [1]], [[1, 2], [1, 2]], [[1]] * 3])
def test_misshapen_matrices_are_refused(matrix):
    with pytest.raises(DataError, match="score matrix"):
        summary(matrix)


@given(
    st.integers(2, 6).flatmap(
        lambda tasks: st.lists(
            st.lists(st.floats(0, 100), min_size=tasks, max_size=tasks), min_size=tasks + 1, max_size=tasks + 1
        )
    )
)
def test_identities_hold_for_any_matrix(matrix):
    result, tasks = summary(matrix), len(matrix[0])
    assert result["bwt_t"] == pytest.approx(result["last"] - result["mft"], abs=1e-9)
    assert result["bwt_t_minus_1"] * (tasks - 1) == pytest.approx(result["bwt_t"] * tasks, abs=1e-9)
    assert result["forgetting"] >= -result["bwt_t_minus_1"] - 1e-9
    cells = np.array(matrix)[1:]
    running = [cells[k, : k + 1].mean() for k in range(tasks)]
    assert result["maa"] == pytest.approx(np.mean(running), abs=1e-9)
    assert result["avg"] == pytest.approx(np.mean([cells[i:, i].mean() for i in range(tasks)]), abs=1e-9)


def test_mean_and_spread_over_seeds():
    rows = [
        {"last": 60.0, "fwt": None, "name": "a"},
        {"last": 62.0, "fwt": 1.0, "name": "b"},
        {"last": 67.0, "fwt": 2.0, "name": "c"},
    ]
    spread = mean_and_spread(rows)
    assert spread["last"] == {"mean": 63.0, "std": pytest.approx(np.std([60, 62, 67], ddof=1)), "n": 3}
    assert spread["fwt"] == {"mean": None, "std": None, "n": 3} and "name" not in spread
    assert mean_and_spread(rows[:1])["last"] == {"mean": 60.0, "std": None, "n": 1}
    with pytest.raises(DataError, match="different numbers"):
        mean_and_spread([{"a": 1}, {"b": 1}])


def test_seeds_are_averaged_cell_by_cell_and_only_where_all_measured():
    assert mean_matrix([[[1.0, None]], [[3.0, 5.0]]]) == [[2.0, None]]
    with pytest.raises(DataError, match="different shapes"):
        mean_matrix([[[1.0]], [[1.0, 2.0]]])


def test_a_matrix_is_staged_from_scores_and_points_of_the_final_model():
    scores = [np.array([[3.0, 1.0, 9.0], [2.0, 5.0, 1.0]]), np.array([[4.0, 2.0, 3.0]]), np.array([[0.0, 1.0, 2.0]])]
    points = [np.array([[100.0, 0.0, 10.0], [80.0, 20.0, 0.0]]), np.array([[30.0, 70.0, 0.0]]), np.array([[1.0, 2, 3]])]
    # Task 1: its two items go to tasks (1, 1), (1, 2), then (3, 2); task 2: always to 1; task 3: to 1, 2, 3.
    assert staged_matrix(scores, points) == [[90.0, 30.0, 1.0], [60.0, 30.0, 2.0], [15.0, 30.0, 3.0]]
