"""Grounding scores: intersection over union (IoU) of an answer's box with the reference boxes.

Boxes are `[x1,y1,x2,y2]` in one frame for answer and reference, usually 0-1 of the padded square. The strict parser
accepts exactly one bracketed list of four decimals. The legacy parser repeats a defect of the evaluator that CoIN and
its descendants share: after the brackets it removes one more character at both ends, so "0.98" becomes "0.9".
"""

from __future__ import annotations

import re

from hidecmoe_jax.core.errors import DataError

Box = tuple[float, float, float, float]

_DECIMAL = r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*"
_DECIMALS = ",".join([_DECIMAL] * 4)
_BOX = re.compile(rf"\[{_DECIMALS}\]")


def parse_box(text: str) -> Box | None:
    """Returns the box in a text; None where there is none, more than one, or anything but four decimals."""
    # Two boxes in one answer would let a model guess twice.
    boxes = _BOX.findall(text)
    if len(boxes) != 1:
        return None
    x1, y1, x2, y2 = map(float, boxes[0])
    return x1, y1, x2, y2


def parse_box_legacy(text: str) -> Box | None:
    """Returns a box as CoIN's evaluator reads it: without brackets and without one more character at both ends."""
    bare = text.strip().strip("[]")
    inner = bare[1:-1]
    try:
        values = [float(value) for value in inner.split(",")]
    except ValueError:
        return None
    if len(values) != 4:
        return None
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2


def overlap(left: Box, right: Box) -> float:
    """Returns the intersection over union in 0-1; 0 for a box without area or with swapped corners."""
    area_left = area(left)
    area_right = area(right)
    if area_left == 0 or area_right == 0:
        return 0.0
    # The intersection of two boxes is a box; it has swapped corners, and so no area, where they do not meet.
    x1 = max(left[0], right[0])
    y1 = max(left[1], right[1])
    x2 = min(left[2], right[2])
    y2 = min(left[3], right[3])
    shared = area((x1, y1, x2, y2))
    union = area_left + area_right - shared
    return shared / union


def area(box: Box) -> float:
    """Returns the area in squared units of the frame; 0 where the corners are swapped."""
    x1, y1, x2, y2 = box
    width = max(x2 - x1, 0.0)
    height = max(y2 - y1, 0.0)
    return width * height


def hint(reference: str) -> str:
    """Returns how a reference should be written that is no box, or a box without area."""
    box = parse_box(reference)
    if box is None:
        return "write one box '[x1,y1,x2,y2]' of four decimals, and nothing like it beside"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "x2 and y2 must be larger than x1 and y1"
    corners = ",".join(f"{value:g}" for value in (x, y, round(x + width, 6), round(y + height, 6)))
    return (
        "read as [x1,y1,x2,y2] its corners are swapped; if it is x,y,width,height, "
        f"write [x,y,x+width,y+height] in train.json and test.json: [{corners}]"
    )


def legacy_hint(reference: str) -> str:
    """The same for `iou_legacy`, which loses the first and the last character inside the brackets."""
    box = parse_box(reference)
    if box is not None and area(box) > 0:
        return "CoIN's rule drops one character at both ends: write every number as 0.12, with two decimals"
    return hint(reference)


def iou(prediction: str, references: tuple[str, ...]) -> float | None:
    """Returns the best overlap with any reference; None where the strict parser finds no box in the answer."""
    return _best(parse_box(prediction), references)


def iou_legacy(prediction: str, references: tuple[str, ...]) -> float | None:
    """Returns the best overlap, the answer read as in CoIN; only to compare with published numbers."""
    return _best(parse_box_legacy(prediction), references)


def _best(box: Box | None, references: tuple[str, ...]) -> float | None:
    truths = []
    for reference in references:
        truth = parse_box(reference)
        if truth is None:
            raise DataError(
                "A reference answer of a grounding task is not a box",
                why=f"reference {reference!r}, expected '[x1,y1,x2,y2]'",
                remedy="correct the answer in test.json, or choose another scorer (`scorer: exact`)",
            )
        truths.append(truth)
    if box is None:
        return None
    return max(overlap(box, truth) for truth in truths)
