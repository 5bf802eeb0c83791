"""Pictures of a report, drawn from its document alone, so that an old `report.json` can be drawn again.

Every function takes a document and returns a matplotlib Figure; `run_figures` and `compare_figures` return them as
PNG bytes by file name. Figures are built without pyplot, which keeps a global registry. Colours are the Okabe-Ito set
and single-hue maps, readable for colour-blind people; lines differ in marker and dash as well. A cell that was not
measured is hatched, never drawn as zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from hidecmoe_jax.report.canvas import FAINT, GRID, INK, canvas, heat, png, short, tasks_on, titles

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.")
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
    drawn = {"accuracy_matrix": accuracy_matrix(document)}
    if any(_measured(row) for row in document["matrix"][1:]):
        drawn["forgetting_curves"] = forgetting_curves(document)
    if document["routing_confusion"]:
        drawn["routing_confusion"] = routing_confusion(document)
    if document["stored_parameters"] or document["added_parameters"]:
        drawn["expert_sizes"] = expert_sizes(document)
    found = document.get("growth") or {}
    if "experts" in found:
        drawn["growth"] = growth(document)
    if "worth" in found:
        drawn["expansion"] = expansion(document)
    if any(document["curves"].values()):
        drawn["training_loss"] = training_loss(document)
    return {f"{name}.png": png(figure) for name, figure in drawn.items()}


def compare_figures(document: Document) -> dict[str, bytes]:
    """Draws the figures of a comparison as {file name: PNG}."""
    return {
        "last_and_forgetting.png": png(last_and_forgetting(document)),
        "last_by_task.png": png(last_by_task(document)),
    }


def accuracy_matrix(document: Document):
    """Heat map of R[k,i] with numbers; the stepped line parts tasks already learned from those still to come."""
    tasks, matrix = document["tasks"], document["matrix"]
    figure, axis = canvas(2.6 + 0.85 * len(tasks), 1.9 + 0.5 * len(matrix))
    heat(axis, matrix, top=max([100.0, *_measured(*matrix)]), texts=[[_text(v) for v in row] for row in matrix])
    for task in range(len(tasks)):
        axis.plot([task - 0.5, task + 0.5], [task + 0.5] * 2, color=INK, linewidth=1.6, solid_capstyle="butt")
        axis.plot([task + 0.5] * 2, [task + 0.5, task + 1.5], color=INK, linewidth=1.6, solid_capstyle="butt")
    tasks_on(axis.xaxis, tasks)
    rows = ["zero-shot", *(f"after {short(task)}" for task in tasks)]
    axis.set_yticks(range(len(matrix)), rows[: len(matrix)])
    titles(axis, f"Score on every task after every stage \u00b7 {document['method']}", x="tested on", y="")
    return figure


def forgetting_curves(document: Document):
    """Score on each task against the stage: dotted until the task is learned, solid from then on."""
    tasks, matrix = document["tasks"], document["matrix"]
    figure, axis = canvas(3.6 + 0.75 * len(matrix), 4.0)
    for index, task in enumerate(tasks):
        points = [(stage, row[index]) for stage, row in enumerate(matrix) if row[index] is not None]
        before = [point for point in points if point[0] <= index + 1]
        after = [point for point in points if point[0] > index]
        style = {"color": PALETTE[index % len(PALETTE)], "linewidth": 1.8}
        if len(before) > 1:
            axis.plot(*zip(*before, strict=True), **{**style, "linestyle": ":", "linewidth": 1.1, "alpha": 0.7})
        if after:
            axis.plot(
                *zip(*after, strict=True),
                **style,
                linestyle=DASHES[index // len(PALETTE) % len(DASHES)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=5.5,
                markeredgecolor="white",
                label=short(task),
            )
    axis.set_xticks(
        range(len(matrix)), ["zero-shot", *map(short, tasks)], rotation=30, ha="right", rotation_mode="anchor"
    )
    axis.set_ylim(0, max([100.0, *_measured(*matrix)]) * 1.03)
    axis.set_xlim(-0.2, len(matrix) - 0.8)
    axis.grid(axis="y", color=GRID)
    axis.legend(title="tested on", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    titles(axis, f"What stays of each task \u00b7 {document['method']}", x="after learning", y="score")
    return figure


def routing_confusion(document: Document):
    """Share of each task's test items routed to each expert, with counts; rows are the true task.

    A column for inputs of no known task stands beside them where the gate found any.
    """
    tasks, counts, columns = document["tasks"], document["routing_confusion"], document["tasks"]
    located = document.get("locator_confusion")
    if located and any(row[-1] for row in located["counts"]):
        counts, columns = located["counts"], located["columns"]
    shares = [[100 * value / sum(row) if sum(row) else None for value in row] for row in counts]
    texts = [
        ["\u2013" if share is None else f"{share:.0f}%\n{value}" for share, value in zip(*rows, strict=True)]
        for rows in zip(shares, counts, strict=True)
    ]
    figure, axis = canvas(2.6 + 0.85 * len(columns), 1.9 + 0.62 * len(tasks))
    heat(axis, shares, top=100.0, texts=texts)
    tasks_on(axis.xaxis, columns)
    axis.set_yticks(range(len(tasks)), [short(task) for task in tasks])
    accuracy = document["routing_accuracy"]
    tail = "" if accuracy is None else f" \u00b7 {accuracy:.1f}% to their own expert"
    titles(axis, f"Routed{tail}", x="routed to", y="true task")
    return figure


def expert_sizes(document: Document):
    """Parameters served, archived and trained by part, and below them what each task added."""
    kinds = [(kind, document[f"{kind}_parameters"]) for kind in ("stored", "archived", "trained")]
    kinds = [(kind, counts) for kind, counts in kinds if counts]
    sizes = document["added_parameters"]
    heights = [0.55 * len(rows) + 0.9 for rows in (kinds, sizes) if rows]
    figure, axes = canvas(8.0, sum(heights) + 0.3, rows=len(heights), ratios=heights)
    axes = list(axes) if len(heights) > 1 else [axes]
    if kinds:
        _stacked(axes[0], kinds)
        titles(axes[0], f"Parameters beyond the frozen base \u00b7 {document['method']}", x="", y="")
    if sizes:
        _stacked(axes[-1], [(short(task), part) for task, part in sizes.items()])
        titles(axes[-1], "Added by each task", x="parameters", y="")
    return figure


def growth(document: Document):
    """Experts that every task added in every layer, shaded by how often its probe was picked there; beside them how
    often the newest task's tokens picked each task's experts while it was probed."""
    found, tasks = document["growth"], document["tasks"]
    layers, newest = len(found["experts"][0]), next((used for used in reversed(found.get("used", [])) if used), None)
    panels = 1 + (newest is not None)
    figure, axes = canvas((2.6 + 0.62 * layers) * panels, 1.6 + 0.55 * len(found["experts"]), columns=panels)
    axes = list(axes) if panels > 1 else [axes]
    picked = [row or [None] * layers for row in found["frequency"]]
    shares = [[100 * (share or 0.0) for share in row] for row in picked]
    texts = [list(map(_growth_text, *rows)) for rows in zip(found["experts"], picked, strict=True)]
    _by_layer(axes[0], shares, texts, tasks)
    titles(axes[0], f"Experts added, and tokens that picked the probe \u00b7 {document['method']}", x="layer", y="")
    if newest is not None:
        shares = [[100 * share for share in row] for row in newest]
        _by_layer(axes[1], shares, [[f"{share:.0f}%" if share else "\u00b7" for share in row] for row in shares], tasks)
        titles(axes[1], f"Tokens of {short(tasks[len(newest)])} that picked each task's experts", x="layer", y="")
    return figure


def _by_layer(axis, rows: list[list[float]], texts: list[list[str]], tasks: list[str], *, top: float = 100.0) -> None:
    """A heat map with one row a task and one column a layer."""
    heat(axis, rows, top=top, texts=texts)
    axis.set_xticks(range(len(rows[0])), range(len(rows[0])))
    axis.set_yticks(range(len(rows)), [short(task) for task in tasks[: len(rows)]])


def _growth_text(added: int, share: float | None) -> str:
    mark = f"+{added}" if added else "\u00b7"
    return mark if share is None else f"{mark}\n{100 * share:.0f}%"


def expansion(document: Document):
    """What every layer was worth to every task; the chosen layers are framed."""
    found, tasks = document["growth"], document["tasks"]
    layers = len(found["worth"][0])
    figure, axis = canvas(2.6 + 0.62 * layers, 1.6 + 0.5 * len(found["worth"]))
    texts = [[f"{value:.2f}" if any(row) else "\u00b7" for value in row] for row in found["worth"]]
    _by_layer(axis, found["worth"], texts, tasks, top=max([1e-6, *_measured(*found["worth"])]))
    for layer in found["expanded"]:
        axis.axvspan(layer - 0.48, layer + 0.48, fill=False, edgecolor=INK, linewidth=1.6)
    titles(axis, f"What expanding a layer is worth, by {found['by']} \u00b7 {document['method']}", x="layer", y="")
    return figure


def training_loss(document: Document):
    """Training loss stage after stage: every value faint, a moving average over a fortieth of the stage on top."""
    curves = {name: curve for name, curve in document["curves"].items() if curve}
    figure, axis = canvas(9.0, 3.6)
    start, centres, shown = 0, [], []
    for index, curve in enumerate(curves.values()):
        points = [(start + step, loss) for step, loss in curve if loss is not None]
        length = max(step for step, _ in curve) + 1
        if points:
            color = PALETTE[index % len(PALETTE)]
            steps, losses = zip(*points, strict=True)
            smooth = _moving_average(losses, max(1, len(losses) // 40))
            axis.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
            axis.plot(steps, smooth, color=color, linewidth=1.8)
            shown += smooth
        if index:
            axis.axvline(start, color=GRID, linewidth=1.0, zorder=0)
        centres.append(start + length / 2)
        start += length
    axis.set_xticks(
        centres,
        [short(name) for name in curves],
        rotation=30 if len(curves) > 4 else 0,
        ha="right" if len(curves) > 4 else "center",
        rotation_mode="anchor",
    )
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(0, max(start, 1))
    # One spike at the first steps would press all the rest against the axis; it stays visible up to the frame.
    axis.set_ylim(0, max([*shown, 1e-6]) * 1.15)
    axis.grid(axis="y", color=GRID)
    titles(axis, f"Training loss, {start} steps \u00b7 {document['method']}", x="", y="loss per answer token")
    return figure


def last_and_forgetting(document: Document):
    """Bars of Last and forgetting per method; whiskers are one standard deviation over seeds, dots the seeds."""
    methods = document["methods"]
    figure, axes = canvas(9.5, 1.3 + 0.5 * len(methods), columns=2)
    for axis, key, title in (
        (axes[0], "last", "Last \u00b7 higher is better"),
        (axes[1], "forgetting", "Forgetting \u00b7 lower is better"),
    ):
        for place, method in enumerate(methods):
            _method_bar(axis, place, method, key=key)
        values = [method[key] for method in methods if method[key] is not None]
        _rows(axis, [short(method["label"], 26) for method in methods], longest=max([*values, 1.0]))
        low = min([*values, 0.0])
        axis.set_xlim(left=low * 1.25)
        if low < 0:
            axis.axvline(0, color=FAINT, linewidth=0.8)
        titles(axis, title, x="points", y="")
    axes[1].set_yticklabels([])
    return figure


def last_by_task(document: Document):
    """Last score of each task, grouped by task, one colour a method."""
    tasks, methods = document["tasks"], document["methods"]
    width = 0.82 / len(methods)
    figure, axis = canvas(max(7.0, 1.8 + len(tasks) * max(0.9, 0.24 * len(methods))), 4.2)
    top = 100.0
    for index, method in enumerate(methods):
        row = _final_row(method)
        stds = [_std([_final_row(seed)[task] for seed in method["seeds"]["per_seed"]]) for task in range(len(tasks))]
        places = [task + (index - (len(methods) - 1) / 2) * width for task in range(len(tasks))]
        heights = [value or 0.0 for value in row]
        top = max(top, *(height + std for height, std in zip(heights, stds, strict=True)))
        axis.bar(
            places,
            heights,
            width * 0.92,
            color=PALETTE[index % len(PALETTE)],
            label=short(method["label"], 26),
            yerr=stds if any(stds) else None,
            error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2},
        )
        for place, value in zip(places, row, strict=True):
            if value is None:
                axis.text(place, 1, "\u2013", ha="center", va="bottom", color=FAINT, fontsize=9)
    axis.set_xticks(
        range(len(tasks)),
        [short(task) for task in tasks],
        rotation=30 if len(tasks) > 4 else 0,
        ha="right" if len(tasks) > 4 else "center",
        rotation_mode="anchor",
    )
    axis.tick_params(axis="x", length=0)
    axis.set_ylim(0, top * 1.03)
    axis.grid(axis="y", color=GRID)
    figure.legend(loc="outside lower center", ncols=min(3, len(methods)), frameon=False, fontsize=9)
    titles(axis, "Score of each task after the last stage", x="", y="score")
    return figure


def similarity_map(layers_LTT, tasks: Sequence[str], *, legacy: bool):
    """Similarity of the tasks' own models by layer: the mean over pairs as bars, the pairs as heat below."""
    count, layers = len(tasks), len(layers_LTT)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    figure, (top, below) = canvas(
        2.5 + 0.5 * layers, 2.6 + 0.28 * len(pairs), rows=2, ratios=(2, 0.4 + 0.28 * len(pairs))
    )
    values = [[float(layers_LTT[layer][i][j]) for layer in range(layers)] for i, j in pairs]
    top.bar(range(layers), [sum(column) / len(pairs) for column in zip(*values, strict=False)], color=INK, width=0.6)
    top.set_xticks(range(layers), range(layers))
    top.set_ylim(0, 1.02)
    kind = "legacy (unpaired, biased RBF)" if legacy else "paired, debiased linear"
    titles(top, f"CKA of single-task models \u00b7 {kind}", x="", y="mean over pairs")
    heat(below, values, top=1.0, texts=[[f"{value:.2f}" for value in row] for row in values])
    below.set_xticks(range(layers), range(layers))
    below.set_yticks(range(len(pairs)), [f"{short(tasks[i])} / {short(tasks[j])}" for i, j in pairs])
    titles(below, "", x="decoder layer", y="")
    return figure


def _stacked(axis, kinds: Sequence[tuple[str, Mapping[str, int]]]) -> None:
    left = [0] * len(kinds)
    for part, color in PART_COLORS.items():
        widths = [_part(counts, part) for _, counts in kinds]
        if any(widths):
            axis.barh(range(len(kinds)), widths, left=left, color=color, height=0.62, label=part)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        axis.annotate(
            _count(total), (total, place), (4, 0), textcoords="offset points", va="center", fontsize=9, color=INK
        )
    _rows(axis, [kind for kind, _ in kinds], longest=max(left))
    if any(left):
        axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _part(counts: Mapping[str, int], part: str) -> int:
    if part == "other":
        known = sum(counts.get(name, 0) for name in PART_COLORS if name != "other")
        return counts.get("total", known) - known
    return counts.get(part, 0)


def _method_bar(axis, place: int, method: Document, *, key: str) -> None:
    value = method[key]
    if value is None:
        axis.annotate(
            "not measured", (0, place), (4, 0), textcoords="offset points", va="center", fontsize=9, color=FAINT
        )
        return
    seeds = [seed[key] for seed in method["seeds"]["per_seed"]]
    std = method["seeds"]["spread"][key]["std"]
    axis.barh(
        place,
        value,
        color=PALETTE[place % len(PALETTE)],
        height=0.62,
        xerr=std,
        error_kw={"ecolor": INK, "elinewidth": 1.1, "capsize": 3},
    )
    if std is not None:
        axis.plot(seeds, [place] * len(seeds), "o", color="white", markeredgecolor=INK, markersize=4, zorder=3)
    edge = max([value, 0.0, *seeds, value + (std or 0.0)])
    text = f"{value:.1f}" if std is None else f"{value:.1f} \u00b1 {std:.1f}"
    axis.annotate(text, (edge, place), (7, 0), textcoords="offset points", va="center", fontsize=9, color=INK)


def _rows(axis, labels: Sequence[str], *, longest: float) -> None:
    """Horizontal bars from top to bottom with room for a number behind the longest."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlim(0, (longest or 1) * 1.22)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color=GRID)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))


def _final_row(entry: Document) -> list[float | None]:
    """Row T, or the zero-shot row of a method that never learns."""
    rows = entry["matrix"]
    return rows[-1] if any(_measured(row) for row in rows[1:]) else rows[0]


def _std(values: Sequence[float | None]) -> float:
    return statistics.stdev(values) if len(values) > 1 and None not in values else 0.0


def _moving_average(values: Sequence[float], window: int) -> list[float]:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[end] - sums[max(0, end - window)]) / min(window, end) for end in range(1, len(sums))]


def _measured(*rows: Sequence[float | None]) -> list[float]:
    return [value for row in rows for value in row if value is not None]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _count(value: float) -> str:
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.4g}"
