"""What a terminal shows: the outcome of a run, progress of a batch job, and messages that lead on."""

import pytest

from hidecmoe_jax.report import RunFacts, SeedResult, run_document
from hidecmoe_jax.report.verdict import POCKET_NOTE, verdict_lines, verdict_of
from hidecmoe_jax.scoring.floor import floor_of

TASKS = ("animals", "doubt", "signs")


def document_of(matrix, *, floors=(12.5, 50.0, 25.0), curves=None, base="pocket", lessons=None):
    """The document of a run over three tasks."""
    named = {task: {"answer": "a cat", "score": floor} for task, floor in zip(TASKS, floors, strict=True)}
    taught = [[task] for task in TASKS] if lessons is None else lessons
    facts = RunFacts(
        "hide", TASKS, ("exact",) * 3, floors=named, lessons=taught, settings={"base": {"path": base}},
    )  # fmt: skip
    falling = [(step, 3.0 - 0.02 * step) for step in range(100)]
    curves = dict.fromkeys(TASKS, falling) | (curves or {})
    return run_document(facts, [SeedResult(seed=0, matrix=matrix, curves=curves)])


def test_fault_b1_a_run_that_learned_nothing_is_not_told_as_a_success():
    matrix = [[0.0, 31.0, 5.0], [0.0, 31.0, 5.0], [0.0, 32.5, 5.0], [0.0, 32.5, 80.0]]
    flat = [(step, 2.0 + 0.001 * (step % 3)) for step in range(60)]
    verdict = verdict_of(document_of(matrix, curves={"animals": flat}))
    assert [task.outcome for task in verdict.tasks] == ["not learned", "not learned", "learned"]
    assert verdict.summary == "1 of 3 tasks learned, 2 not learned"
    animals, doubt, signs = verdict.tasks
    assert any("no better than a constant" in text and "12.5" in text for text in animals.warnings)
    assert any("not fallen" in text and "60 steps" in text for text in animals.warnings)
    assert len(doubt.warnings) == 1 and "50.0" in doubt.warnings[0]
    assert not signs.warnings and (signs.first_loss, signs.last_loss) == pytest.approx((2.81, 1.21))
    lines = verdict_lines(verdict)
    assert lines[0].split() == ["task", "zero-shot", "learned", "now", "floor", "outcome"]
    assert lines[1].split() == ["animals", "0.0", "0.0", "0.0", "12.5", "not", "learned"]
    assert lines[3].split() == ["signs", "5.0", "80.0", "80.0", "25.0", "learned"]
    assert sum(line.startswith("warning: ") for line in lines) == 3
    assert lines[-1] == f"note: {POCKET_NOTE}" and "photographs" in POCKET_NOTE


def test_fault_b1_forgotten_is_not_the_same_as_never_learned():
    matrix = [[0.0, 0.0, 0.0], [90.0, 0.0, 0.0], [50.0, 90.0, 0.0], [10.0, 90.0, 90.0]]
    verdict = verdict_of(document_of(matrix, base="bases/llava"))
    assert verdict.summary == "2 of 3 tasks learned, 1 forgotten"
    assert "90.0 right after learning" in verdict.tasks[0].warnings[0]
    assert not verdict.notes, "another base than the pocket one"


def test_fault_b1_missing_numbers_are_neither_praised_nor_blamed():
    unmeasured = [[0.0] * 3, [None] * 3, [None] * 3, [None] * 3]
    verdict = verdict_of(document_of(unmeasured))
    assert {task.outcome for task in verdict.tasks} == {"not judged"}
    assert not verdict.doubtful
    old = document_of([[0.0] * 3, [9.0] * 3, [9.0] * 3, [9.0] * 3])
    del old["floors"], old["lessons"]
    assert {task.outcome for task in verdict_of(old).tasks} == {"not judged"}, "a report of an earlier version"
    joint = document_of([[0.0] * 3, [None] * 3, [None] * 3, [60.0] * 3], lessons=[list(TASKS)], curves={"joint": []})
    assert {task.learned for task in verdict_of(joint).tasks} == {60.0}
    untaught = verdict_of(document_of([[0.0] * 3], lessons=[]))
    assert [task.now for task in untaught.tasks] == [0.0] * 3 and not untaught.doubtful


@pytest.mark.parametrize(
    ("scorer", "references", "answer", "value"),
    [
        ("exact", {"1": ("yes",), "2": ("no",), "3": ("Yes",), "4": ("yes",)}, "yes", 75.0),
        ("choice", {"1": ("B",), "2": ("A",), "3": ("(A)",), "4": ("B.",), "5": ("B",)}, "B", 60.0),
        ("number", {"1": ("3",), "2": ("3.0",), "3": ("4",)}, "3", 200 / 3),
        ("exact", {"1": ("a wren", "wren"), "2": ("wren",), "3": ("a wren",)}, "a wren", 200 / 3),
        ("iou", {"1": ("[0,0,1,1]",), "2": ("[0,0,0.9,1]",)}, "[0,0,1,1]", 100.0),
    ],
)
def test_fault_b1_the_floor_is_scored_by_the_tasks_own_scorer(scorer, references, answer, value):
    floor = floor_of(scorer, references)
    assert (floor.answer, floor.score) == (answer, pytest.approx(value))
