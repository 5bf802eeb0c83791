"""Figures of a comparison of methods, drawn from its report document alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hidecmoe_jax.report.canvas import (
    DASH,
    FAINT,
    GRID,
    INK,
    PALETTE,
    axis_label,
    canvas,
    images,
    label_right,
    names_below,
    rows_of_bars,
    titles,
)

Document = Mapping[str, Any]


def compare_figures(document: Document) -> dict[str, bytes]:
    """Draws the figures of a comparison as {file name: bytes of PNG or SVG}."""
    return images({"last_and_forgetting": last_and_forgetting(document), "last_by_task": last_by_task(document)})


def last_and_forgetting(document: Document):
    """Bars of Last and forgetting per method; whiskers are one standard deviation over seeds, dots the seeds."""
    methods = document["methods"]
    height = 2.6 + 0.9 * len(methods)
    # One above the other: side by side their numbers could not be read on a telephone.
    figure, (upper, lower) = canvas(6.4, height, rows=2)
    _metric_bars(upper, methods, "last", "Last \u00b7 higher is better")
    _metric_bars(lower, methods, "forgetting", "Forgetting \u00b7 lower is better")
    return figure


def _metric_bars(axis, methods: Sequence[Document], key: str, title: str) -> None:
    """One panel: a metric of every method."""
    for place, method in enumerate(methods):
        _method_bar(axis, place, method, key)
    names = []
    values = []
    for method in methods:
        names.append(axis_label(method["label"], 26))
        if method[key] is not None:
            values.append(method[key])
    # At least one point long, because the scale may not be empty where every value is 0.
    rows_of_bars(axis, names, longest=max([*values, 1.0]))
    # Forgetting is below 0 where later tasks helped.
    lowest = min([*values, 0.0])
    axis.set_xlim(left=lowest * 1.25)
    if lowest < 0:
        axis.axvline(0, color=FAINT, linewidth=0.8)
    titles(axis, title, x="points", y="")


def _method_bar(axis, place: int, method: Document, key: str) -> None:
    value = method[key]
    if value is None:
        label_right(axis, (0, place), "not measured", color=FAINT)
        return
    seeds = [seed[key] for seed in method["seeds"]["per_seed"]]
    std = method["seeds"]["spread"][key]["std"]  # None with a single seed
    whisker = {"ecolor": INK, "elinewidth": 1.1, "capsize": 3}
    color = PALETTE[place % len(PALETTE)]
    axis.barh(place, value, color=color, height=0.62, xerr=std, error_kw=whisker)
    if std is None:
        text = f"{value:.1f}"
    else:
        text = f"{value:.1f} \u00b1 {std:.1f}"
        axis.plot(seeds, [place] * len(seeds), "o", color="white", markeredgecolor=INK, markersize=4, zorder=3)
    # Behind the bar, its whisker and its dots, whichever reaches farthest.
    whisker_end = value + (std or 0.0)
    edge = max([value, 0.0, *seeds, whisker_end])
    label_right(axis, (edge, place), text, gap=7)


def last_by_task(document: Document):
    """Last score of each task, grouped by task, one colour a method."""
    tasks = document["tasks"]
    methods = document["methods"]
    width = 0.82 / len(methods)
    # A group of bars needs room for its methods, and for the task's name below.
    group_width = max(0.9, 0.24 * len(methods))
    figure_width = 1.8 + len(tasks) * group_width
    figure, axis = canvas(max(7.0, figure_width), 4.2)
    top = 100.0
    middle = (len(methods) - 1) / 2
    for index, method in enumerate(methods):
        shift = (index - middle) * width
        places = np.arange(len(tasks)) + shift
        color = PALETTE[index % len(PALETTE)]
        highest = _task_bars(axis, method, places, width=width * 0.92, color=color)
        top = max(top, highest)
    names_below(axis, range(len(tasks)), tasks)
    axis.set_ylim(0, top * 1.03)
    axis.grid(axis="y", color=GRID)
    figure.legend(loc="outside lower center", ncols=min(3, len(methods)), frameon=False, fontsize=9)
    titles(axis, "Score of each task after the last lesson", x="", y="score")
    return figure


def _task_bars(axis, method: Document, places: Sequence[float], *, width: float, color: str) -> float:
    """Draws one method's bars, one at each place; returns the highest end of bar and whisker."""
    scores = _final_row(method)
    seed_rows = map(_final_row, method["seeds"]["per_seed"])
    stds = list(map(_std, zip(*seed_rows, strict=True)))
    heights = [score or 0.0 for score in scores]
    axis.bar(
        places,
        heights,
        width,
        color=color,
        label=axis_label(method["label"], 26),
        yerr=stds if any(stds) else None,
        error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2},
    )
    for place, score in zip(places, scores, strict=True):
        # No bar is to be seen in either case, so a mark tells a score of 0 from one that was not measured.
        if not score:
            mark = DASH if score is None else "0"
            axis.text(place, 1, mark, ha="center", va="bottom", color=FAINT, fontsize=9)
    ends = np.add(heights, stds)
    return float(ends.max())


def _final_row(entry: Document) -> list[float | None]:
    """Row T, or the zero-shot row of a method that never learns."""
    matrix = entry["matrix"]
    scores = np.array(matrix, np.float64)  # NaN where not measured
    learned = scores[1:]
    if np.isnan(learned).all():
        return matrix[0]
    return matrix[-1]


def _std(values: Sequence[float | None]) -> float:
    if len(values) < 2 or None in values:
        return 0.0
    return statistics.stdev(values)
