"""Figure of the training loss over steps, drawn from the report document of a run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hidecmoe_jax.report.canvas import DOT, GRID, PALETTE, canvas, names_above, titles

Document = Mapping[str, Any]


def training_loss(document: Document):
    """Training loss against the step, stage after stage: every value faint, a moving average over a fortieth of the
    stage on top."""
    curves = {name: curve for name, curve in document["curves"].items() if curve}
    figure, axis = canvas(7.2, 3.8)
    start = 0
    centres = []
    highest = 1e-6
    for index, curve in enumerate(curves.values()):
        color = PALETTE[index % len(PALETTE)]
        highest = max(highest, _stage_curve(axis, curve, start, color))
        if index:
            axis.axvline(start, color=GRID, linewidth=1.0, zorder=0)
        last_step = max(step for step, _ in curve)
        length = last_step + 1
        centres.append(start + length / 2)
        start += length
    axis.set_xlim(0, max(start, 1))
    names_above(axis, centres, list(curves))
    # The scale follows the average: one spike at the first steps would press all the rest against the axis.
    axis.set_ylim(0, highest * 1.15)
    axis.grid(axis="y", color=GRID)
    title = f"Training loss, {start} steps {DOT} {document['method']}"
    titles(axis, title, x="training step, counted through all stages", y="loss per answer token")
    return figure


def _stage_curve(axis, curve: Sequence[tuple[int, float | None]], start: int, color: str) -> float:
    """Draws one stage's losses from step `start` on; returns the highest value of their moving average."""
    steps = np.array([start + step for step, _ in curve])
    losses = np.array([loss for _, loss in curve], np.float64)  # NaN where a loss was not finite
    is_measured = ~np.isnan(losses)
    if not is_measured.any():
        return 0.0
    measured = losses[is_measured].tolist()
    window = max(1, len(measured) // 40)
    # NaN where nothing was measured breaks both lines there.
    smooth = np.full(len(losses), np.nan)
    smooth[is_measured] = moving_average(measured, window)
    # A stage of few steps would be an invisible line.
    marker = "o" if len(measured) <= 20 else ""
    axis.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
    axis.plot(steps, smooth, color=color, linewidth=1.8, marker=marker, markersize=3)
    return float(np.nanmax(smooth))


def moving_average(values: Sequence[float], window: int) -> list[float]:
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
