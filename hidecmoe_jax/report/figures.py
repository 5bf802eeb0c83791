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
    cut,
    heat,
    heat_by_layer,
    label_right,
    names_below,
    png,
    rows_of_bars,
    short,
    shortened,
    tasks_on,
    titles,
)

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
    grown = document.get("growth") or {}
    if "experts" in grown:
        figures["growth"] = growth(document)
    if "worth" in grown:
        figures["expansion"] = expansion(document)
    if any(document["curves"].values()):
        figures["training_loss"] = training_loss(document)
    return {f"{name}.png": png(figure) for name, figure in figures.items()}


def accuracy_matrix(document: Document):
    """Heat map of R[k,i] with numbers; the stepped line separates learned tasks from those still to come."""
    tasks = document["tasks"]
    scores = _scores(document)

    def text(stage: int, task: int) -> str:
        return f"{scores[stage, task]:.1f}"

    width = 2.6 + 0.85 * len(tasks)
    height = 1.9 + 0.5 * len(scores)
    figure, axis = canvas(width, height)
    heat(axis, scores, top=_highest(scores), text=text)
    line = {"color": INK, "linewidth": 1.6, "solid_capstyle": "butt"}
    for task in range(len(tasks)):
        left = task - 0.5
        right = task + 0.5
        below = task + 1.5
        axis.plot([left, right], [right, right], **line)
        axis.plot([right, right], [right, below], **line)
    tasks_on(axis.xaxis, tasks)
    rows = ["zero-shot"]
    for task in tasks:
        rows.append(f"after {short(task)}")
    axis.set_yticks(range(len(scores)), rows[: len(scores)])
    titles(axis, f"Score on every task after every stage {DOT} {document['method']}", x="tested on", y="")
    return figure


def forgetting_curves(document: Document):
    """Score on each task against the stage: dotted until the task is learned, solid from then on."""
    tasks = document["tasks"]
    scores = _scores(document)
    figure, axis = canvas(3.6 + 0.75 * len(scores), 4.0)
    for task, name in enumerate(tasks):
        _task_curve(axis, task, name, scores[:, task])
    names = ["zero-shot", *shortened(tasks)]
    axis.set_xticks(range(len(scores)), names, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_ylim(0, _highest(scores) * 1.03)
    axis.set_xlim(-0.2, len(scores) - 0.8)
    axis.grid(axis="y", color=GRID)
    axis.legend(title="tested on", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    titles(axis, f"Score on each task as others are learned {DOT} {document['method']}", x="after learning", y="score")
    return figure


def _task_curve(axis, task: int, name: str, scores: np.ndarray) -> None:
    """Scores [stages] on one task; those that were not measured are left out."""
    stages = np.flatnonzero(~np.isnan(scores))
    # Task i is learned in stage i + 1; that point belongs to both pieces, so that they join.
    before = stages[stages <= task + 1]
    after = stages[stages > task]
    color = PALETTE[task % len(PALETTE)]
    if len(before) > 1:
        axis.plot(before, scores[before], color=color, linestyle=":", linewidth=1.1, alpha=0.7)
    if len(after):
        axis.plot(
            after,
            scores[after],
            color=color,
            linewidth=1.8,
            linestyle=DASHES[task // len(PALETTE) % len(DASHES)],
            marker=MARKERS[task % len(MARKERS)],
            markersize=5.5,
            markeredgecolor="white",
            label=short(name),
        )


def routing_confusion(document: Document):
    """Share of each task's test items routed to each expert, with counts; rows are the true task.

    A last column for inputs that the gate takes for unknown is drawn where there are any.
    """
    tasks = columns = document["tasks"]
    counts = np.array(document["routing_confusion"])
    located = document.get("locator_confusion")
    if located:
        located_counts = np.array(located["counts"])
        # The last column is empty unless the gate took an input for unknown.
        if np.any(located_counts[:, -1]):
            counts = located_counts
            columns = located["columns"]
    # NaN for a task without items: its cells are hatched.
    items = counts.sum(1)
    totals = np.where(items > 0, items, np.nan)
    shares = 100 * counts / totals[:, None]

    def text(row: int, column: int) -> str:
        return f"{shares[row, column]:.0f}%\n{counts[row, column]}"

    width = 2.6 + 0.85 * len(columns)
    height = 1.9 + 0.62 * len(tasks)
    figure, axis = canvas(width, height)
    heat(axis, shares, top=100.0, text=text)
    tasks_on(axis.xaxis, columns)
    axis.set_yticks(range(len(tasks)), shortened(tasks))
    accuracy = document["routing_accuracy"]
    title = "Routing" if accuracy is None else f"Routing {DOT} {accuracy:.1f}% to their own task"
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
        panels.append((kinds, f"Parameters beyond the frozen base {DOT} {document['method']}", ""))
    added = []
    for task, counts in document["added_parameters"].items():
        added.append((short(task), counts))
    if added:
        panels.append((added, "Added by each task", "parameters"))
    heights = [0.55 * len(bars) + 0.9 for bars, _, _ in panels]
    figure, axes = canvas(8.0, sum(heights) + 0.3, rows=len(panels), ratios=heights)
    for axis, (bars, title, label) in zip(np.atleast_1d(axes), panels, strict=True):
        _stacked_bars(axis, bars)
        titles(axis, title, x=label, y="")
    return figure


def _stacked_bars(axis, bars: Sequence[tuple[str, Mapping[str, int]]]) -> None:
    """One bar for each (label, counts by part), stacked from its parts."""
    labels = [label for label, _ in bars]
    ends = np.zeros(len(bars), np.int64)
    for part, color in PART_COLORS.items():
        widths = np.array([_part(counts, part) for _, counts in bars])
        if widths.any():
            axis.barh(range(len(bars)), widths, left=ends, color=color, height=0.62, label=part)
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


def growth(document: Document):
    """Experts that each task added in each layer, and the share of tokens that picked its probe there.

    A second panel shows the share of the last probed task's tokens that picked each earlier task's experts.
    """
    tasks = document["tasks"]
    grown = document["growth"]
    added = np.array(grown["experts"])
    last_used = None  # [tasks before the one probed last, layers]
    for used in grown.get("used", []):
        last_used = used or last_used
    panels = 1 if last_used is None else 2
    panel_width = 3.0 + 0.62 * added.shape[1]
    figure, axes = canvas(panel_width * panels, 1.8 + 0.55 * len(added), columns=panels)
    axes = np.atleast_1d(axes)
    _added_experts(axes[0], added, grown["frequency"], document)
    if last_used is not None:
        used = 100 * np.array(last_used)
        heat_by_layer(axes[1], used, tasks, text=lambda task, layer: f"{used[task, layer]:.0f}%")
        probed = cut(tasks[len(used)])
        titles(axes[1], f"Tokens of {probed} that\npicked each task's experts", x="decoder layer", y="")
    return figure


def _added_experts(axis, added: np.ndarray, frequency: Sequence[Sequence[float] | None], document: Document) -> None:
    """Heat map of the probes' frequencies with the number of added experts; frequency is None for the first task."""
    shares = np.full(added.shape, np.nan)
    for task, picked in enumerate(frequency):
        if picked is not None:
            shares[task] = 100 * np.array(picked)

    def text(task: int, layer: int) -> str:
        count = added[task, layer]
        mark = f"+{count}" if count else DOT
        share = shares[task, layer]
        return mark if np.isnan(share) else f"{mark}\n{share:.0f}%"

    # A task that was not probed is white, not hatched: its number of experts is known.
    heat_by_layer(axis, np.nan_to_num(shares), document["tasks"], text=text)
    title = f"Experts added, and tokens\nthat picked the probe {DOT} {document['method']}"
    titles(axis, title, x="decoder layer", y="")


def expansion(document: Document):
    """Measured benefit of expanding each layer for each task; the chosen layers are framed."""
    grown = document["growth"]
    worth = np.array(grown["worth"])

    def text(task: int, layer: int) -> str:
        # A row of zeros is a task that has nothing to be compared with.
        return f"{worth[task, layer]:.2f}" if worth[task].any() else DOT

    width = 2.6 + 0.62 * worth.shape[1]
    height = 1.6 + 0.5 * len(worth)
    figure, axis = canvas(width, height)
    # A scale from 0 to 0 is none, so a run without any benefit gets a tiny one.
    top = max(1e-6, worth.max())
    heat_by_layer(axis, worth, document["tasks"], top=top, text=text)
    for layer in grown["expanded"]:
        axis.axvspan(layer - 0.48, layer + 0.48, fill=False, edgecolor=INK, linewidth=1.6)
    title = f"Benefit of expanding a layer,\nby {grown['by']} {DOT} {document['method']}"
    titles(axis, title, x="decoder layer", y="")
    return figure


def training_loss(document: Document):
    """Training loss stage after stage: every value faint, a moving average over a fortieth of the stage on top."""
    curves = {name: curve for name, curve in document["curves"].items() if curve}
    figure, axis = canvas(9.0, 3.6)
    start = 0
    centres = []
    smoothed: list[float] = []
    for index, curve in enumerate(curves.values()):
        smoothed += _stage_curve(axis, curve, start, PALETTE[index % len(PALETTE)])
        if index:
            axis.axvline(start, color=GRID, linewidth=1.0, zorder=0)
        length = max(step for step, _ in curve) + 1
        centres.append(start + length / 2)
        start += length
    names_below(axis, centres, list(curves))
    axis.set_xlim(0, max(start, 1))
    # The scale follows the average: one spike at the first steps would press all the rest against the axis.
    axis.set_ylim(0, max([*smoothed, 1e-6]) * 1.15)
    axis.grid(axis="y", color=GRID)
    titles(axis, f"Training loss, {start} steps {DOT} {document['method']}", x="", y="loss per answer token")
    return figure


def _stage_curve(axis, curve: Sequence[tuple[int, float | None]], start: int, color: str) -> list[float]:
    """Draws one stage's losses from step `start` on; returns their moving average."""
    points = [(start + step, loss) for step, loss in curve if loss is not None]
    if not points:
        return []
    steps, losses = zip(*points, strict=True)
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
    """The matrix of scores [stages, tasks], NaN where not measured."""
    return np.array(document["matrix"], np.float64)


def _highest(scores: np.ndarray) -> float:
    """Upper end of a scale of scores: 100, or the highest score where one exceeds 100 (CIDEr-D does)."""
    return float(np.nanmax(scores, initial=100.0))


def similarity_map(layers_LTT, tasks: Sequence[str], *, legacy: bool):
    """Similarity of the tasks' own models by layer: the mean over pairs as bars, the pairs as a heat map below."""
    layers = range(len(layers_LTT))
    first, second = np.triu_indices(len(tasks), k=1)
    values = np.array(layers_LTT)[:, first, second].T  # [pairs, layers]
    map_height = 0.28 * len(values)
    figure, (top, below) = canvas(2.5 + 0.5 * len(layers), 2.6 + map_height, rows=2, ratios=(2, 0.4 + map_height))
    top.bar(layers, values.mean(0), color=INK, width=0.6)
    top.set_xticks(layers, layers)
    top.set_ylim(0, 1.02)
    kind = "legacy (unpaired, biased RBF)" if legacy else "paired, debiased linear"
    titles(top, f"CKA of single-task models {DOT} {kind}", x="", y="mean over pairs")
    heat(below, values, top=1.0, text=lambda pair, layer: f"{values[pair, layer]:.2f}")
    names = []
    for i, j in zip(first, second, strict=True):
        names.append(f"{short(tasks[i])} / {short(tasks[j])}")
    below.set_xticks(layers, layers)
    below.set_yticks(range(len(names)), names)
    titles(below, "", x="decoder layer", y="")
    return figure
