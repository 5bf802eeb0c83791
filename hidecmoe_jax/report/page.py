"""Report files: `report.json`, the page, and beside it the figures (PNG, SVG) and tables (CSV, LaTeX).

The page is a view of the document and adds no number of its own: what the document holds as null is shown as "not
measured", together with the cells that a metric would have needed. Figures and thumbnails are inlined, so the page can
be mailed or archived alone (its links to single figures and tables then lead nowhere), and it holds no script. Answers
of a model are untrusted text: everything goes through Jinja2's autoescape.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hidecmoe_jax.core.printable import printable
from hidecmoe_jax.data.images import LIMITS, Limits
from hidecmoe_jax.report.alt_texts import alternative_text
from hidecmoe_jax.report.comparison_figures import compare_figures
from hidecmoe_jax.report.document import PARTS
from hidecmoe_jax.report.figures import run_figures
from hidecmoe_jax.report.first_screen import compare_screen, run_screen
from hidecmoe_jax.report.gallery import Sample, groups, inline
from hidecmoe_jax.report.numbers import number, operations, size
from hidecmoe_jax.report.rewordings import lowest_sentence, reading_rows, sides_sentence, wording_rows
from hidecmoe_jax.report.tables import Table, common_tables, csv_text, latex_text, run_tables
from hidecmoe_jax.report.verdict import verdict_of
from hidecmoe_jax.report.wording import CAPTIONS, FLOPS
from hidecmoe_jax.scoring.score import bounded
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.files import write_bytes

FIGURES = "figures"
TABLES = "tables"
REPORT = "report.json"
# The figure of the first screen.
FIRST = ("outcome", "last_and_forgetting")


def write_report(
    folder: Path,
    document: dict[str, Any],
    samples: Sequence[Sample],
    *,
    limits: Limits = LIMITS,
    own_reports: Mapping[str, str] | None = None,
) -> None:
    """Writes `report.json`, `report.html`, `figures/*` and `tables/*` into a folder, each file whole or not at all.

    Args:
      document: of one run (`run_document`) or of several (`compare_document`).
      samples: shown on the page only.
      limits: of the pictures of the samples.
      own_reports: the page of each method of a comparison, relative to the folder, by label.
    """
    several = "methods" in document
    methods = _methods(document)
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    (folder / TABLES).mkdir(parents=True, exist_ok=True)
    seal.write_json(folder / REPORT, document)
    common = compare_figures(document) if several else {}
    by_method = list(map(run_figures, methods))
    _write_figures(folder, common)
    _write_tables(folder, common_tables(methods))
    for prefix, method, figures in zip(_prefixes(document), methods, by_method, strict=True):
        _write_figures(folder, figures, prefix=prefix)
        _write_tables(folder, run_tables(method), prefix=prefix)
    html = page(document, samples, common=common, by_method=by_method, limits=limits, own_reports=own_reports)
    write_bytes(folder / "report.html", html.encode())


def _write_figures(folder: Path, figures: Mapping[str, bytes], *, prefix: str = "") -> None:
    for name, image in figures.items():
        write_bytes(folder / FIGURES / f"{prefix}{name}", image)


def _write_tables(folder: Path, tables: Sequence[Table], *, prefix: str = "") -> None:
    for table in tables:
        write_bytes(folder / TABLES / f"{prefix}{table.name}.csv", csv_text(table).encode())
        write_bytes(folder / TABLES / f"{prefix}{table.name}.tex", latex_text(table).encode())


def page(
    document: Mapping[str, Any],
    samples: Sequence[Sample],
    *,
    common: Mapping[str, bytes],
    by_method: Sequence[Mapping[str, bytes]],
    limits: Limits = LIMITS,
    own_reports: Mapping[str, str] | None = None,
) -> str:
    """Renders the page.

    Args:
      common: figures of a comparison by file name.
      by_method: figures of each method by file name.
      limits, own_reports: as in `write_report`.
    """
    several = "methods" in document
    methods = _methods(document)
    prefixes = _prefixes(document)
    differing, shared = _settings(methods)
    common_pictures = _pictures(common, document)
    own_pictures = []
    for prefix, method, figures in zip(prefixes, methods, by_method, strict=True):
        own_pictures.append(_pictures(figures, method, prefix))
    first_candidates = common_pictures if several else own_pictures[0]
    first = next((picture for picture in first_candidates if picture["stem"] in FIRST), None)
    template = environment().get_template("page.html.j2")
    return template.render(
        title=" · ".join(method["label"] for method in methods),
        several=several,
        tasks=document["tasks"],
        scorers=document["scorers"],
        titles=methods[0].get("titles", {}),
        methods=methods,
        prefixes=prefixes,
        screen=compare_screen(document) if several else run_screen(document),
        first=first,
        sizes=list(map(_size_of_a_task, methods)),
        task_rows=[verdict_of(method).tasks for method in methods],
        groups=groups(samples, methods[0].get("confusions") or {}, limits),
        own_reports=[(label, quote(file)) for label, file in (own_reports or {}).items()],
        budget=document.get("budget"),
        reading=_reading(methods),
        wordings=list(map(wording_rows, methods)),
        wording_notes=[[lowest_sentence(method), sides_sentence(method)] for method in methods],
        parts=("total", *PARTS),
        flops=FLOPS,
        phases=_phases(methods),
        common=common_pictures,
        own=own_pictures,
        differing=differing,
        shared=shared,
    )


def _printable(value: Any) -> Any:
    """A value of a template without control characters; the output of a macro is a text that was made so before."""
    return printable(value) if type(value) is str else value


@functools.cache  # compiling the template takes longer than filling it in
def environment() -> Environment:
    """Returns the template environment: it escapes all values, spells their control characters out, and raises for
    names that are not set."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["bytes"] = size
    environment.filters["flops"] = operations
    environment.filters["by_weight"] = _by_weight
    environment.tests["bounded"] = bounded
    return environment


def _methods(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The documents of all methods; a single run is labelled with its method's name."""
    return document["methods"] if "methods" in document else [{"label": document["method"], **document}]


def _size_of_a_task(method: Mapping[str, Any]) -> int | None:
    """Bytes on disk that a lesson took on average; None where not recorded."""
    sizes = method.get("bytes_per_task")
    return round(sum(sizes.values()) / len(sizes)) if sizes else None


def _reading(methods: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Rows of the headline table; without open-ended tasks, `last_bounded` would repeat `last`."""
    open_ended = any(method.get("open_ended") for method in methods)
    return [row for row in reading_rows(methods) if open_ended or row[0] != "last_bounded"]


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


def _prefixes(document: Mapping[str, Any]) -> list[str]:
    """File name prefixes, different for each method whatever its label holds; a single run needs none."""
    if "methods" not in document:
        return [""]
    prefixes = []
    for place, method in enumerate(document["methods"], 1):
        safe = re.sub("[^A-Za-z0-9_-]+", "-", method["label"])
        prefixes.append(f"{place}_{safe}_")
    return prefixes


def _pictures(figures: Mapping[str, bytes], document: Mapping[str, Any], prefix: str = "") -> list[dict[str, str]]:
    """Figures as the template takes them."""
    pictures = []
    for file, image in figures.items():
        stem, _, kind = file.rpartition(".")
        # The SVG of the same figure is linked, not shown.
        if kind != "png":
            continue
        picture = {
            "id": f"{prefix}{stem}",
            "stem": stem,
            "alt": alternative_text(stem, document),
            "caption": CAPTIONS[stem],
            "source": inline(image, "png"),
            "file": f"{FIGURES}/{prefix}{stem}",
        }
        pictures.append(picture)
    return pictures


def _by_weight(routing: Mapping[str, float]) -> list[tuple[str, float]]:
    """Experts that took part in an answer and their weights, the largest first; those below half a percent did not."""
    weights = [(name, weight) for name, weight in routing.items() if weight >= 0.005]
    return sorted(weights, key=lambda pair: -pair[1])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as {dotted name: text}; a list is one value."""
    texts: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            texts |= _flat(value, f"{prefix}{name}.")
        else:
            texts[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return texts
