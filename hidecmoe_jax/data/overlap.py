"""Overlap of answers between tasks: which share of a task's test answers another task's training data teaches too.

Where tasks share answers, an old score can rise again while a later task is learned, and forgetting looks smaller than
it is (Gao et al., UCo-VQA, CVPR 2026).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from hidecmoe_jax.core.text_table import text_table
from hidecmoe_jax.data.stream import Task


def folded_text(text: str) -> str:
    """Returns a text without differences of case, width, punctuation and blanks."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = [letter if letter.isalnum() else " " for letter in folded]
    words = "".join(spaced).split()
    # A text of signs alone, such as "+", keeps them.
    return " ".join(words) or " ".join(folded.split())


def answer_overlap(tasks: Sequence[Task]) -> list[list[float]]:
    """Returns [T][T] shares, 0 to 1: of test items of the row's task with an answer that the column's training has."""
    trained = []
    for task in tasks:
        answers = {folded_text(turn.answer) for record in task.train for turn in record.turns}
        trained.append(answers)
    rows = []
    for task in tasks:
        references = []
        for record in task.test:
            references.append({folded_text(reference) for reference in record.references})
        rows.append([_share(references, answers) for answers in trained])
    return rows


def overlap_lines(names: Sequence[str], shares: Sequence[Sequence[float]]) -> list[str]:
    """The matrix of `answer_overlap` in percent, as lines."""
    rows = [["test \\ train", *names]]
    for name, of_task in zip(names, shares, strict=True):
        rows.append([name, *(f"{100 * share:.0f}" for share in of_task)])
    title = "test answers of a task (row) that training data of a task (column) has too, in percent"
    return [title, *text_table(rows)]


def _share(references: Sequence[set[str]], answers: set[str]) -> float:
    """Share of items with a reference among `answers`."""
    hits = [not answers.isdisjoint(accepted) for accepted in references]
    return sum(hits) / len(hits)
