"""Elements that all figures of a report share: canvas, colours, titles, heat maps, tick labels.

Figures are built without pyplot, which keeps a global registry. Colours are the Okabe-Ito set and single-hue maps,
readable for colour-blind people; lines differ in marker and dash as well.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

DPI = 150
NARROWEST = 5.2  # inches; a figure of one or two tasks has room for its title
LABEL_WIDTH = 18  # characters
_TITLE = "title"  # marks the titles of a figure
INK = "#222222"
FAINT = "#6B6B6B"
GRID = "#E3E3E3"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.")
DOT = "\u00b7"
DASH = "\u2013"

Values = Sequence[Sequence[float | None]] | np.ndarray


def canvas(width: float, height: float, *, rows: int = 1, columns: int = 1, ratios: Sequence[float] | None = None):
    """Returns an empty figure of that size in inches, and its axes: one, or an array as matplotlib shapes it."""
    # Imported here: matplotlib takes a second, and most commands draw nothing.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width, NARROWEST), height), layout="constrained")
    axes = figure.subplots(rows, columns, height_ratios=ratios)
    for axis in np.atleast_1d(axes).flat:
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9, labelcolor=INK, color=FAINT)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
    return figure, axes


def images(figures: Mapping[str, Any]) -> dict[str, bytes]:
    """Every figure as `NAME.png` and `NAME.svg`."""
    files = {}
    for name, figure in figures.items():
        files[f"{name}.png"] = png(figure)
        files[f"{name}.svg"] = svg(figure)
    return files


def png(figure) -> bytes:
    """Renders a figure with 150 dots per inch, its titles broken into lines that fit."""
    fit_titles(figure)
    buffer = io.BytesIO()
    # The software name and date would make two equal reports differ.
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure) -> bytes:
    """Renders a figure as SVG, letters as outlines, so that it looks alike on every machine."""
    import matplotlib

    fit_titles(figure)
    buffer = io.BytesIO()
    # Ids inside the file are random without a salt, and would make two equal reports differ.
    with matplotlib.rc_context({"svg.hashsalt": "report", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def titles(axis, title: str, *, x: str, y: str) -> None:
    """Title and axis labels. User text in a title is never parsed as mathematics."""
    text = axis.set_title(title, fontsize=11, color=INK, loc="left", pad=10, parse_math=False)
    text.set_label(_TITLE)
    axis.set_xlabel(x, fontsize=9, color=FAINT)
    axis.set_ylabel(y, fontsize=9, color=FAINT)


def fit_titles(figure) -> None:
    """Breaks a title into lines where it would leave its panel, and makes the figure higher by those lines."""
    figure.draw_without_rendering()
    most_lines = 0
    for axis in figure.axes:
        for text in axis.findobj(_is_title):
            before = text.get_text().count("\n")
            _fit(text, _right_edge(figure, axis))
            most_lines = max(most_lines, text.get_text().count("\n") - before)
    # A line of 11 points is a fifth of an inch high.
    figure.set_figheight(figure.get_figheight() + 0.2 * most_lines)


def _is_title(artist) -> bool:
    return artist.get_label() == _TITLE


def _right_edge(figure, axis) -> float:
    """Where the title of a panel must end, in pixels: at the next panel, or at the edge of the figure."""
    edge = figure.bbox.x1
    for other in figure.axes:
        # A panel above or below takes nothing of the line's length.
        if other.bbox.x0 > axis.bbox.x1:
            edge = min(edge, other.get_tightbbox(for_layout_only=True).x0)
    return edge - 6


def _fit(text, edge: float) -> None:
    """Breaks a text into lines that end before `edge`."""
    whole = text.get_text()
    words = " ".join(whole.split())
    characters = max(map(len, whole.split("\n")))
    # A word longer than a line is broken too: nothing of a title is left out.
    while text.get_window_extent().x1 > edge and characters > 8:
        characters -= 1
        lines = textwrap.wrap(words, characters)
        text.set_text("\n".join(lines))


def heat(axis, values: Values, *, top: float, text: Callable[[int, int], str]) -> None:
    """Heat map of a table whose scale runs from 0 to `top`; a cell that is None or NaN is hatched.

    Args:
      text: text of the cell in a row and a column.
    """
    # None becomes NaN, which imshow leaves blank.
    shades = np.array(values, np.float64)
    axis.imshow(shades, cmap="Blues", vmin=0.0, vmax=top, aspect="auto")
    for (row, column), shade in np.ndenumerate(shades):
        if np.isnan(shade):
            _hatch(axis, row, column)
            continue
        # Ink on the darker half of the scale would be hard to read.
        is_dark = shade > 0.55 * top
        color = "white" if is_dark else INK
        style = {"ha": "center", "va": "center", "fontsize": 9, "linespacing": 1.15, "color": color}
        axis.text(column, row, text(row, column), **style)
    # White lines between cells: a grid on minor ticks, which lie on the cells' borders.
    rows, columns = shades.shape
    borders_x = np.arange(columns - 1) + 0.5
    borders_y = np.arange(rows - 1) + 0.5
    axis.set_xticks(borders_x, minor=True)
    axis.set_yticks(borders_y, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.2)
    axis.tick_params(which="both", length=0)
    axis.spines[["left", "bottom"]].set_visible(False)


def _hatch(axis, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    # Cells are centred on whole numbers.
    corner = (column - 0.5, row - 0.5)
    style = {"facecolor": "#F4F4F4", "edgecolor": "#D0D0D0", "hatch": "////", "linewidth": 0}
    cell = Rectangle(corner, 1, 1, **style)
    axis.add_patch(cell)


def heat_by_layer(
    axis, values: Values, tasks: Sequence[str], *, top: float = 100.0, text: Callable[[int, int], str]
) -> None:
    """Heat map with one row a task (the first of `tasks`, as many as rows) and one column a decoder layer."""
    heat(axis, values, top=top, text=text)
    rows = len(values)
    layers = range(len(values[0]))
    axis.set_xticks(layers, layers)
    names = axis_labels(tasks[:rows])
    axis.set_yticks(range(rows), names)


def tasks_on(axis, tasks: Sequence[str]) -> None:
    """Task names as tick labels."""
    axis.set_ticks(range(len(tasks)), axis_labels(tasks))
    for label in axis.get_ticklabels():
        label.set(rotation=30, ha="right", rotation_mode="anchor")


def names_below(axis, places: Sequence[float], names: Sequence[str]) -> None:
    """Names below the horizontal axis, without tick marks; slanted where there are more than four."""
    style = {"rotation": 0, "ha": "center"}
    if len(names) > 4:
        style = {"rotation": 30, "ha": "right"}
    axis.set_xticks(places, axis_labels(names), rotation_mode="anchor", **style)
    axis.tick_params(axis="x", length=0)


def names_above(axis, places: Sequence[float], names: Sequence[str]) -> None:
    """Names above the panel, whose own horizontal axis keeps its numbers; slanted where there are more than four."""
    above = axis.secondary_xaxis("top")
    style = {"rotation": 0, "ha": "center"}
    if len(names) > 4:
        style = {"rotation": 30, "ha": "left"}
    above.set_xticks(places, axis_labels(names), rotation_mode="anchor", fontsize=9, color=INK, **style)
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)


def label_right(axis, point: tuple[float, float], text: str, *, gap: float = 4, color: str = INK) -> None:
    """Writes a text `gap` points to the right of a point, as the number behind a bar."""
    style = {"textcoords": "offset points", "va": "center", "fontsize": 9, "color": color}
    axis.annotate(text, point, (gap, 0), **style)


def rows_of_bars(axis, labels: Sequence[str], *, longest: float) -> None:
    """Axes of horizontal bars from top to bottom, with room for a number behind the longest."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    count = len(labels)
    axis.set_yticks(range(count), labels)
    axis.set_ylim(count - 0.4, -0.6)
    # A scale from 0 to 0 is none.
    longest = longest or 1
    axis.set_xlim(0, longest * 1.22)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color=GRID)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    formatter = FuncFormatter(lambda value, _: count_text(value))
    axis.xaxis.set_major_formatter(formatter)


def axis_label(name: str, most: int = LABEL_WIDTH) -> str:
    """A name in lines of at most `most` characters, for axes and legends; nothing of it is left out.

    An unescaped dollar sign would start a formula.
    """
    return "\n".join(_lines(name, most)).replace("$", r"\$")


def axis_labels(names: Sequence[str]) -> list[str]:
    """`axis_label` of every name."""
    return [axis_label(name) for name in names]


def _lines(name: str, most: int) -> list[str]:
    """A name broken behind blanks, hyphens and underscores, or, where it has none of them, after `most` characters."""
    lines = [""]
    for word in re.split(r"(?<=[\s_-])", name):
        if len(lines[-1]) + len(word.rstrip()) > most:
            lines.append("")
        lines[-1] += word
        while len(lines[-1].rstrip()) > most:
            rest = lines[-1][most:]
            lines[-1] = lines[-1][:most]
            lines.append(rest)
    stripped = [line.strip() for line in lines]
    # The first line stays empty where the first word is too long for it.
    return [line for line in stripped if line]


def count_text(value: float) -> str:
    """A large number in three digits and a unit, such as `1.25M`."""
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            scaled = value / scale
            return f"{scaled:.3g}{unit}"
    return f"{value:.4g}"
