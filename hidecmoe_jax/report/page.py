"""Report files: `report.json`, the figures, and one self-contained HTML page.

The page is a view of the document and adds no number of its own: what the document holds as null is shown as "not
measured", together with the cells that a metric would have needed. Figures and thumbnails are inlined, so the file can
be mailed or archived alone, and it holds no script. Answers of a model are untrusted text: everything goes through
Jinja2's autoescape.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.images import load
from hidecmoe_jax.report.comparison_figures import compare_figures
from hidecmoe_jax.report.document import PARTS
from hidecmoe_jax.report.figures import run_figures
from hidecmoe_jax.storage.files import write_bytes, write_json

THUMBNAIL = 112
FIGURES = "figures"
# key in the document, name on the page, how to read it
READING = (
    ("last", "Last", "Mean score over all tasks after the last one was learned. Higher is better."),
    ("last_bounded", "Last, bounded tasks", "Last without the tasks whose scores can exceed 100, so that these do not "
     "dominate the mean."),
    ("avg", "Avg", "For each task the mean of its scores from the moment it was learned; then the mean over tasks."),
    ("maa", "MAA", "After each lesson the mean over the tasks learned so far; then the mean over lessons."),
    ("mft", "MFT", "Mean score on each task right after it was learned, before it could be forgotten."),
    ("bwt_t_minus_1", "BWT, divided by T − 1", "Change of the scores from right after learning to the end, mean over "
     "all tasks but the last. Negative means forgotten."),
    ("bwt_t", "BWT, divided by T", "The same sum divided by the number of all tasks; equals Last minus MFT."),
    ("forgetting", "Forgetting", "Best score on a task since it was learned minus its final score, mean over all tasks "
     "but the last. Lower is better."),
    ("fwt", "FWT", "Score on a task just before it is learned minus the zero-shot score. Positive means that earlier "
     "tasks helped."),
    ("routing_accuracy", "Routing accuracy", "Percentage of test items that were routed to the expert of their own "
     "task."),
    ("named_task_last", "Last, task named", "Last of the same model with the true task given instead of routing."),
    ("named_task_gap", "Gap to named task", "Last with the task named minus Last: the points lost to routing."),
    ("bwt_named_task", "BWT, task named", "BWT (divided by T) with the task named: the part of forgetting that is due "
     "to the experts."),
    ("bwt_routing", "BWT by routing", "BWT (divided by T) minus BWT with the task named: the part that is due to "
     "inputs of old tasks being routed elsewhere."),
)  # fmt: skip
FLOPS = (
    ("forward_base", "plain model"),
    ("forward_method", "with experts and gate"),
    ("locator_prefill", "second prefill for the locator"),
    ("total", "total"),
)
CAPTIONS = {
    "accuracy_matrix": "Score on each task (columns) after each lesson (rows). Above the stepped line a task has "
    "not been learned yet; a column that gets paler downwards is forgotten. Hatched cells were not measured. The "
    "darkest shade stands for 100, or for the highest score where one exceeds 100.",
    "forgetting_curves": "Each line is one task: dotted before it is learned, solid from then on. A solid line that "
    "falls means forgetting.",
    "routing_confusion": "Share and number of each task's test items (rows) routed to each task's expert (columns). "
    "Items on the diagonal were routed correctly; “unknown” counts items that the gate assigned to no task.",
    "expert_sizes": "Parameters beyond the frozen base: stored is what is needed to answer, archived what the run "
    "folder keeps, trained what the optimiser updated in the largest stage. Below, what each task added.",
    "growth": "Experts that each task (rows) added in each layer (columns): +1 for one, a dot for none. Shade and "
    "percentage are the share of the probing records' tokens that the router assigned to the probe; the first task is "
    "not probed. A second panel, where there is one, shows which earlier tasks' experts (rows) the tokens of the last "
    "probed task were assigned to.",
    "expansion": "Benefit of a separate expert in each layer (columns) for each task (rows), measured after the task "
    "was learned. By loss: how much the loss falls when the fused experts of the layer are replaced with the task's "
    "own. By cka: dissimilarity of the layer's features to those under earlier tasks' experts. By probe: share of "
    "tokens that a router assigns to the task's expert rather than to earlier ones. Framed layers are expanded. The "
    "first task has no earlier one to be compared with.",
    "training_loss": "Loss per answer token, stage after stage: faint as logged, bold as moving average.",
    "last_and_forgetting": "Bars are means over seeds, whiskers one standard deviation, dots single seeds.",
    "last_by_task": "Score of each task after the last lesson, one bar for each method.",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One test question with the final answer.

    Attributes:
      task: name of the task it belongs to.
      question, answer, prediction: texts; `answer` is the reference.
      routing: weight by expert, empty where nothing was routed.
      image: path of the picture, None for questions without one.
    """

    task: str
    question: str
    answer: str
    prediction: str
    routing: Mapping[str, float]
    image: str | None


def write_report(folder: Path, document: dict[str, Any], samples: Sequence[Sample]) -> None:
    """Writes `report.json`, `report.html` and `figures/*.png` into a folder, each file whole or not at all.

    Args:
      document: of one run (`run_document`) or of several (`compare_document`).
      samples: shown on the page only.
    """
    several = "methods" in document
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", document)
    common = compare_figures(document) if several else {}
    by_method = list(map(run_figures, _methods(document)))
    _write_figures(folder, common)
    for label, figures in zip(_labels(document), by_method, strict=True):
        _write_figures(folder, figures, prefix=f"{label}_" if several else "")
    html = page(document, samples, common=common, by_method=by_method)
    write_bytes(folder / "report.html", html.encode())


def _write_figures(folder: Path, figures: Mapping[str, bytes], *, prefix: str = "") -> None:
    for name, image in figures.items():
        write_bytes(folder / FIGURES / f"{prefix}{name}", image)


def page(
    document: Mapping[str, Any],
    samples: Sequence[Sample],
    *,
    common: Mapping[str, bytes],
    by_method: Sequence[Mapping[str, bytes]],
) -> str:
    """Renders the page.

    Args:
      common: figures of a comparison by file name.
      by_method: figures of each method by file name.
    """
    methods = _methods(document)
    differing, shared = _settings(methods)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=" · ".join(method["label"] for method in methods),
            several="methods" in document,
            tasks=document["tasks"],
            scorers=document["scorers"],
            methods=methods,
            budget=document.get("budget"),
            reading=_reading(methods),
            parts=("total", *PARTS),
            flops=FLOPS,
            phases=_phases(methods),
            common=_pictures(common),
            own=list(map(_pictures, by_method)),
            samples=[(sample, _thumbnail(sample.image), _by_weight(sample.routing)) for sample in samples],
            differing=differing,
            shared=shared,
        )
    )


@functools.cache  # compiling the template takes longer than filling it in
def _environment() -> Environment:
    """Template environment: escapes all values, and raises for names that are not set."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["bytes"] = _bytes
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    environment.filters["flops"] = _flops
    return environment


def _methods(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The documents of all methods; a single run is labelled with its method's name."""
    return document["methods"] if "methods" in document else [{"label": document["method"], **document}]


def _reading(methods: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Rows of the headline table; without open-ended tasks, `last_bounded` would repeat `last`."""
    open_ended = any(method.get("open_ended") for method in methods)
    return [row for row in READING if open_ended or row[0] != "last_bounded"]


def _phases(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Phases that any method timed: learning and its stages first."""
    phases: dict[str, None] = {}  # an ordered set
    for method in methods:
        phases |= dict.fromkeys(method["seconds"])
    return sorted(phases, key=lambda phase: not phase.startswith("learning"))


def _settings(methods: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, list]], list[tuple[str, str]]]:
    """Settings that differ, as (name, value of each method), and those that all methods share, as (name, value)."""
    settings = [_flat(method["settings"]) for method in methods]
    names: dict[str, None] = {}  # an ordered set
    for values in settings:
        names |= dict.fromkeys(values)
    differing = []
    shared = []
    for name in names:
        row = [values.get(name) for values in settings]
        if len(set(row)) > 1:
            differing.append((name, row))
        else:
            shared.append((name, row[0]))
    return differing, shared


def _labels(document: Mapping[str, Any]) -> list[str]:
    """File name prefixes, different for each method whatever its label holds."""
    labels = []
    for number, method in enumerate(_methods(document), 1):
        safe = re.sub("[^A-Za-z0-9_-]+", "-", method["label"])
        labels.append(f"{number}_{safe}")
    return labels


def _pictures(figures: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Figures as the template takes them."""
    pictures = []
    for file, image in figures.items():
        stem = file.removesuffix(".png")
        name = stem.replace("_", " ")
        pictures.append({"stem": stem, "name": name, "caption": CAPTIONS[stem], "source": _inline(image, "png")})
    return pictures


def _inline(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _thumbnail(path: str | None) -> str | None:
    """The picture as the model sees it, small; None where it is gone or cannot be read (the page shows a note)."""
    if path is None:
        return None
    try:
        pixels = load(path, THUMBNAIL)
    except DataError:
        return None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return _inline(buffer.getvalue(), "jpeg")


def _by_weight(routing: Mapping[str, float]) -> list[tuple[str, float]]:
    """Experts and their weights, the largest weight first."""
    return sorted(routing.items(), key=lambda pair: -pair[1])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as {dotted name: text}; a list is one value."""
    texts: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            texts |= _flat(value, f"{prefix}{name}.")
        else:
            texts[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return texts


def _number(value: float, digits: int = 2) -> str:
    """A number with thousands separators and a true minus sign."""
    text = f"{value:,.{digits}f}"
    zero = f"{0:.{digits}f}"
    # A tiny negative number is rounded to -0.
    return zero if text == f"-{zero}" else text.replace("-", "−")


def _bytes(count: int) -> str:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def _flops(count: int) -> str:
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= scale:
            return f"{count / scale:.4g} {unit}"
    return str(count)
