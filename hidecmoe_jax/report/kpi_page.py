"""Files of the key figures: kpi.json, and as views of it the page and a table of every number.

Names of tasks are untrusted text: everything goes through Jinja2's autoescape. The page holds no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.report.page import environment
from hidecmoe_jax.report.tables import Table, csv_text
from hidecmoe_jax.report.translation import words_of
from hidecmoe_jax.storage.files import write_bytes, write_json


def write_kpi(folder: Path, document: Mapping[str, Any], *, language: str) -> None:
    """Writes kpi.json, kpi.csv and kpi.html into a folder, each file whole or not at all.

    Raises:
      ConfigError: no such language.
    """
    page = kpi_page(document, language=language)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "kpi.json", dict(document))
    write_bytes(folder / "kpi.csv", kpi_csv(document).encode())
    write_bytes(folder / "kpi.html", page.encode())


def kpi_page(document: Mapping[str, Any], *, language: str) -> str:
    """Renders the page."""
    words = words_of("kpi", language)
    return environment().get_template("kpi.html.j2").render(kpi=document, words=words)


def kpi_csv(document: Mapping[str, Any]) -> str:
    """Every number of the document as lines `figure,value`, unrounded; names are dotted paths into kpi.json."""
    return csv_text(Table("kpi", ("figure", "value"), tuple(_leaves(document, ""))))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{number}")
    else:
        yield path, value
