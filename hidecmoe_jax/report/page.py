"""Writes a report to disk: `report.json`, the figures, and one HTML page that needs nothing beside itself.

The page is a view of the document and adds no number of its own: what the document holds as null is shown as "not
measured", together with the cells that a metric would have needed. Figures and thumbnails are inlined, so the file can
be mailed or archived alone, and it holds no script. Answers of a model are hostile text: everything goes through
Jinja2's autoescape.
"""

from __future__ import annotations

import base64
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
from hidecmoe_jax.report.document import PARTS
from hidecmoe_jax.report.figures import compare_figures, run_figures
from hidecmoe_jax.storage.files import write_bytes, write_json

THUMBNAIL = 112
FIGURES = "figures"
# name in the document, name on the page, how to read it
READING = (
    ("last", "Last", "Mean score over all tasks after the last one was learned. Higher is better."),
    ("last_bounded", "Last, bounded tasks", "Last without the tasks whose scores can exceed 100, so that these do not "
     "carry the mean."),
    ("avg", "Avg", "For each task the mean of its scores from the moment it was learned; then the mean over tasks."),
    ("maa", "MAA", "After each stage the mean over the tasks learned so far; then the mean over stages."),
    ("mft", "MFT", "Mean score on each task right after it was learned: how well the method learns at all."),
    ("bwt_t_minus_1", "BWT, divided by T − 1", "How much scores changed from right after learning to the end, mean "
     "over all tasks but the last. Negative means forgotten."),
    ("bwt_t", "BWT, divided by T", "The same sum divided by the number of all tasks; equals Last minus MFT."),
    ("forgetting", "Forgetting", "Best score a task ever had since it was learned minus its final score, mean over all "
     "tasks but the last. Lower is better."),
    ("fwt", "FWT", "Score on a task just before it is learned minus the zero-shot score. Positive means that earlier "
     "tasks helped."),
    ("routing_accuracy", "Routing accuracy", "Share in percent of test items that were sent to the expert of their own "
     "task."),
    ("named_task_last", "Last, task named", "Last of the same model when it is told the task instead of routing."),
    ("named_task_gap", "Gap to named task", "Last with the task named minus Last: what routing costs."),
    ("bwt_named_task", "BWT, task named", "BWT (divided by T) with the task named: what happened to the experts."),
    ("bwt_routing", "BWT by routing", "The rest of BWT: what old tasks lost because inputs are routed elsewhere."),
)  # fmt: skip
FLOPS = (
    ("forward_base", "plain model"),
    ("forward_method", "with experts and gate"),
    ("locator_prefill", "second prefill for the locator"),
    ("total", "total"),
)
CAPTIONS = {
    "accuracy_matrix": "Score on each task (columns) after each stage (rows). Above the stepped line a task has "
    "not been learned yet; a column that gets paler downwards is forgotten. Hatched cells were not measured. The "
    "darkest shade stands for 100, or for the highest score where one exceeds 100.",
    "forgetting_curves": "Each line is one task: dotted before it is learned, solid from then on. A line that falls "
    "is forgotten.",
    "routing_confusion": "Share and number of each task's test items (rows) sent to each expert (columns); "
    "unknown are inputs that the gate took for none of them. The diagonal is right.",
    "expert_sizes": "Parameters beyond the frozen base: what is served, what is kept on disk, what was trained, "
    "and what each task added.",
    "growth": "Experts that each task (rows) added in each layer (columns): +1 for one, a dot for none. The shade and "
    "the percentage say how many tokens of the measuring records picked the probe; the first task is not probed. "
    "Beside it, how many tokens of the task probed last picked the experts of each earlier task (rows).",
    "expansion": "What each layer (columns) was worth to each task (rows) once learned: the fall of the answer loss "
    "where the fused layer gets the task's own expert back, the unlikeness of features to those under earlier "
    "tasks' experts, or the part of tokens that prefer the task's expert to earlier ones. Framed layers are expanded. "
    "The first task has nothing to be compared with.",
    "training_loss": "Loss per answer token, stages one after the other: faint as logged, bold as moving average.",
    "last_and_forgetting": "Bars are means over seeds, whiskers one standard deviation, dots single seeds.",
    "last_by_task": "Score of each task after the last stage, one bar a method.",
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
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", document)
    common = compare_figures(document) if "methods" in document else {}
    own = [run_figures(method) for method in _methods(document)]
    for name, image in common.items():
        write_bytes(folder / FIGURES / name, image)
    for label, figures in zip(_labels(document), own, strict=True):
        for name, image in figures.items():
            write_bytes(folder / FIGURES / (f"{label}_{name}" if "methods" in document else name), image)
    write_bytes(folder / "report.html", page(document, samples, common=common, own=own).encode())


def page(
    document: Mapping[str, Any],
    samples: Sequence[Sample],
    *,
    common: Mapping[str, bytes],
    own: Sequence[Mapping[str, bytes]],
) -> str:
    """Renders the page.

    Args:
      common: figures of a comparison by file name.
      own: figures of each method by file name.
    """
    methods = _methods(document)
    settings = [_flat(method["settings"]) for method in methods]
    names = list(dict.fromkeys(name for values in settings for name in values))
    rows = [(name, [values.get(name) for values in settings]) for name in names]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "bytes": _bytes, "percent": lambda share: f"{100 * share:.1f}"}
    environment.filters |= {"flops": _flops}
    return environment.get_template("page.html.j2").render(
        title=_title(methods),
        several="methods" in document,
        tasks=document["tasks"],
        scorers=document["scorers"],
        methods=methods,
        budget=document.get("budget"),
        reading=[row for row in READING if row[0] != "last_bounded" or any(m.get("open_ended") for m in methods)],
        parts=("total", *PARTS),
        flops=FLOPS,
        phases=sorted(
            dict.fromkeys(name for method in methods for name in method["seconds"]),
            key=lambda phase: not phase.startswith("learning"),
        ),
        common=_pictures(common),
        own=[_pictures(figures) for figures in own],
        samples=[(sample, _thumbnail(sample.image), _routed(sample.routing)) for sample in samples],
        differing=[row for row in rows if len(set(row[1])) > 1],
        shared=[(name, values[0]) for name, values in rows if len(set(values)) == 1],
    )


def _methods(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return document["methods"] if "methods" in document else [{"label": document["method"], **document}]


def _labels(document: Mapping[str, Any]) -> list[str]:
    """File name prefixes, different for each method whatever its label holds."""
    return [f"{n}_{re.sub('[^A-Za-z0-9_-]+', '-', m['label'])}" for n, m in enumerate(_methods(document), 1)]


def _title(methods: Sequence[Mapping[str, Any]]) -> str:
    return " · ".join(method["label"] for method in methods)


def _pictures(figures: Mapping[str, bytes]) -> list[dict[str, str]]:
    stems = [(name.removesuffix(".png"), image) for name, image in figures.items()]
    return [
        {"stem": stem, "name": stem.replace("_", " "), "caption": CAPTIONS[stem], "source": _inline(image, "png")}
        for stem, image in stems
    ]


def _inline(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _thumbnail(path: str | None) -> str | None:
    """The picture as the model sees it, small; None where it is gone or cannot be read (the page says so)."""
    if path is None:
        return None
    try:
        pixels = load(path, THUMBNAIL)
    except DataError:
        return None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return _inline(buffer.getvalue(), "jpeg")


def _routed(routing: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(routing.items(), key=lambda pair: -pair[1])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as {dotted name: text}, lists in one piece."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def _number(value: float, digits: int = 2) -> str:
    text = f"{value:,.{digits}f}"
    zero = f"{0:.{digits}f}"
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
