"""What a method can do beyond learning and answering, as protocols that callers test for.

A method implements those that apply to it and inherits nothing for them; a caller tests `isinstance(method, Editable)`
and never for a class. The hooks a method must have are in `methods.base.Method`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jax import Array

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.methods.growth.probe import Probe
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.models.llava import Model

if TYPE_CHECKING:
    from hidecmoe_jax.methods.edit import Edit


@runtime_checkable
class Editable(Protocol):
    """Experts of a task can be retired, or merged into those of another task, after learning."""

    def narrow_edit(self, learner: Learner, edit: Edit, since: int | None) -> Edit | None:
        """The edit restricted to layers in which the learner has something to edit; None where it has nothing."""

    def apply_edit(self, learner: Learner, edit: Edit, since: int | None) -> Learner:
        """The learner after the edit.

        Raises:
          ConfigError: the method cannot be edited so, or the task owns no expert in the layers.
        """


@runtime_checkable
class AsLora(Protocol):
    """Experts are LoRA on linears and constant for a task, so that one task's are one adapter."""

    lora: Lora

    def expanded(self, layers: int, memory: Any = None) -> tuple[int, ...]:
        """Decoder layers that keep one expert per task, of a decoder with `layers` layers."""

    def lora_bank(self, learner: Learner) -> Bank | None:
        """The bank that holds the experts; None where nothing was learned."""

    def lora_gains(self, learner: Learner, task: int) -> np.ndarray:
        """Gain of every slot of the bank when `task` is named, float32 [L, S]."""

    def archived_expert(self, model: Model, factors: dict[str, Array]) -> Bank:
        """A task's own expert as a bank of one slot, from the `experts` group of its archive."""


@runtime_checkable
class Resizable(Protocol):
    """The serving size can be forecast, and the rank of the experts sets it."""

    @property
    def rank(self) -> int:
        """Rank of the experts."""

    def with_rank(self, rank: int) -> Method:
        """The method with experts of another rank."""

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Parameters beyond the base that answering is expected to need after `tasks` tasks, by kind."""


@dataclass(frozen=True)
class ProbeResult:
    """Result of probing by layer: whether it expands (bool [L]), how often the router chose the probe, and the
    frequency above which a layer expands (float64 [L]). Where layers are judged by the loss that a probe saves, what it
    saved there and on a known task (nats an answer token, float64 [L]); None elsewhere."""

    expands_L: np.ndarray
    frequency_L: np.ndarray
    threshold_L: np.ndarray
    gain_L: np.ndarray | None = None
    control_L: np.ndarray | None = None


@runtime_checkable
class Probes(Protocol):
    """Layers are expanded where a trained probe shows a need."""

    @property
    def probes(self) -> bool:
        """Whether it is configured to probe (uniform growth does not)."""

    @property
    def probe_settings(self) -> Probe:
        """How probes are trained and judged."""

    def with_probe(self, probe: Probe) -> Method:
        """The method with other probe settings."""

    def probe_result(self, learner: Learner, lesson: int) -> ProbeResult:
        """Frequencies and thresholds of a lesson's probes, and the layers that were expanded."""
