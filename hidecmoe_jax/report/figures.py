"""Figures of one run, drawn from its report document alone, so that an old `report.json` can be drawn again.

Every function takes a document and returns a matplotlib Figure; `run_figures` returns them as PNG and SVG by file name.
A cell that was not measured is hatched, never drawn as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hidecmoe_jax.report.canvas import (
    DASHES,
    DOT,
    GRID,
    INK,
    MARKERS,
    PALETTE,
    axis_label,
    axis_labels,
    canvas,
    count_text,
    heat,
    images,
    label_right,
    rows_of_bars,
    tasks_on,
    titles,
)
from hidecmoe_jax.report.growth_figures import expansion_benefit, experts_added
from hidecmoe_jax.report.loss_figure import training_loss
from hidecmoe_jax.report.outcome_figure import outcome

PART_COLORS = {
    "experts": "#0072B2",
    "routers": "#D55E00",
    "locator": "#009E73",
    "projector": "#E69F00",
    "other": "#B0B0B0",
}

Document = Mapping[str, Any]


def run_figures(document: Document) -> dict[str, bytes]:
    """Draws one method's figures as {file name: bytes of PNG or SVG}; those without data are left out."""
    figures = {"outcome": outcome(document), "accuracy_matrix": accuracy_matrix(document)}
    learned = _scores(document)[1:]
    if not np.isnan(learned).all():
        figures["forgetting_curves"] = forgetting_curves(document)
    if document["routing_confusion"]:
        figures["routing_confusion"] = routing_confusion(document)
    if document["stored_parameters"] or document["added_parameters"]:
        figures["expert_sizes"] = expert_sizes(document)
    growth = document.get("growth") or {}
    if "experts" in growth:
        figures["growth"] = experts_added(document)
    # `worth` is the document's key for the benefit of expanding each layer.
    if "worth" in growth:
        figures["expansion"] = expansion_benefit(document)
    if any(document["curves"].values()):
        figures["training_loss"] = training_loss(document)
    return images(figures)


def accuracy_matrix(document: Document):
    """Heat map of R[k,i] with numbers; the stepped line separates learned tasks from those still to come."""
    tasks = document["tasks"]
    scores = _scores(document)

    def text(row: int, task: int) -> str:
        score = scores[row, task]
        return f"{score:.1f}"

    width = 2.6 + 0.85 * len(tasks)
    height = 1.9 + 0.5 * len(scores)
    figure, axis = canvas(width, height)
    heat(axis, scores, top=_highest(scores), text=text)
    style = {"color": INK, "linewidth": 1.6, "solid_capstyle": "butt"}
    for task in range(len(tasks)):
        # The upper and the right edge of the task's cell of row task + 1, the first row after it was learned.
        left = task - 0.5
        right = task + 0.5
        upper = task + 0.5
        lower = task + 1.5
        axis.plot([left, right], [upper, upper], **style)
        axis.plot([right, right], [upper, lower], **style)
    tasks_on(axis.xaxis, tasks)
    row_names = ["zero-shot"]
    for task in tasks:
        row_names.append(axis_label(f"after {task}"))
    # A zero-shot document has one row only.
    rows = len(scores)
    axis.set_yticks(range(rows), row_names[:rows])
    title = f"Score on every task after every lesson {DOT} {document['method']}"
    titles(axis, title, x="tested on", y="")
    return figure


def forgetting_curves(document: Document):
    """Score on each task against the row of the matrix: dotted until the task is learned, solid from then on."""
    tasks = document["tasks"]
    scores = _scores(document)
    rows = len(scores)
    width = 3.6 + 0.75 * rows
    figure, axis = canvas(width, 4.0)
    for task, name in enumerate(tasks):
        _task_curve(axis, task, name, scores[:, task])
    names = ["zero-shot", *axis_labels(tasks)]
    axis.set_xticks(range(rows), names, rotation=30, ha="right", rotation_mode="anchor")
    highest = _highest(scores)
    axis.set_ylim(0, highest * 1.03)
    axis.set_xlim(-0.2, rows - 0.8)
    axis.grid(axis="y", color=GRID)
    axis.legend(title="tested on", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    title = f"Score on each task as others are learned {DOT} {document['method']}"
    titles(axis, title, x="after learning", y="score")
    return figure


def _task_curve(axis, task: int, name: str, scores: np.ndarray) -> None:
    """Scores [rows] on one task, a mark each; a line joins two of them only where no row between was left out."""
    rows = np.arange(len(scores))
    # Tasks count from 0, so row task + 1 is the first after learning; its point is in both pieces, so that they join.
    # NaN, a row that was not measured, breaks the line.
    before = np.where(rows <= task + 1, scores, np.nan)
    after = np.where(rows > task, scores, np.nan)
    color = PALETTE[task % len(PALETTE)]
    # A dash for each round through the colours.
    rounds = task // len(PALETTE)
    dash = DASHES[rounds % len(DASHES)]
    marker = MARKERS[task % len(MARKERS)]
    hollow = {"marker": marker, "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": color}
    filled = {"marker": marker, "markersize": 6, "markeredgecolor": "white"}
    axis.plot(rows, before, color=color, linestyle=":", linewidth=1.1, **hollow)
    axis.plot(rows, after, color=color, linestyle=dash, linewidth=1.8, label=axis_label(name), clip_on=False, **filled)


def routing_confusion(document: Document):
    """Share of each task's test items routed to each expert, with counts; rows are the true task.

    `routing_confusion` of the document is T x T and omits inputs that the gate takes for unknown; `locator_confusion`
    has a further column for them, and is absent where the method is given the task. That column is drawn unless it is
    empty.
    """
    tasks = columns = document["tasks"]
    counts = np.array(document["routing_confusion"])
    located = document.get("locator_confusion")
    if located:
        located_counts = np.array(located["counts"])
        if np.any(located_counts[:, -1]):
            counts = located_counts
            columns = located["columns"]
    # NaN for a task without items: its cells are hatched.
    items = counts.sum(1)
    totals = np.where(items > 0, items, np.nan)
    shares = 100 * counts / totals[:, None]

    def text(row: int, column: int) -> str:
        share = shares[row, column]
        count = counts[row, column]
        return f"{share:.0f}%\n{count}"

    width = 2.6 + 0.85 * len(columns)
    height = 1.9 + 0.62 * len(tasks)
    figure, axis = canvas(width, height)
    heat(axis, shares, top=100.0, text=text)
    tasks_on(axis.xaxis, columns)
    axis.set_yticks(range(len(tasks)), axis_labels(tasks))
    accuracy = document["routing_accuracy"]
    title = "Routing"
    if accuracy is not None:
        title = f"Routing {DOT} {accuracy:.1f}% to their own task"
    titles(axis, title, x="routed to the expert of", y="true task")
    return figure


def expert_sizes(document: Document):
    """Parameters stored, archived and trained by part, and below them what each task added."""
    panels = []  # (bars, title, axis label)
    kinds = []
    for kind in ("stored", "archived", "trained"):
        counts = document[f"{kind}_parameters"]
        if counts:
            kinds.append((kind, counts))
    if kinds:
        title = f"Parameters beyond the frozen base {DOT} {document['method']}"
        panels.append((kinds, title, ""))
    added = []
    for task, counts in document["added_parameters"].items():
        added.append((axis_label(task), counts))
    if added:
        panels.append((added, "Added by each task", "parameters"))
    heights = [0.55 * len(bars) + 0.9 for bars, _, _ in panels]
    height = sum(heights) + 0.3
    figure, axes = canvas(8.0, height, rows=len(panels), ratios=heights)
    # A single panel comes as one axis, not as an array.
    axes = np.atleast_1d(axes)
    for axis, (bars, title, label) in zip(axes, panels, strict=True):
        _stacked_bars(axis, bars)
        titles(axis, title, x=label, y="")
    return figure


def _stacked_bars(axis, bars: Sequence[tuple[str, Mapping[str, int]]]) -> None:
    """One bar for each (label, counts by part), stacked from its parts."""
    labels = [label for label, _ in bars]
    places = range(len(bars))
    ends = np.zeros(len(bars), np.int64)
    for part, color in PART_COLORS.items():
        widths = np.array([_part(counts, part) for _, counts in bars])
        if widths.any():
            axis.barh(places, widths, left=ends, color=color, height=0.62, label=part)
            ends = ends + widths
    for place, total in enumerate(ends):
        label_right(axis, (total, place), count_text(total))
    rows_of_bars(axis, labels, longest=ends.max())
    if ends.any():
        axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _part(counts: Mapping[str, int], part: str) -> int:
    """The count of a part; `other` is what the total holds beyond the named parts."""
    if part != "other":
        return counts.get(part, 0)
    named = 0
    for name in PART_COLORS:
        if name != "other":
            named += counts.get(name, 0)
    return counts.get("total", named) - named


def _scores(document: Document) -> np.ndarray:
    """The matrix of scores [rows, tasks], NaN where not measured."""
    return np.array(document["matrix"], np.float64)


def _highest(scores: np.ndarray) -> float:
    """Upper end of a scale of scores: 100, or the highest score where one exceeds 100 (CIDEr-D does)."""
    return float(np.nanmax(scores, initial=100.0))
