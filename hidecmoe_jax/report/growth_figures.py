"""Figures of a method that grows: where it added experts and why, drawn from the report document of a run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hidecmoe_jax.report.canvas import DOT, INK, canvas, heat_by_layer, titles

Document = Mapping[str, Any]


def experts_added(document: Document):
    """Experts that each task added in each layer, and what its probe showed there: the share of tokens that picked it,
    or the loss that it saved.

    A second panel shows how many of each earlier task's experts a token of the last probed task picked.
    """
    tasks = document["tasks"]
    grown = document["growth"]
    added = np.array(grown["experts"])
    last_used = None  # [tasks before the one probed last, layers]
    for used in grown.get("used", []):
        last_used = used or last_used
    panels = 1 if last_used is None else 2
    panel_width = 3.0 + 0.62 * added.shape[1]
    width = panel_width * panels
    height = 1.8 + 0.55 * len(added)
    figure, axes = canvas(width, height, columns=panels)
    axes = np.atleast_1d(axes)
    _added_experts(axes[0], added, document)
    if last_used is not None:
        _used_experts(axes[1], np.array(last_used), tasks)
    return figure


def _used_experts(axis, used: np.ndarray, tasks: Sequence[str]) -> None:
    """Heat map of how many of each task's experts a token picked, on average over the task after the first `len(used)`.

    Above 1 where a token picks several experts of one task.
    """

    def text(task: int, layer: int) -> str:
        picks = used[task, layer]
        return f"{picks:.2f}"

    top = max(1.0, used.max())
    heat_by_layer(axis, used, tasks, top=top, text=text)
    probed = tasks[len(used)]
    title = f"Experts of each task that\na token of {probed} picked"
    titles(axis, title, x="decoder layer", y="")


def _added_experts(axis, added: np.ndarray, document: Document) -> None:
    """Heat map of what the probes showed, with the number of added experts."""
    grown = document["growth"]
    by_gain = "gain" in grown
    measured = grown["gain"] if by_gain else grown["frequency"]
    values = np.full(added.shape, np.nan)
    for task, by_layer in enumerate(measured):
        if by_layer is not None:
            # Layers that no probe stood in are None, and NaN here.
            values[task] = np.array(by_layer, np.float64)
    if not by_gain:
        values = 100 * values

    def text(task: int, layer: int) -> str:
        count = added[task, layer]
        mark = f"+{count}" if count else "0"
        value = values[task, layer]
        if np.isnan(value):
            return mark
        return f"{mark}\n{value:.2f}" if by_gain else f"{mark}\n{value:.0f}%"

    # A task that was not probed is white, not hatched: its number of experts is known.
    shown = np.maximum(np.nan_to_num(values), 0.0)
    top = max(1e-6, shown.max()) if by_gain else 100
    heat_by_layer(axis, shown, document["tasks"], top=top, text=text)
    what = "nats a token\nthat the probe saved" if by_gain else "tokens\nthat picked the probe"
    title = f"Experts added, and {what} {DOT} {document['method']}"
    titles(axis, title, x="decoder layer", y="")


def expansion_benefit(document: Document):
    """Measured benefit of expanding each layer for each task; the chosen layers are framed."""
    grown = document["growth"]
    benefits = np.array(grown["worth"])

    def text(task: int, layer: int) -> str:
        # A row of zeros is a task that has nothing to be compared with.
        if not benefits[task].any():
            return DOT
        benefit = benefits[task, layer]
        return f"{benefit:.2f}"

    width = 2.6 + 0.62 * benefits.shape[1]
    height = 1.6 + 0.5 * len(benefits)
    figure, axis = canvas(width, height)
    # A scale from 0 to 0 is none, so a run without any benefit gets a tiny one.
    top = max(1e-6, benefits.max())
    heat_by_layer(axis, benefits, document["tasks"], top=top, text=text)
    for layer in grown["expanded"]:
        left = layer - 0.48
        right = layer + 0.48
        axis.axvspan(left, right, fill=False, edgecolor=INK, linewidth=1.6)
    title = f"Benefit of expanding a layer,\nby {grown['by']} {DOT} {document['method']}"
    titles(axis, title, x="decoder layer", y="")
    return figure
