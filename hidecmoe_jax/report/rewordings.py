"""Entries of a report about routing in other wordings: in the document, its sentences and its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hidecmoe_jax.data.rewording import ABLATIONS
from hidecmoe_jax.report.measurements import RunFacts
from hidecmoe_jax.report.numbers import number
from hidecmoe_jax.report.wording import READING

LOWEST = "routing_lowest_reworded"
LOWEST_ROW = (
    LOWEST,
    "Routing accuracy, lowest reworded",
    "The same for the questions of one task in one other wording, where it is lowest: how far the routing hangs on how "
    "a question is put.",
)
# Wordings and ablations by the names that the table shows.
WORDINGS = {
    "as_given": "as in the test file",
    "cut": "without the instruction line",
    "other_line": "with another instruction line",
    "lower_case": "in lower case",
    "no_punctuation": "without punctuation",
    "please": "with a please in front",
    "first_sentence": "first sentence only",
    "no_text": "no text (nearest task)",
    "other_picture": "another task's picture (nearest task)",
}


def routing_entries(facts: RunFacts) -> dict[str, Any]:
    """Keys of the document; none where nothing was measured."""
    entries: dict[str, Any] = {}
    if facts.thresholds:
        entries["thresholds"] = {task: dict(values) for task, values in facts.thresholds.items()}
    if facts.wording:
        entries |= {"wording": dict(facts.wording), LOWEST: facts.wording["lowest"]["value"]}
    return entries


def reading_rows(methods: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Rows of the headline table, with the lowest reworded cell beside the routing accuracy where one was measured."""
    rows = list(READING)
    if any(method.get(LOWEST) is not None for method in methods):
        names = [key for key, _, _ in rows]
        rows.insert(names.index("routing_accuracy") + 1, LOWEST_ROW)
    return rows


def wording_rows(document: Mapping[str, Any]) -> list[tuple[str, list[float], float, float]]:
    """Name of a wording, routing accuracy of every task, their mean, and the mean percentage that is called unknown.

    An ablation is unlike every task, and right to be called unknown: of those it is how many are nearest to the task.
    """
    measured = document.get("wording") or {}
    rows = []
    for wording in measured.get("accuracy") or ():
        counted = "nearest" if wording in ABLATIONS else "accuracy"
        values = measured[counted][wording]
        unknown = measured["unknown"][wording]
        name = WORDINGS.get(wording, wording)
        rows.append((name, values, _mean(values), _mean(unknown)))
    return rows


def sides_sentence(document: Mapping[str, Any]) -> str | None:
    """How much of the routing comes from the text alone and from the picture alone; None where not measured."""
    measured = document.get("wording") or {}
    text = measured.get("text_alone")
    picture = measured.get("picture_alone")
    if text is None or picture is None:
        return None
    by_text = f"With another task's picture {number(text, 1)} % find the task of their text"
    return f"{by_text}; without text {number(picture, 1)} % find the task of their picture."


def lowest_sentence(document: Mapping[str, Any]) -> str | None:
    """The lowest reworded cell in words; None where not measured."""
    lowest = (document.get("wording") or {}).get("lowest") or {}
    if lowest.get("value") is None:
        return None
    wording = WORDINGS.get(lowest["wording"], lowest["wording"])
    return f"Reworded by rules, the lowest is {number(lowest['value'], 1)} %: {lowest['task']}, {wording}."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
