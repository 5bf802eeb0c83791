"""Files of a pilot: pilot.json, and the page for whoever decides.

Questions, answers and names are untrusted text: everything goes through Jinja2's autoescape. The page holds no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.report.gallery import Sample, groups
from hidecmoe_jax.report.page import environment
from hidecmoe_jax.report.translation import words_of
from hidecmoe_jax.storage.files import write_bytes, write_json


def write_pilot(folder: Path, document: Mapping[str, Any], samples: Sequence[Sample], *, language: str) -> None:
    """Writes pilot.json and pilot.html into a folder, each file whole or not at all.

    Raises:
      ConfigError: no such language.
    """
    page = pilot_page(document, samples, language=language)
    write_json(folder / "pilot.json", dict(document))
    write_bytes(folder / "pilot.html", page.encode())


def pilot_page(document: Mapping[str, Any], samples: Sequence[Sample], *, language: str) -> str:
    """Renders the page."""
    cards = [card for group in groups(samples, {}) for card in group.cards]
    template = environment().get_template("pilot.html.j2")
    return template.render(pilot=document, words=words_of("pilot", language), cards=cards)


def pilot_lines(document: Mapping[str, Any], *, language: str = "en") -> list[str]:
    """The judgement as lines for a terminal."""
    words = words_of("pilot", language)
    return [words["outcome_" + document["outcome"]], sentence(document, language), *advised(document, language)]


def sentence(document: Mapping[str, Any], language: str) -> str:
    """The score against the constant answer, in words."""
    return words_of("pilot", language).say(
        "compared", score=f"{document['score']:.0f}", tests=document["test"], floor=f"{document['floor']:.0f}",
        answer=document["floor_answer"], low=f"{document['low']:.0f}", high=f"{document['high']:.0f}",
    )  # fmt: skip


def advised(document: Mapping[str, Any], language: str) -> list[str]:
    """What would help, in words."""
    words = words_of("pilot", language)
    return [words.say(f"advice_{key}", run=document["run"], train=document["train"]) for key in document["advice"]]
