"""Figure of what a run has achieved: every task before it, right after its lesson, and now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hidecmoe_jax.report.canvas import DOT, FAINT, GRID, INK, PALETTE, axis_labels, canvas, label_right, titles
from hidecmoe_jax.report.verdict import TaskVerdict, verdict_of

Document = Mapping[str, Any]

_NOW, _FLOOR = PALETTE[:2]


def outcome(document: Document):
    """Marks of every task on one scale of scores; a line joins right after learning and now where both were measured.

    The number at the right end is the score now.
    """
    tasks = verdict_of(document).tasks
    height = 1.7 + 0.55 * len(tasks)
    figure, axis = canvas(6.4, height)
    top = 100.0
    for task in tasks:
        measured = [score for score in (task.zero_shot, task.learned, task.now, task.floor) if score is not None]
        top = max([top, *measured])
    for place, task in enumerate(tasks):
        _task_marks(axis, place, task)
        text = "not measured" if task.now is None else f"{task.now:.1f}"
        color = FAINT if task.now is None else INK
        label_right(axis, (top, place), text, gap=10, color=color)
    _legend(figure, axis, tasks)
    axis.set_xlim(0, top)
    axis.set_ylim(len(tasks) - 0.4, -0.6)
    names = axis_labels([task.task for task in tasks])
    axis.set_yticks(range(len(tasks)), names)
    # Marks at 0 reach to the left of the panel.
    axis.tick_params(axis="y", length=0, pad=9)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color=GRID)
    titles(axis, f"Score of every task {DOT} {document['method']}", x="score", y="")
    return figure


def _task_marks(axis, place: int, task: TaskVerdict) -> None:
    """The marks of one task at a height; what was not measured has none."""
    # Marks at 0 and at the highest score lie half outside the panel.
    style = {"linestyle": "", "clip_on": False}
    if task.floor is not None:
        axis.plot(task.floor, place, marker="|", markersize=20, markeredgewidth=2, color=_FLOOR, **style)
    if task.zero_shot is not None:
        axis.plot(task.zero_shot, place, "o", markerfacecolor="white", markeredgecolor=FAINT, markersize=7, **style)
    if task.learned is not None and task.now is not None:
        axis.plot([task.learned, task.now], [place, place], color=_NOW, linewidth=2, alpha=0.5, zorder=1)
    if task.learned is not None:
        axis.plot(task.learned, place, "D", markerfacecolor="white", markeredgecolor=_NOW, markersize=9, **style)
    if task.now is not None:
        axis.plot(task.now, place, "o", color=_NOW, markersize=7, zorder=4, **style)


def _legend(figure, axis, tasks: Sequence[TaskVerdict]) -> None:
    """Names of the marks that are drawn at all."""
    kinds = (
        ("zero_shot", "zero-shot", {"marker": "o", "markerfacecolor": "white", "markeredgecolor": FAINT}),
        ("learned", "right after learning", {"marker": "D", "markerfacecolor": "white", "markeredgecolor": _NOW}),
        ("now", "now", {"marker": "o", "color": _NOW}),
        ("floor", "most frequent answer", {"marker": "|", "color": _FLOOR, "markersize": 12, "markeredgewidth": 2}),
    )
    for field, name, style in kinds:
        if any(getattr(task, field) is not None for task in tasks):
            # A line without points appears in the legend alone.
            axis.plot([], [], linestyle="", label=name, **style)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
