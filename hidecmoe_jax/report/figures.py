"""Figures of one run, drawn from its report document alone, so that an old `report.json` can be drawn again.

Every function takes a document and returns a matplotlib Figure; `run_figures` returns them as PNG bytes by file name.
A cell that was not measured is hatched, never drawn as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hidecmoe_jax.report.canvas import (
    DASHES,
    DOT,
    GRID,
    INK,
    MARKERS,
    PALETTE,
    canvas,
    count_text,
    heat,
    label_right,
    names_below,
    png,
    rows_of_bars,
    short,
    shortened,
    tasks_on,
    titles,
)
from hidecmoe_jax.report.growth_figures import expansion_benefit, experts_added

PART_COLORS = {
    "experts": "#0072B2",
    "routers": "#D55E00",
    "locator": "#009E73",
    "projector": "#E69F00",
    "other": "#B0B0B0",
}

Document = Mapping[str, object]


def run_figures(document: Document) -> dict[str, bytes]:
    """Draws one method's figures as {file name: PNG}; those without data are left out."""
    figures = {"accuracy_matrix": accuracy_matrix(document)}
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
    files = {}
    for name, figure in figures.items():
        files[f"{name}.png"] = png(figure)
    return files


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
    labels = ["zero-shot"]
    for task in tasks:
        labels.append(f"after {short(task)}")
    # A zero-shot document has one row only.
    rows = len(scores)
    axis.set_yticks(range(rows), labels[:rows])
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
    names = ["zero-shot", *shortened(tasks)]
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
    """Scores [rows] on one task; those that were not measured are left out."""
    is_measured = ~np.isnan(scores)
    rows = np.flatnonzero(is_measured)
    # Tasks count from 0, so row task + 1 is the first after learning; its point is in both pieces, so that they join.
    before = rows[rows <= task + 1]
    after = rows[rows > task]
    color = PALETTE[task % len(PALETTE)]
    # A dash for each round through the colours.
    rounds = task // len(PALETTE)
    dash = DASHES[rounds % len(DASHES)]
    marker = MARKERS[task % len(MARKERS)]
    if len(before) > 1:
        axis.plot(before, scores[before], color=color, linestyle=":", linewidth=1.1, alpha=0.7)
    if len(after):
        axis.plot(
            after,
            scores[after],
            color=color,
            linewidth=1.8,
            linestyle=dash,
            marker=marker,
            markersize=5.5,
            markeredgecolor="white",
            label=short(name),
        )


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
    axis.set_yticks(range(len(tasks)), shortened(tasks))
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
        added.append((short(task), counts))
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


def training_loss(document: Document):
    """Training loss stage after stage: every value faint, a moving average over a fortieth of the stage on top."""
    curves = {name: curve for name, curve in document["curves"].items() if curve}
    figure, axis = canvas(9.0, 3.6)
    start = 0
    centres = []
    smoothed: list[float] = []
    for index, curve in enumerate(curves.values()):
        color = PALETTE[index % len(PALETTE)]
        smoothed += _stage_curve(axis, curve, start, color)
        if index:
            axis.axvline(start, color=GRID, linewidth=1.0, zorder=0)
        last_step = max(step for step, _ in curve)
        length = last_step + 1
        centres.append(start + length / 2)
        start += length
    names_below(axis, centres, list(curves))
    axis.set_xlim(0, max(start, 1))
    # The scale follows the average: one spike at the first steps would press all the rest against the axis.
    highest = max([*smoothed, 1e-6])
    axis.set_ylim(0, highest * 1.15)
    axis.grid(axis="y", color=GRID)
    title = f"Training loss, {start} steps {DOT} {document['method']}"
    titles(axis, title, x="", y="loss per answer token")
    return figure


def _stage_curve(axis, curve: Sequence[tuple[int, float | None]], start: int, color: str) -> list[float]:
    """Draws one stage's losses from step `start` on; returns their moving average."""
    steps = []
    losses = []
    for step, loss in curve:
        if loss is not None:
            steps.append(start + step)
            losses.append(loss)
    if not losses:
        return []
    window = max(1, len(losses) // 40)
    smooth = _moving_average(losses, window)
    axis.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
    axis.plot(steps, smooth, color=color, linewidth=1.8)
    return smooth


def _moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each place; of fewer at the beginning."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    averages = []
    for end in range(1, len(sums)):
        start = max(0, end - window)
        # The difference of two running sums is the sum of the values between them.
        total = sums[end] - sums[start]
        averages.append(total / (end - start))
    return averages


def _scores(document: Document) -> np.ndarray:
    """The matrix of scores [rows, tasks], NaN where not measured."""
    return np.array(document["matrix"], np.float64)


def _highest(scores: np.ndarray) -> float:
    """Upper end of a scale of scores: 100, or the highest score where one exceeds 100 (CIDEr-D does)."""
    return float(np.nanmax(scores, initial=100.0))
