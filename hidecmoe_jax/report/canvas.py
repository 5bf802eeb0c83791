"""What all figures of a report share: size, ink, titles, heat cells.

Figures are built without pyplot, which keeps a global registry.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

DPI = 150
INK, FAINT, GRID = "#222222", "#6B6B6B", "#E3E3E3"


def canvas(width: float, height: float, *, rows: int = 1, columns: int = 1, ratios: Sequence[float] | None = None):
    """An empty figure (and its axes: one, or an array in the shape that matplotlib gives) in the house style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, height_ratios=ratios)
    for axis in [axes] if rows * columns == 1 else axes.flat:
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9, labelcolor=INK, color=FAINT)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
    return figure, axes


def png(figure) -> bytes:
    """Renders a figure with 150 dots per inch."""
    buffer = io.BytesIO()
    # The software name and date would make two equal reports differ.
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def titles(axis, title: str, *, x: str, y: str) -> None:
    """Title and axis labels; user text is never read as mathematics."""
    axis.set_title(title, fontsize=11, color=INK, loc="left", pad=10, parse_math=False)
    axis.set_xlabel(x, fontsize=9, color=FAINT)
    axis.set_ylabel(y, fontsize=9, color=FAINT)


def heat(axis, values: Sequence[Sequence[float | None]], *, top: float, texts: Sequence[Sequence[str]]) -> None:
    """Cells shaded by value with a text in each; a cell that was not measured is hatched."""
    from matplotlib.patches import Rectangle

    axis.imshow(
        [[float("nan") if value is None else value for value in row] for row in values],
        cmap="Blues",
        vmin=0.0,
        vmax=top,
        aspect="auto",
    )
    for row, cells in enumerate(values):
        for column, value in enumerate(cells):
            if value is None:
                axis.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5),
                        1,
                        1,
                        facecolor="#F4F4F4",
                        edgecolor="#D0D0D0",
                        hatch="////",
                        linewidth=0,
                    )
                )
            else:
                axis.text(
                    column,
                    row,
                    texts[row][column],
                    ha="center",
                    va="center",
                    fontsize=9,
                    linespacing=1.15,
                    color="white" if value > 0.55 * top else INK,
                )
    axis.set_xticks([column + 0.5 for column in range(len(values[0]) - 1)], minor=True)
    axis.set_yticks([row + 0.5 for row in range(len(values) - 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=1.2)
    axis.tick_params(which="both", length=0)
    axis.spines[["left", "bottom"]].set_visible(False)


def tasks_on(axis, tasks: Sequence[str]) -> None:
    """Task names as tick labels."""
    axis.set_ticks(range(len(tasks)), [short(task) for task in tasks])
    for label in axis.get_ticklabels():
        label.set(rotation=30, ha="right", rotation_mode="anchor")


def short(name: str, most: int = 18) -> str:
    """Long names are cut for axis labels only; a dollar sign would start a formula."""
    name = name if len(name) <= most else name[: most - 1] + "\u2026"
    return name.replace("$", r"\$")
