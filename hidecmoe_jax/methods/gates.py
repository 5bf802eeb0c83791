"""Gates: how an input finds its task. One small interface, so that any method takes any of them.

A gate learns a task from what was seen of its records (`fit`), turns scores into weights (`decide`), and knows what of
its memory belongs to which task (`kept`, `recalled`). `locating.Locating` is the third of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.locators import anchors as anchor
from hidecmoe_jax.locators.anchors import ClipAnchors, anchors_of
from hidecmoe_jax.methods.learner import Decision, Seen
from hidecmoe_jax.models.llava import Model

Memory = dict[str, Array]


@dataclass(frozen=True)
class AnchorGate:
    """HiDe's gate: `mixing` weighs the image cosine, the rest is text. Defaults are the official values."""

    kind: ClassVar[str] = "anchors"
    reading: ClassVar[None] = None
    mixing: float = 0.5
    temperature: float = 0.1
    legacy: bool = False

    def blank(self, capacity: int, model: Model) -> Memory:
        """Room for the anchors of `capacity` tasks."""
        return ClipAnchors().blank(capacity, clip_widths(model))

    def fit(self, memory: Memory, task: int, seen: Seen, *, key: Array) -> Memory:
        """Adds the task's anchors; nothing is random."""
        return ClipAnchors().fit(memory, task, seen.pooled, key=key)

    def decide(self, memory: Memory, seen: Seen, learned_N: Array) -> Decision:
        """The softmax over learned tasks, and the mixed cosine it comes from."""
        found = anchor.gate(
            anchors_of(memory), seen.pooled, learned_N,
            mixing=self.mixing, temperature=self.temperature, legacy=self.legacy,
        )  # fmt: skip
        return Decision(found.weight_BN, found.mixed_BN)

    def kept(self, memory: Memory, task: int) -> Memory:
        """What is known of one task."""
        return {name: leaf[task] for name, leaf in memory.items()}

    def recalled(self, memory: Memory, task: int, kept: Memory) -> Memory:
        """The inverse of `kept`."""
        return {name: leaf.at[task].set(kept[name]) for name, leaf in memory.items()}

    def size(self, model: Model) -> int:
        """Numbers stored per task."""
        return ClipAnchors().size(clip_widths(model))


@dataclass(frozen=True)
class NamedGate:
    """The task is named at inference: an upper reference, not a method."""

    kind: ClassVar[str] = "named"
    reading: ClassVar[None] = None

    def blank(self, capacity: int, model: Model) -> Memory:
        """There is nothing to know."""
        return {}

    def fit(self, memory: Memory, task: int, seen: Seen, *, key: Array) -> Memory:
        """There is nothing to learn."""
        return memory

    def decide(self, memory: Memory, seen: Seen, learned_N: Array) -> Decision:
        """Raises ConfigError: nobody named the task."""
        raise ConfigError(
            "this method needs the task's name", where="method", why="its gate is 'named'",
            remedy="evaluate it with the task named, or choose a gate that finds it, such as 'anchors'",
        )  # fmt: skip

    def kept(self, memory: Memory, task: int) -> Memory:
        """Nothing."""
        return {}

    def recalled(self, memory: Memory, task: int, kept: Memory) -> Memory:
        """Nothing."""
        return memory

    def size(self, model: Model) -> int:
        """Nothing is stored."""
        return 0


def clip_widths(model: Model) -> tuple[int, int]:
    """Widths of CLIP's pooled image and text features, as anchors keep them."""
    return model.config.vision.projection, model.config.text.width
