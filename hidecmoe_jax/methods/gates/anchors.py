"""Gates: how an input finds its task. One small interface, so that any method takes any of them.

A gate is fitted to the features of a task's records (`fit`), turns scores into weights of the tasks (`decide`), and
separates what it stores of one task from the rest (`to_archive`, `from_archive`). `mixes_tasks` is true if one sample
may get weights of several tasks. `locator.LocatorGate` is the third of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.locators import anchors as anchor
from hidecmoe_jax.locators.anchors import ClipAnchors, anchors_of
from hidecmoe_jax.locators.standard import set_rows
from hidecmoe_jax.methods.base import Decision, FrozenFeatures
from hidecmoe_jax.methods.gates.unknown import (
    CALIBRATED,
    EDITED,
    THRESHOLDS,
    UNREACHED,
    blank_thresholds,
    fit_apart,
    held_out_of,
    limits_of,
    match_of,
    placed_tasks,
    refusing_retired,
)
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.models.reading import Reading

Memory = dict[str, Array]


class Gate(Protocol):
    """Chooses a task for an input. A frozen dataclass; its memory holds arrays by name.

    Attributes:
      kind: name of the gate in configs.
      reads: state of the frozen base that it scores; None where it scores CLIP's features or nothing.
      mixes_tasks: one sample may get weights of several tasks.
      stores: what it stores of a task, `prototypes` or `vae`; exports name a file by it.
      foreign: part of a task's own inputs that may be taken for unknown; None calls nothing unknown.
      unknown_settings: settings of unknown-input detection, for exports.
    Optional are `wording`, of the training prompts that it is fitted to (`data/rewording.py`), and `held_out`, how many
    of so many records set a task's threshold.
    """

    kind: ClassVar[str]
    reads: Reading | None
    mixes_tasks: bool
    stores: str
    foreign: float | None
    unknown_settings: dict[str, float | None]

    def blank(self, capacity: int, model: Model) -> Memory:
        """Memory with room for `capacity` tasks."""

    def require(self, count: int) -> None:
        """Raises DataError where a task of so many records cannot be fitted."""

    def fit(self, memory: Memory, task: int, features: FrozenFeatures, *, key: Array) -> Memory:
        """The memory with a task, from the features of its records."""

    def scores(self, memory: Memory, features: FrozenFeatures, learned_N: Array) -> Array:
        """How well every sample fits every task, float32 [B, N], higher is nearer; -inf for tasks not in `learned_N`.

        `hidecmoe overlap` compares tasks by it; `decide` starts from it.
        """

    def decide(self, memory: Memory, features: FrozenFeatures, learned_N: Array) -> Decision:
        """Weights of the tasks, zero for those not in `learned_N` (bool)."""

    def to_archive(self, memory: Memory, task: int) -> Memory:
        """What it stores of one task."""

    def from_archive(self, memory: Memory, task: int, archive: Memory) -> Memory:
        """The memory with an archived task: the inverse of `to_archive`."""

    def size(self, model: Model) -> int:
        """Parameters stored per task."""

    def flops(self, stored: int, *, model: Model, tasks: int) -> int:
        """Operations of deciding one query among `tasks`, for which `stored` numbers are stored."""


@dataclass(frozen=True)
class AnchorGate:
    """HiDe's gate: cosines to the mean CLIP features of every task. Defaults are the official values.

    Attributes:
      mixing: weight of the image cosine; the rest is that of the text cosine.
      temperature: of the softmax over tasks.
      legacy: the official code's gate, with one weight per batch.
      foreign: part of a task's own inputs that may be taken for unknown; None calls nothing unknown.
      kept_apart: with `foreign`, part of a task's records that anchors leave out and thresholds are read from.
    """

    kind: ClassVar[str] = "anchors"
    reads: ClassVar[None] = None
    mixes_tasks: ClassVar[bool] = True
    stores: ClassVar[str] = "prototypes"
    mixing: float = 0.5
    temperature: float = 0.1
    legacy: bool = False
    foreign: float | None = None
    kept_apart: float = 0.1

    def __post_init__(self):
        if not 0 <= self.mixing <= 1 or self.temperature <= 0:
            raise ValueError(f"mixing {self.mixing} must be in [0, 1] and temperature {self.temperature} above 0")
        if self.foreign is not None and (not 0 <= self.foreign < 1 or not 0 < self.kept_apart < 1):
            raise ValueError("foreign must be in [0, 1) and kept_apart in (0, 1)")
        if self.foreign is not None and self.legacy:
            raise ValueError("foreign needs a score per sample, and the legacy gate has one per batch")

    def held_out(self, records: int) -> int:
        """How many of a task's records set its threshold."""
        return held_out_of(records, self.kept_apart)

    def blank(self, capacity: int, model: Model) -> Memory:
        """Room for the anchors of `capacity` tasks."""
        room = ClipAnchors().blank(capacity, clip_widths(model))
        if self.foreign is None:
            return room
        return room | blank_thresholds(capacity, sides=True)

    def require(self, count: int) -> None:
        """Any number is enough for a mean."""

    def fit(self, memory: Memory, task: int, features: FrozenFeatures, *, key: Array) -> Memory:
        """Adds the task's anchors; with `foreign`, which records are left out for the thresholds is random."""
        by = ClipAnchors(self.mixing)
        if self.foreign is None:
            return by.fit(memory, task, features.pooled, key=key)
        return fit_apart(
            by,
            memory,
            task,
            features.pooled,
            pooled=features.pooled,
            foreign=self.foreign,
            share=self.kept_apart,
            key=key,
        )

    def scores(self, memory: Memory, features: FrozenFeatures, learned_N: Array) -> Array:
        """Mixed cosines, float32 [B, N]; -inf for tasks that are not learned."""
        by = ClipAnchors(self.mixing)
        return by.scores(memory, features.pooled, learned_N)

    def decide(self, memory: Memory, features: FrozenFeatures, learned_N: Array) -> Decision:
        """The softmax over learned tasks, and the mixed cosine it comes from; all zero for an unknown input."""
        gated = anchor.gate(
            anchors_of(memory), features.pooled, learned_N,
            mixing=self.mixing, temperature=self.temperature, legacy=self.legacy,
        )  # fmt: skip
        decides = self.foreign is not None or CALIBRATED in memory
        limits = limits_of(memory, features.pooled) if decides else None
        placed_N = placed_tasks(memory, learned_N)
        match = match_of(gated.mixed_BN, placed_N, limits=limits, unknown_share=self.foreign)
        match = refusing_retired(memory, match)
        is_unknown_B1 = match.is_unknown_B[:, None]
        weight_BN = jnp.where(is_unknown_B1, 0.0, gated.weight_BN)
        return Decision(weight_BN, gated.mixed_BN, match)

    def to_archive(self, memory: Memory, task: int) -> Memory:
        """Rows of one task."""
        return {name: leaf[task] for name, leaf in memory.items() if name not in EDITED}

    def from_archive(self, memory: Memory, task: int, archive: Memory) -> Memory:
        """The inverse of `to_archive`."""
        rows = {name: stored(archive, name) for name in memory}
        return set_rows(memory, task, rows)

    def size(self, model: Model) -> int:
        """Numbers stored per task."""
        return ClipAnchors().size(clip_widths(model))

    def flops(self, stored: int, *, model: Model, tasks: int) -> int:
        """Operations of deciding one query among `tasks`, for which `stored` numbers are stored."""
        return ClipAnchors().flops(stored, width=model.config.width, tasks=tasks)

    @property
    def unknown_settings(self) -> dict[str, float | None]:
        """Settings of unknown-input detection, for exports."""
        return {"foreign": self.foreign, "kept_apart": self.kept_apart}


@dataclass(frozen=True)
class NamedGate:
    """The task is named at inference: an upper reference, not a method."""

    kind: ClassVar[str] = "named"
    reads: ClassVar[None] = None
    mixes_tasks: ClassVar[bool] = False
    stores: ClassVar[str] = "prototypes"
    foreign: ClassVar[None] = None
    unknown_settings: ClassVar[dict[str, float]] = {}

    def blank(self, capacity: int, model: Model) -> Memory:
        """Nothing is stored."""
        return {}

    def require(self, count: int) -> None:
        """Nothing is fitted."""

    def fit(self, memory: Memory, task: int, features: FrozenFeatures, *, key: Array) -> Memory:
        """Nothing is stored."""
        return memory

    def scores(self, memory: Memory, features: FrozenFeatures, learned_N: Array) -> Array:
        """Raises ConfigError: nothing is scored."""
        raise _not_named()

    def decide(self, memory: Memory, features: FrozenFeatures, learned_N: Array) -> Decision:
        """Raises ConfigError: the task was not named."""
        raise _not_named()

    def to_archive(self, memory: Memory, task: int) -> Memory:
        """Nothing."""
        return {}

    def from_archive(self, memory: Memory, task: int, archive: Memory) -> Memory:
        """Nothing."""
        return memory

    def size(self, model: Model) -> int:
        """Nothing is stored."""
        return 0

    def flops(self, stored: int, *, model: Model, tasks: int) -> int:
        """Nothing is computed."""
        return 0


def _not_named() -> ConfigError:
    """The error of a gate that takes the task's name and was not given one."""
    return ConfigError(
        "this method needs the task's name", where="method", why="its gate is 'named'",
        remedy="evaluate it with the task named, or choose a gate that finds it, such as 'anchors'",
    )  # fmt: skip


def stored(archive: Memory, name: str) -> Array | float:
    """What was archived of a task; a threshold that was not archived is one that no score reaches."""
    if name in THRESHOLDS:
        return archive.get(name, UNREACHED)
    return archive[name]


def clip_widths(model: Model) -> tuple[int, int]:
    """Widths of CLIP's pooled image and text features, as anchors keep them.

    Raises:
      ConfigError: the base has no text tower.
    """
    if not model.config.has_text_tower:
        raise ConfigError(
            "the base has no CLIP text tower", where="base.path",
            why="anchors, which HiDe finds tasks by, are made of CLIP's features of pictures and texts",
            remedy="convert the checkpoint again with --clip and the folder of its CLIPModel, or choose a gate that "
            "reads the base's own state, as in configs/pocket/cmoe.yaml (method.gate.kind=locator)",
        )  # fmt: skip
    return model.config.pooled_widths
