"""Tables of a report as plain values, and as the text of CSV and LaTeX files.

A cell that was not measured is empty in CSV and a dash in LaTeX; a value of 0 is `0`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hidecmoe_jax.report.document import PARTS
from hidecmoe_jax.report.rewordings import reading_rows, wording_rows
from hidecmoe_jax.report.verdict import verdict_of
from hidecmoe_jax.report.wording import FLOPS

Document = Mapping[str, Any]
Cell = str | int | float | None

# What LaTeX would take for a command.
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class Table:
    """A table; `name` is that of its files without suffix. The first column holds names."""

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def run_tables(document: Document) -> list[Table]:
    """Tables of one method; those without data are left out."""
    tables = [_tasks(document), _matrix(document, "matrix", "scores")]
    if document["named_task_matrix"]:
        tables.append(_matrix(document, "named_task_matrix", "named_task_scores"))
    if document["unparsed"]:
        tables.append(_matrix(document, "unparsed", "unparsed"))
    located = document.get("locator_confusion")
    if located:
        rows = [(task, *counts) for task, counts in zip(located["tasks"], located["counts"], strict=True)]
        tables.append(Table("routing", ("task", *located["columns"]), tuple(rows)))
    if document["fusion_modes"]:
        tables.append(_fusion(document))
    rows = [(name, *values, mean, unknown) for name, values, mean, unknown in wording_rows(document)]
    if rows:
        header = ("wording", *document["wording"]["tasks"], "mean", "called unknown")
        tables.append(Table("wording", header, tuple(rows)))
    rows = []
    for task, pairs in (document.get("confusions") or {}).items():
        rows += [(task, pair["expected"], pair["answered"], pair["count"]) for pair in pairs]
    if rows:
        tables.append(Table("confusions", ("task", "expected", "answered", "count"), tuple(rows)))
    return tables


def common_tables(methods: Sequence[Document]) -> list[Table]:
    """Tables with a column or rows for every method; a single run is one method."""
    tables = [_headline(methods), _parameters(methods), _added(methods), _seconds(methods)]
    counted = [method for method in methods if method.get("flops_per_query")]
    if counted:
        rows = []
        for key, name in FLOPS:
            rows.append((name, *[method["flops_per_query"][key] for method in counted]))
        labels = [method["label"] for method in counted]
        tables.append(Table("operations", ("operations a query", *labels), tuple(rows)))
    return tables


def _tasks(document: Document) -> Table:
    """Scores of every task before, right after its lesson and now, and the floor."""
    header = ("task", "scorer", "zero-shot", "right after learning", "now", "most frequent answer")
    rows = []
    for task in verdict_of(document).tasks:
        scorer = document["scorers"][task.task]
        rows.append((task.task, scorer, task.zero_shot, task.learned, task.now, task.floor))
    return Table("tasks", header, tuple(rows))


def _matrix(document: Document, key: str, name: str) -> Table:
    """A table of the document with a row for zero-shot and one after every task."""
    tasks = document["tasks"]
    names = ["zero-shot", *[f"after {task}" for task in tasks]]
    rows = []
    for row_name, values in zip(names, document[key], strict=False):
        rows.append((row_name, *values))
    return Table(name, ("", *tasks), tuple(rows))


def _fusion(document: Document) -> Table:
    rows = []
    for mode, result in document["fusion_modes"].items():
        rows.append((mode, *result["scores"], result["last"]))
    return Table("fusion_rules", ("fusion rule", *document["tasks"], "mean"), tuple(rows))


def _headline(methods: Sequence[Document]) -> Table:
    """Every metric: mean over seeds and standard deviation, two columns a method."""
    header = ["metric"]
    for method in methods:
        header += [method["label"], f"{method['label']} std"]
    rows = []
    for key, name, _ in reading_rows(methods):
        row: list[Cell] = [name]
        for method in methods:
            row += [method.get(key), method["seeds"]["spread"].get(key, {}).get("std")]
        rows.append(tuple(row))
    return Table("headline", tuple(header), tuple(rows))


def _parameters(methods: Sequence[Document]) -> Table:
    parts = ("total", *PARTS)
    rows = []
    for method in methods:
        for kind in ("stored", "archived", "trained"):
            counts = method[f"{kind}_parameters"] or {}
            rows.append((method["label"], kind, *[counts.get(part) for part in parts], method.get(f"{kind}_bytes")))
    return Table("parameters", ("method", "kind", *parts, "bytes"), tuple(rows))


def _added(methods: Sequence[Document]) -> Table:
    """What every task added, in numbers and in bytes on disk."""
    rows = []
    for method in methods:
        added = method["added_parameters"]
        sizes = method.get("bytes_per_task") or {}
        for task in dict.fromkeys([*added, *sizes]):
            counts = added.get(task, {})
            rows.append((method["label"], task, *[counts.get(part) for part in PARTS], sizes.get(task)))
    return Table("added", ("method", "task", *PARTS, "bytes"), tuple(rows))


def _seconds(methods: Sequence[Document]) -> Table:
    phases: dict[str, None] = {}  # an ordered set
    for method in methods:
        phases |= dict.fromkeys(method["seconds"])
    rows: list[tuple[Cell, ...]] = []
    for phase in phases:
        rows.append((f"{phase} (s)", *[method["seconds"].get(phase) for method in methods]))
    rows.append(("one answer (ms)", *[method.get("milliseconds_per_answer") for method in methods]))
    return Table("seconds", ("phase", *[method["label"] for method in methods]), tuple(rows))


def csv_text(table: Table) -> str:
    """The table as CSV, numbers in full.

    A text that a spreadsheet would carry out as a formula begins with an apostrophe.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_csv_cell, table.header))
    for row in table.rows:
        writer.writerow(map(_csv_cell, row))
    return buffer.getvalue()


def _csv_cell(value: Cell) -> Cell:
    if value is None:
        return ""
    if isinstance(value, str) and re.match(r"[=+@\t\r-]", value) and not re.fullmatch(r"[+-]?[0-9.,]+", value):
        return f"'{value}"
    return value


def latex_text(table: Table) -> str:
    """The table as a LaTeX `tabular` that needs no package; numbers in two digits behind the point."""
    numeric = [all(not isinstance(row[column], str) for row in table.rows) for column in range(len(table.header))]
    columns = "".join("r" if is_numeric else "l" for is_numeric in numeric)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", _latex_row(table.header), r"\hline"]
    lines += [_latex_row(row) for row in table.rows]
    lines += [r"\hline", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[Cell]) -> str:
    return " & ".join(map(_latex_cell, cells)) + r" \\"


def _latex_cell(value: Cell) -> str:
    if value is None:
        return "--"
    if isinstance(value, str):
        # A line break would end the row.
        line = " ".join(value.split())
        return "".join(_LATEX.get(character, character) for character in line)
    text = f"{value:d}" if isinstance(value, int) else f"{value:.2f}"
    # In text mode a minus is a hyphen.
    return text.replace("-", "$-$")
