"""Gates of a new task: what the file may say, what is measured, and that a task that does not pass leaves no trace."""

import pytest
from tiny import write_task

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.runs import gates
from hidecmoe_jax.runs.gates import GateResult, read_gates


def written(root, text: str, **options):
    path = root / "gates.yaml"
    path.write_text(text)
    return read_gates(path, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "there is no gate"),
        ("new_task: {at_lest: 3}", "did you mean 'at_least'"),
        ("new_task: {at_least: high}", "expected a number"),
        ("old_tasks: {may_lose: -1}", "0 or more"),
        ("sets: [{folder: birds}]", "may_lose, at_least, or both"),
    ],
)
def test_a_file_of_gates_is_read_strictly(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        written(tmp_path, text)


def test_sets_are_of_a_task_and_only_old_ones_can_lose(tmp_path):
    root = tmp_path
    for name in ("fish", "trees"):
        write_task(root / name, "a carp", train=1, test=1)
    with pytest.raises(ConfigError, match="it is of 'fish'"):
        written(root, "sets: [{folder: fish, at_least: 1}]").open_sets(["birds", "trees"])
    with pytest.raises(ConfigError, match="no score before"):
        written(root, "sets: [{folder: trees, may_lose: 1}]").open_sets(["birds", "trees"])


@pytest.mark.parametrize(
    ("value", "rule", "limit", "passed"),
    [(2.0, "at most", 2.0, True), (2.01, "at most", 2.0, False), (-5.0, "at most", 0.0, True),
     (80.0, "at least", 80.0, True), (79.9, "at least", 80.0, False), (None, "at least", 0.0, False)],
)  # fmt: skip
def test_a_limit_itself_is_kept_and_what_was_not_measured_passes_nothing(value, rule, limit, passed):
    assert GateResult("birds", None, None, value, rule, limit).passed is passed


def test_the_table_shows_every_gate_with_its_value_and_limit():
    lines = gates.gate_lines([GateResult("birds", 90.0, 85.5, 4.5, "at most", 2.0)])
    assert lines[1].split() == ["birds", "90.0", "85.5", "falls", "4.5", "at", "most", "2", "NOT", "PASSED"]
