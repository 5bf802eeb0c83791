"""Page of an audit: findings, tables, and pairs of items side by side; a view of audit.json, in one file.

Questions, answers and names are untrusted text: everything goes through Jinja2's autoescape. The page holds no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.images import LIMITS, Limits
from hidecmoe_jax.report.gallery import thumbnail
from hidecmoe_jax.report.page import environment
from hidecmoe_jax.storage.files import write_bytes, write_json

AUDIT = "audit.json"
PAGE = "audit.html"
EXAMPLES = 6  # pairs of one kind that the page shows
FINDINGS = 16  # that the page shows before a reader opens the rest

HEADINGS = {
    "leak": "Leaks: a test item that was trained on",
    "pixels": "Equal pictures",
    "near": "Near-duplicate pictures",
    "text": "Copied texts",
    "neighbour": "Nearest pictures in the features of the vision tower",
}
MEANINGS = {
    "leak": "The picture is the same or nearly so, and so is the question. Such scores measure memory.",
    "pixels": "Files with equal pixels whose questions differ, or that lie in two splits or tasks.",
    "near": "Saved again, resized or changed in brightness; the questions differ, or both items are of one split.",
    "text": "A distinctive question and answer that stands in training with another picture.",
    "neighbour": "Not counted as leaks: look whether they show one object or one scene. The distance is 1 - cosine.",
}


def write_audit(folder: Path, document: Mapping[str, Any], *, limits: Limits = LIMITS) -> None:
    """Writes audit.json and audit.html into a folder, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / AUDIT, dict(document))
    write_bytes(folder / PAGE, audit_page(document, limits=limits).encode())


def audit_page(document: Mapping[str, Any], *, limits: Limits = LIMITS) -> str:
    """Renders the page; a picture that cannot be read any more is named instead of shown."""
    counts = level_counts(document)
    return (
        environment()
        .get_template("audit.html.j2")
        .render(
            audit=document,
            counts=counts,
            verdict=verdict(counts),
            first_findings=FINDINGS,
            from_text={row["task"]: row for row in document["from_text"]},
            groups=_groups(document["duplicates"]["matches"], limits),
        )
    )


def level_counts(document: Mapping[str, Any]) -> dict[str, int]:
    """Number of findings by level."""
    levels = [row["level"] for row in document["findings"]]
    return {level: levels.count(level) for level in ("leak", "warning", "note")}


def leaked_items(document: Mapping[str, Any]) -> int:
    """Number of test items that were trained on."""
    return sum(task["leaks"] for task in document["tasks"])


def verdict(counts: Mapping[str, int]) -> str:
    """The audit in a sentence."""
    if counts["leak"]:
        return "Test items were trained on"
    if counts["warning"]:
        return "No leaks; read the warnings"
    return "No leaks and no warnings"


def _groups(matches: Sequence[Mapping[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """Examples by kind, leaks first."""
    groups = []
    for kind, heading in HEADINGS.items():
        if kind == "leak":
            members = [match for match in matches if match["leak"]]
        else:
            members = [match for match in matches if match["kind"] == kind and not match["leak"]]
        if not members:
            continue
        pairs = [_pair(match, limits) for match in _spread(members)]
        groups.append({"heading": heading, "meaning": MEANINGS[kind], "count": len(members), "pairs": pairs})
    return groups


def _spread(members: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A few members, of every pair of tasks and splits one before a second."""
    by_place: dict[tuple, list[Mapping[str, Any]]] = {}
    for match in members:
        ends = [(match[end]["task"], match[end]["split"]) for end in ("first", "second")]
        by_place.setdefault((match["kind"], *ends), []).append(match)
    ordered = []
    for queue in by_place.values():
        ordered += list(enumerate(queue))
    ordered.sort(key=lambda pair: pair[0])
    return [match for _, match in ordered[:EXAMPLES]]


def _pair(match: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    sides = []
    for end in ("first", "second"):
        item = match[end]
        picture, lacking = _picture(item["pictures"], limits)
        sides.append({**item, "thumbnail": picture, "lacking": lacking})
    return {"kind": match["kind"], "distance": match["distance"], "question": match["question"], "sides": sides}


def _picture(files: Sequence[str], limits: Limits) -> tuple[str | None, str | None]:
    """The first picture inlined, or why it is not shown."""
    if not files:
        return None, "no picture"
    try:
        return thumbnail(files[0], limits), None
    except DataError as error:
        return None, error.why or error.what
