"""Which state of the frozen model represents a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PARTS = ("image", "text", "words")
"""Parts of a prompt: means over its image tokens (zero without a picture), over the text tokens behind the last image
token (all where there is none), and over the embeddings of these same text tokens."""


@dataclass(frozen=True)
class Reading:
    """The state of the frozen model that represents a whole prompt (arXiv 2503.21227 takes the last token's).

    Attributes:
      layer: decoder layers to run; -1 for all of them and the final norm, `half` for half of them.
      over: `last` prompt token; the mean over its `image` tokens (the last token where there are none); or `parts`, the
        three states of `PARTS` side by side.
    """

    layer: int | Literal["half"] = -1
    over: Literal["last", "image", "parts"] = "last"

    def __post_init__(self):
        if self.layer != "half" and self.layer < -1:
            raise ValueError(f"layer {self.layer} must be at least 0, or -1 for all layers, or half")

    def depth(self, layers: int) -> int:
        """Layers of a decoder with `layers` layers that are run; -1 for all of them and the final norm."""
        return layers // 2 if self.layer == "half" else self.layer

    def width(self, width: int) -> int:
        """Numbers that are read of a model of this width."""
        return len(PARTS) * width if self.over == "parts" else width
