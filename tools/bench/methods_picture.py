"""Heat map of the comparison in the README: score of every task after the whole stream, one row a method.

    python tools/bench/methods_picture.py    # docs/benchmarks/pocket_methods.json -> docs/benchmarks/pocket_methods.png

The first run in the file of each name counts (later ones are of another order of tasks); a score of several seeds is
their mean. The zero-shot row is the row before the first task, which all runs share.
"""

from __future__ import annotations

import json
from pathlib import Path

from hidecmoe_jax.report.canvas import canvas, heat, png, titles

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
# Names in the file and in the figure, from no method at all to the upper references.
ROWS = {
    "sequential": "sequential LoRA",
    "cmoe": "cmoe",
    "hide": "hide",
    "hidecmoe": "hidecmoe",
    "per-task": "one LoRA a task, task named",
    "joint": "joint training",
}
TOP = 100.0  # caption6 has no upper end; everything above 100 gets the darkest shade


def rows_of(runs: list[dict]) -> tuple[list[str], list[list[float]]]:
    """Labels and final scores, zero-shot first."""
    first = {}
    for run in runs:
        first.setdefault(run["method"], run)
    labels = ["zero-shot", *ROWS.values()]
    scores = [first["hide"]["matrix"][0]] + [first[name]["matrix"][-1] for name in ROWS]
    return labels, scores


def picture(runs: list[dict]) -> bytes:
    """The heat map as PNG."""
    labels, scores = rows_of(runs)
    figure, axis = canvas(8.4, 3.6)
    heat(axis, scores, top=TOP, text=lambda row, column: f"{scores[row][column]:.0f}")
    axis.set_xticks(range(len(runs[0]["tasks"])), runs[0]["tasks"])
    axis.set_yticks(range(len(labels)), labels)
    titles(axis, "Score of every task after all seven were learned", x="", y="")
    return png(figure)


def main() -> None:
    """Writes the picture."""
    runs = json.loads((FOLDER / "pocket_methods.json").read_text())["methods"]
    (FOLDER / "pocket_methods.png").write_bytes(picture(runs))


if __name__ == "__main__":
    main()
