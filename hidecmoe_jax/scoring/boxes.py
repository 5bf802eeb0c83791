"""Grounding: an answer is right when its box overlaps a reference box by more than half (IoU > 0.5).

Boxes are `[x1,y1,x2,y2]` in one frame for answer and reference, usually 0-1 of the padded square. The strict parse
reads exactly one bracketed list of four decimals. The legacy parse repeats a slip of the evaluator that CoIN and its
descendants share: after the brackets are gone it cuts off one more character at both ends, so "0.98" becomes "0.9".
"""

from __future__ import annotations

import re

from hidecmoe_jax.core.errors import DataError

Box = tuple[float, float, float, float]

_DECIMAL = r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*"
_BOX = re.compile(r"\[" + ",".join([_DECIMAL] * 4) + r"\]")


def parse_box(text: str) -> Box | None:
    """Reads the one box in a text; None where there is none, more than one, or anything but four decimals."""
    found = _BOX.findall(text)
    if len(found) != 1:
        return None
    x1, y1, x2, y2 = (float(value) for value in found[0])
    return x1, y1, x2, y2


def parse_box_legacy(text: str) -> Box | None:
    """Reads a box as CoIN's evaluator does: brackets off, then one more character off at both ends."""
    try:
        values = [float(value) for value in text.strip().strip("[]")[1:-1].split(",")]
    except ValueError:
        return None
    return tuple(values) if len(values) == 4 else None


def overlap(left: Box, right: Box) -> float:
    """Intersection over union in 0-1; a box with no area (or with swapped corners) overlaps nothing."""
    if area(left) == 0 or area(right) == 0:
        return 0.0
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (area(left) + area(right) - shared)


def area(box: Box) -> float:
    """Area in squared units of the frame; 0 where the corners are swapped."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def iou(prediction: str, references: tuple[str, ...]) -> float | None:
    """Best overlap with any reference, strict parse; None where the answer holds no readable box."""
    return _best(parse_box(prediction), references)


def iou_legacy(prediction: str, references: tuple[str, ...]) -> float | None:
    """Best overlap with any reference, the answer read as CoIN does; only to compare with published numbers."""
    return _best(parse_box_legacy(prediction), references)


def _best(box: Box | None, references: tuple[str, ...]) -> float | None:
    truths = [parse_box(reference) for reference in references]
    if None in truths:
        raise DataError(
            "A reference answer of a grounding task is not a box",
            why=f"reference {references[truths.index(None)]!r}, expected '[x1,y1,x2,y2]'",
            remedy="correct the answer in test.json, or choose another scorer (`scorer: exact`)",
        )
    return None if box is None else max(overlap(box, truth) for truth in truths)
