"""What only a whole stream shows (`hidecmoe data check`): near-duplicate pictures, shared answers, files of truth.

It takes a thumbnail of every picture and compares all with all, so commands that learn leave it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.check import Report
from hidecmoe_jax.data.images import LIMITS, Limits
from hidecmoe_jax.data.likeness import near_pairs
from hidecmoe_jax.data.overlap import answer_overlap, overlap_lines
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.stream import Task, TaskSpec
from hidecmoe_jax.data.truth_files import alignments

MOST_PICTURES = 40_000
"""Different pictures beyond which the check leaves their comparison to `hidecmoe audit`."""

Place = tuple[str, str, str]
"""Task, split and name of a file that a picture is used in."""


def whole_stream(
    report: Report, specs: Sequence[TaskSpec], *, limits: Limits = LIMITS, pictures: Pictures | None = None
) -> Report:
    """Returns the report with what its opened tasks show together.

    Args:
      specs: entries of the stream that the report is about; a task's `index` is its place among them.
      pictures: what has read the pictures for the report, with their looks; they are decoded again without it.
    """
    tasks = report.tasks
    if not tasks:
        return report
    measured = [_reference_line(task) for task in tasks]
    if len(tasks) < len(specs):
        measured.append(f"{len(specs) - len(tasks)} of {len(specs)} tasks could not be opened and are not compared")
    warnings = list(report.warnings)
    for task in tasks:
        aligned, others = _truth_lines(task, specs[task.index])
        measured += [f"{task.name}: {text}" for text in aligned]
        warnings += [f"{task.name}: {text}" for text in others]
    count, copies, near_copies = _copies(tasks, pictures or Pictures(limits))
    if count > MOST_PICTURES:
        measured.append(f"{count} different pictures are not compared with each other here; `hidecmoe audit` does it")
    else:
        shows = "; `hidecmoe audit` shows them side by side" if near_copies else ""
        measured.append(f"{count} different pictures compared with each other: {near_copies} near-duplicates{shows}")
    if len(tasks) > 1:
        measured += overlap_lines([task.name for task in tasks], answer_overlap(tasks))
    return replace(report, measured=(*report.measured, *measured), warnings=(*warnings, *copies))


def _reference_line(task: Task) -> str:
    """How many references the test items have."""
    counts = [len(record.references) for record in task.test]
    fewest = min(counts)
    most = max(counts)
    each = f"{fewest} each" if fewest == most else f"{fewest} to {most}"
    return f"{task.name}: {len(counts)} test items, {sum(counts)} references ({each})"


def _truth_lines(task: Task, spec: TaskSpec) -> tuple[list[str], list[str]]:
    """Lines about the files of truth that are aligned with the test, and about those that are not."""
    ids = [record.id for record in task.test]
    pictures = [record.images[0] if record.images else "" for record in task.test]
    try:
        files = alignments(Path(spec.folder), ids, pictures)
    except DataError as error:
        return [], [str(error)]
    aligned = [str(file) for file in files if file.is_aligned]
    others = [str(file) for file in files if not file.is_aligned]
    return aligned, others


def _copies(tasks: Sequence[Task], pictures: Pictures) -> tuple[int, list[str], int]:
    """Number of different pictures, warnings about copies among them by where they are, and their number."""
    places: dict[str, list[Place]] = {}
    files: dict[str, str] = {}
    for task in tasks:
        for split in ("train", "val", "test"):
            for path in sorted({path for record in getattr(task, split) for path in record.images}):
                digest = task.digests[path]
                files.setdefault(digest, path)
                places.setdefault(digest, []).append((task.name, split, Path(path).name))
    digests = list(files)
    if len(digests) > MOST_PICTURES or not digests:
        return len(digests), [], 0
    seen = pictures.looks([files[digest] for digest in digests])
    pairs = near_pairs(np.stack([picture.thumbnail for picture in seen]))
    counts: Counter[tuple[str, str]] = Counter()
    firsts: dict[tuple[str, str], str] = {}
    for pair in pairs:
        # Of all uses of a picture the gravest counts: in a test rather than in training.
        left, right = sorted((_gravest(places[digests[side]]) for side in (pair.first, pair.second)), key=_grave)
        where = (_shown(left), _shown(right))
        counts[where] += 1
        firsts.setdefault(where, f"{left[2]} and {right[2]}")
    warnings = []
    # Pairs of a test and training come first: they make a score mean less.
    for left, right in sorted(counts, key=lambda where: (_is_within(where), not where[0].startswith("test"))):
        where = f"within {left}" if left == right else f"in {left} and {right}"
        warnings.append(
            f"near-duplicate pictures (saved again, resized or brighter) {where}: {counts[left, right]}, first "
            f"{firsts[left, right]}"
        )
    return len(digests), warnings, len(pairs)


def _is_within(where: tuple[str, str]) -> bool:
    return where[0] == where[1]


def _gravest(places: Sequence[Place]) -> Place:
    return min(places, key=_grave)


def _grave(place: Place) -> int:
    return ("test", "val", "train").index(place[1])


def _shown(place: Place) -> str:
    task, split, _ = place
    return f"{split} of {task}"
