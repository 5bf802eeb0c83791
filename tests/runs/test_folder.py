"""Layout of a run folder, and the number of task slots that every opener of a run takes."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.runs.folder import RunFolder, SeedFolder

PACKAGE = Path(__file__).parents[2] / "hidecmoe_jax"
NAMES = {"config.yaml", "run.json", "edits.json", "facts.json", "cells.json", "metrics.jsonl", "comparison.json"}


def test_paths_of_a_run_and_of_a_seed():
    run = RunFolder(Path("runs/mine"))
    seed = run.seed(3)
    assert seed == SeedFolder(Path("runs/mine/seed_3")) and seed.run == run
    assert run.study("control") == Path("runs/mine/control.json")
    assert seed.task(1, "birds") == Path("runs/mine/seed_3/tasks/001_birds")
    assert seed.answers(2, "birds", named=False) == Path("runs/mine/seed_3/answers/row_002/birds.jsonl")
    assert seed.answers(2, "birds", named=True) == Path("runs/mine/seed_3/answers/row_002/birds.named.jsonl")
    assert seed.variant("ties").cells == Path("runs/mine/seed_3/variants/ties/cells.json")
    assert seed.without(["birds", "fish"]).cells == Path("runs/mine/seed_3/without/birds_fish/cells.json")


def test_what_a_run_has_written_is_listed_with_its_identity_last(tmp_path):
    for name in ("run.json", "config.yaml", "seed_0", "report.html", "control.json", "notes.txt", "seed_x"):
        (tmp_path / name).touch()
    written = [path.name for path in RunFolder(tmp_path).written()]
    assert written == ["config.yaml", "control.json", "report.html", "seed_0", "run.json"]


def test_columns_are_the_answers_to_one_task_in_all_rows(tmp_path):
    seed = SeedFolder(tmp_path)
    for row, task, named in ((1, "birds", True), (1, "birds", False), (0, "birds", False), (1, "fish", False)):
        path = seed.answers(row, task, named=named)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [str(path.relative_to(tmp_path / "answers")) for path in seed.columns("birds")]
    assert found == ["row_000/birds.jsonl", "row_001/birds.jsonl", "row_001/birds.named.jsonl"]


@pytest.mark.parametrize(("tasks", "slots"), [(0, 8), (8, 8), (9, 16), (17, 32)])
def test_task_slots_double_until_every_lesson_has_one(tasks, slots):
    assert RunConfig(capacity=8).slots_for(tasks) == slots
    together = replace(RunConfig(capacity=1), method=Routed(growth="shared", union=True))
    assert together.slots_for(max(tasks, 1)) == 1  # all tasks are one lesson


def test_no_other_module_spells_a_file_name_of_a_run():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in ("runs", "studies", "port", "cli") and path.name != "folder.py":
            for node in ast.walk(ast.parse(path.read_text())):
                spelled = isinstance(node, ast.Constant) and node.value in NAMES
                assert not spelled, f"{path}:{node.lineno} spells {node.value!r}; runs/folder.py has a name for it"
                seeds = isinstance(node, ast.Constant) and str(node.value) in ("seed_", "row_")
                assert not seeds, f"{path}:{node.lineno} spells {node.value!r}"
