"""Experience replay: records of earlier tasks are stored and trained on again with every later task.

It breaks the rule that no old data is kept, so it is a reference and not a method of this package's kind: it says what
so many stored records are worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Stream
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.routed_wrapper import RoutedWrapper, require_shared


@dataclass(frozen=True)
class Replay(RoutedWrapper):
    """`inner`, trained on records of earlier tasks as well.

    Attributes:
      stored: records kept of every task.
      draw: seed of their choice.
    """

    kind: ClassVar[str] = "replay"
    name: str = "replay"
    inner: Routed = Routed(name="sequential", growth="shared")
    stored: int = 50
    draw: int = 0

    def __post_init__(self):
        if self.stored < 1 or not 0 <= self.draw < 2**32:
            raise ValueError(f"stored {self.stored} must be at least 1 and draw {self.draw} from 0 to 2**32 - 1")
        require_shared(self.inner, self.kind)

    def sources(self, lesson: tuple[int, ...]) -> tuple[int, ...]:
        """Every task up to the lesson's."""
        return tuple(range(max(lesson) + 1))

    def records(self, stream: Stream, lesson: tuple[int, ...]) -> tuple[Record, ...]:
        """The lesson's records, then those that are stored of every earlier task."""
        records = list(self.inner.records(stream, lesson))
        for task in range(min(lesson)):
            earlier = stream.tasks[task].train
            generator = np.random.default_rng([self.draw, task])
            chosen = generator.permutation(len(earlier))[: self.stored]
            records += [earlier[number] for number in sorted(chosen.tolist())]
        return tuple(records)
