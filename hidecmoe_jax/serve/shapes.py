"""Shapes of batches: a few, fixed when a run is loaded, so that requests of any kind meet compiled programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hidecmoe_jax.data.loader import buckets

# Tokens of template, question and line: of most questions, and of nearly all.
_SHORT = 128
_LONG = 512


@dataclass(frozen=True)
class Shape:
    """Shape of one batch: padded pictures of a request, padded tokens of a prompt."""

    pictures: int
    length: int


def longest_prompt(*, patches: int, pictures: int, limit: int) -> int:
    """Returns the most tokens of a prompt that shapes are made for, where nobody says otherwise.

    Args:
      limit: most tokens that the run allows.
    """
    return min(limit, pictures * patches + _LONG)


def shapes_of(*, patches: int, pictures: int, longest: int, multiple: int) -> tuple[Shape, ...]:
    """Returns the shapes that hold every allowed request, smallest first.

    Args:
      patches: image tokens of a picture.
      pictures: most pictures of a request.
      longest: most tokens of a prompt.
      multiple: lengths are rounded up to a multiple of it.
    """
    few = min(pictures, 1)
    shapes = []
    for words in (_SHORT, _LONG):
        length = min(longest, few * patches + words)
        shapes.append(Shape(few, buckets([length], multiple)))
    shapes.append(Shape(pictures, buckets([longest], multiple)))
    return tuple(dict.fromkeys(shapes))


def smallest(shapes: Sequence[Shape], *, pictures: int, length: int) -> Shape:
    """Returns the first shape that holds a request."""
    return next(shape for shape in shapes if shape.pictures >= pictures and shape.length >= length)
