"""An audit as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hidecmoe_jax.core.errors import counted, shown_lines
from hidecmoe_jax.core.text_table import text_table
from hidecmoe_jax.data.overlap import overlap_lines
from hidecmoe_jax.report.audit_page import leaked_items, level_counts, verdict

_WIDTH = max(map(len, ("leak", "warning", "note")))


def audit_lines(document: Mapping[str, Any]) -> list[str]:
    """The result of `audit` as lines: tables, then findings, the gravest last, then the verdict."""
    lines = [*_task_lines(document), ""]
    if len(document["tasks"]) > 1:
        overlap = document["answer_overlap"]
        lines += [*overlap_lines(overlap["tasks"], overlap["shares"]), ""]
    if document["runs"]:
        lines += [*_run_lines(document["runs"]), ""]
    if document["mix"] is not None:
        lines += [*_mix_lines(document["mix"]), ""]
    # The end of a long output is what a terminal shows.
    for level in ("note", "warning", "leak"):
        texts = [row["text"] for row in document["findings"] if row["level"] == level]
        lines += [f"{level.ljust(_WIDTH)} {text}" for text in shown_lines(texts)]
    counts = level_counts(document)
    numbers = [counted(leaked_items(document), "leaked test item"), counted(counts["warning"], "warning")]
    return [*lines, f"{verdict(counts)}: {', '.join(numbers)}"]


def _task_lines(document: Mapping[str, Any]) -> list[str]:
    """Sizes, leaks, and what the text gives away, a row a task."""
    lines = [
        f"{document['questions']} questions, {document['pictures']} different pictures",
        "leaked: test items that were trained on; picture, text: others with a trained picture or distinctive text",
        "constant, question, words: percent of test answers that are right without the picture, by the most frequent",
        "training answer, by that of the same question, and by a classifier of words",
    ]
    rows = [["task", "train", "val", "test", "leaked", "picture", "text", "constant", "question", "words"]]
    for task, text in zip(document["tasks"], document["from_text"], strict=True):
        numbers = [task[key] for key in ("train", "val", "test", "leaks", "pictures_trained", "texts_trained")]
        shares = [f"{text[key]:.1f}" for key in ("constant", "by_question", "words")]
        rows.append([task["task"], *map(str, numbers), *shares])
    return lines + text_table(rows)


def _run_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["run", "last", "steps", "stored", "trained", "seeds", "replayed", "scored on", "answers ~ scores"]]
    for run in runs:
        correlation = (run["correlation"] or {}).get("scores")
        numbers = [_number(run[key]) for key in ("steps", "stored", "trained", "seeds", "replayed")]
        rows.append([run["label"], _score(run["last"]), *numbers, run["split"], _score(correlation)])
    return text_table(rows)


def _mix_lines(mix: Mapping[str, Any]) -> list[str]:
    rows = [["test items in the mix", "items", "file name", "question", "with answer"]]
    for row in mix["rows"]:
        rows.append([row["task"], *(str(row[key]) for key in ("items", "names", "questions", "answered"))])
    title = f"instruction mix {mix['name']}: {mix['questions']} questions, {mix['pictures']} pictures"
    return [title, *text_table(rows)]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
