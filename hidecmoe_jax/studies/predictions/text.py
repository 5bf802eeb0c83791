"""Scores of result files as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hidecmoe_jax.core.text_table import text_table
from hidecmoe_jax.scoring.matrix import METRICS

TITLES = {
    "last": "Last (MFN)",
    "avg": "Avg",
    "maa": "MAA",
    "mft": "MFT",
    "bwt_t_minus_1": "BWT (T-1)",
    "bwt_t": "BWT (T)",
    "forgetting": "forgetting",
    "fwt": "FWT",
}
# Counts of a result file that should all be 0.
FAULTS = ("missing", "extra", "duplicated", "conflicting", "misordered", "unparsed")
NOT_MEASURED = "-"


def score_lines(document: Mapping[str, Any]) -> list[str]:
    """The result of `score_predictions` as lines."""
    lines: list[str] = []
    for run in document["runs"]:
        lines += [*_run_lines(run), ""]
    several = [row for row in document["methods"] if len(row["runs"]) > 1]
    if several or len(document["methods"]) > 1:
        lines += [*_spread_lines(document["methods"]), ""]
    if document["paired"]:
        lines += [*_paired_lines(document["paired"]), ""]
    lines += _judge_lines(document)
    return lines[:-1] if lines[-1:] == [""] else lines


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:+.2f}"


def _interval(interval: Sequence[float] | None) -> str:
    return NOT_MEASURED if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _run_lines(run: Mapping[str, Any]) -> list[str]:
    lines = [f"{run['label']}: strict score after each task (row 0: zero-shot), legacy in brackets"]
    names = [task["name"] for task in run["tasks"]]
    rows = [["after", *names]]
    for place, (scores, legacy) in enumerate(zip(run["matrix"], run["legacy_matrix"], strict=True)):
        if any(score is not None for score in scores):
            after = names[place - 1] if place else "nothing"
            cells = [f"{_number(score)} ({_number(old)})" for score, old in zip(scores, legacy, strict=True)]
            rows.append([f"{place} {after}", *cells])
    lines += text_table(rows) + [""]
    lines += _metric_lines(run) + [""]
    lines += _cell_lines(run)
    return lines + _note_lines(run)


def _metric_lines(run: Mapping[str, Any]) -> list[str]:
    rows = [["metric", "strict", "95 % interval", "legacy", "difference"]]
    for name in METRICS:
        strict = run["metrics"][name]
        legacy = run["legacy_metrics"][name]
        difference = None if strict is None or legacy is None else legacy - strict
        interval = run["intervals"][name]
        rows.append([TITLES[name], _number(strict), _interval(interval), _number(legacy), _signed(difference)])
    lines = text_table(rows)
    for name, cells in run["missing"].items():
        lines.append(f"{TITLES[name]} needs {', '.join(cells[:4])}{', ...' if len(cells) > 4 else ''}")
    return lines


def _cell_lines(run: Mapping[str, Any]) -> list[str]:
    """The last row in full, and every other file that does not fit."""
    last = max(cell["row"] for cell in run["cells"])
    rows = [["row, task", "strict", "95 % interval", "legacy", "difference", "items", *FAULTS]]
    for cell in run["cells"]:
        faults = [cell[name] for name in FAULTS]
        if cell["row"] < last and not any(faults):
            continue
        rows.append([
            f"{cell['row']} {cell['task']}", _number(cell["strict"]), _interval(cell["interval"]),
            _number(cell["legacy"]), _signed(cell["difference"]), str(cell["questions"]), *map(str, faults),
        ])  # fmt: skip
    return text_table(rows)


def _note_lines(run: Mapping[str, Any]) -> list[str]:
    notes = list(run["notes"])
    for cell in run["cells"]:
        where = f"row {cell['row']}, {cell['task']}"
        if cell["reason"]:
            notes.append(f"{where}: no legacy score: {cell['reason']}")
        if cell["torn"]:
            notes.append(f"{where}: the last line is torn and left out")
        if cell["printed_agrees"] is False:
            notes.append(f"{where}: Result.text says {cell['printed']:.2f}, the legacy rule {cell['legacy']:.2f}")
        if cell["printed_samples"] is not None and cell["printed_samples"] != cell["lines"]:
            notes.append(f"{where}: Result.text says {cell['printed_samples']} samples, the file has {cell['lines']}")
    for task in run["tasks"]:
        legacy = f"; legacy: {task['legacy']}" if task["legacy"] else ""
        notes.append(f"{task['name']}: {task['rule']}, strict: {task['strict']}{legacy}")
        notes += [f"{task['name']}: {note}" for note in task["notes"]]
    return ["", *(f"  {note}" for note in dict.fromkeys(notes))]


def _spread_lines(methods: Iterable[Mapping[str, Any]]) -> list[str]:
    """Seeds and orders of every method in one table."""
    rows = [["method", "runs", "seeds", "orders", *(TITLES[name] for name in METRICS)]]
    for row in methods:
        seeds = ",".join(map(str, row["seeds"])) or NOT_MEASURED
        numbers = []
        for name in METRICS:
            spread = row["metrics"][name]
            deviation = "" if spread["std"] is None else f" ± {spread['std']:.2f}"
            numbers.append(_number(spread["mean"]) + deviation)
        rows.append([row["method"], str(len(row["runs"])), seeds, str(len(row["orders"])), *numbers])
    return ["strict, mean ± standard deviation over runs", *text_table(rows)]


def _paired_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = ["final scores, question by question (p by permutation, Holm-corrected for all pairs)"]
    printed = [["methods", "difference", "95 % interval", "p", "p (Holm)", "items"]]
    reasons = []
    for row in rows:
        pair = f"{row['left']} - {row['right']}"
        if row["reason"]:
            reasons.append(f"  {pair}: not compared: {row['reason']}")
            continue
        printed.append([
            pair, _signed(row["difference"]), _interval(row["interval"]), f"{row['p']:.4f}", f"{row['p_holm']:.4f}",
            str(row["items"]),
        ])  # fmt: skip
    return lines + (text_table(printed) if len(printed) > 1 else []) + reasons


def _judge_lines(document: Mapping[str, Any]) -> list[str]:
    if not document.get("judged"):
        return []
    rows = [["judge, 0-100", "task", "score", "rated", "unrated", "cached"]]
    for cell in document["judged"]:
        rows.append([
            cell["label"], cell["task"], _number(cell["score"]), str(cell["rated"]), str(cell["unrated"]),
            str(cell["cached"]),
        ])  # fmt: skip
    return [*text_table(rows), ""]
