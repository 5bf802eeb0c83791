"""Probe-guided expansion: layers get new experts where a trained probe is chosen often (arXiv 2503.21227, section 3.2).

A probe is an expert that every layer gets for a short while, trained on a part of the task's records beside frozen old
experts. On held-out records, a layer whose router chooses the probe more often than an average expert is expanded. The
paper's rule can be read in two ways; both are here (CMoE-D14). The rule `gain` judges by the loss that the probe saves
(`worth`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import DataError


@dataclass(frozen=True)
class Probe:
    """How probes are trained and judged.

    Attributes:
      share: part of a task's records that probing uses (CMoE-D11).
      measured: part of these that is held out to measure on.
      steps: least number of optimiser steps (CMoE-D12).
      accumulate: micro-batches of a step: probing needs smaller steps than tuning (CMoE-D12); None takes the task's.
      rate: learning rate; None takes the task's.
      balance: weight of the load-balancing loss while probing (CMoE-D7).
      rule: `frequency`, how often the probe is chosen (published); `within` and `across` say against what: the mean
        over the experts of its layer, which is what `frequency` does, or the mean over the probes of all layers.
        `gain`, the loss that it saves on held-out records, against what it saves on a known task.
      slack: how many standard deviations below the mean still expand (the paper's alpha).
      tokens: kinds of tokens that are counted.
      expects: part of the layers that a later task is expected to expand; only the forecast of a size uses it.
      part: with `gain`, the best layers are expanded until they hold this part of what all layers gain.
      times: with `gain`, a layer must gain more than this many times its control.
      control: with `gain`, after which tasks the control is measured, by another probe: the `first`, or `each`.
    """

    share: float = 0.1
    measured: float = 0.2
    steps: int = 100
    accumulate: int | None = None
    rate: float | None = None
    balance: float = 0.01
    rule: Literal["within", "across", "frequency", "gain"] = "within"
    slack: float = 0.0
    tokens: tuple[Literal["image", "text", "answer"], ...] = ("image", "text", "answer")
    expects: float = 1.0
    part: float = field(default=0.7, metadata=strict.YOUNGER)
    times: float = field(default=2.0, metadata=strict.YOUNGER)
    control: Literal["first", "each"] = field(default="first", metadata=strict.YOUNGER)

    def __post_init__(self):
        if not 0 < self.share <= 1 or not 0 < self.measured < 1:
            raise ValueError(f"share {self.share} must be in (0, 1] and measured {self.measured} in (0, 1)")
        if self.accumulate is not None and self.accumulate < 1:
            raise ValueError(f"accumulate {self.accumulate} must be at least 1")
        if not 0 <= self.expects <= 1:
            raise ValueError(f"expects {self.expects} must be in [0, 1]")
        if not self.tokens:
            raise ValueError("tokens must name at least one kind")
        if not 0 < self.part <= 1 or not 0 <= self.times < float("inf"):
            raise ValueError(f"part {self.part} must be in (0, 1] and times {self.times} at least 0")

    @property
    def by_gain(self) -> bool:
        """Whether layers are judged by the loss that a probe saves."""
        return self.rule == "gain"

    def controls(self, lesson: int) -> bool:
        """Whether a control is measured at the end of a lesson."""
        return self.by_gain and (lesson == 0 or self.control == "each")


def split_records(
    probe: Probe,
    count: int,
    seed: int,
    *,
    otherwise: str = "let the mixture grow without probes: growth uniform, start blank",
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the records, of `count`, that probes are trained and measured on: at least one each.

    Args:
      otherwise: what a user can do instead of probing.

    Raises:
      DataError: a single record cannot be both.
    """
    if count < 2:
        raise DataError(
            "too few records to probe with", why=f"{count}, at least 2 are needed",
            remedy=f"add records to the task, or {otherwise}",
        )  # fmt: skip
    generator = np.random.default_rng([seed, 1])
    order = generator.permutation(count)
    used = max(2, round(probe.share * count))
    chosen = order[:used]
    measured = max(1, round(probe.measured * len(chosen)))
    # Whatever the share, a record is left to train on.
    measured = min(measured, len(chosen) - 1)
    trained_on = chosen[measured:]
    measured_on = chosen[:measured]
    return trained_on, measured_on


def tokens_per_slot(count_LSK: np.ndarray, probe: Probe) -> np.ndarray:
    """Tokens that chose each slot, int64 [L, S], over the kinds of tokens that count."""
    order = ("image", "text", "answer")
    kinds = [order.index(name) for name in probe.tokens]
    exact_LSK = np.asarray(count_LSK, np.int64)
    counted_LSK = exact_LSK[:, :, kinds]
    return counted_LSK.sum(axis=-1)


def thresholds(count_LS: np.ndarray, active_LS: np.ndarray, probe: Probe) -> np.ndarray:
    """Number of tokens above which a probe expands its layer, float64 [L]; arguments as of `layers_to_expand`."""
    count_LS = np.where(active_LS, count_LS, 0).astype(np.int64)
    active_LS = np.asarray(active_LS, bool)
    if probe.rule == "across":
        probe_L = count_LS[:, -1]
        slack = probe.slack * probe_L.std()
        common = probe_L.mean() - slack
        return np.full(len(probe_L), common)
    experts_L = active_LS.sum(axis=1)
    tokens_L = count_LS.sum(axis=1)
    mean_L = tokens_L / experts_L
    deviation_LS = count_LS - mean_L[:, None]
    # Slots that cannot be chosen are no experts: their zeros must not widen the spread.
    square_LS = np.where(active_LS, deviation_LS**2, 0.0)
    variance_L = square_LS.sum(axis=1) / experts_L
    spread_L = np.sqrt(variance_L)
    return mean_L - probe.slack * spread_L


def layers_to_expand(count_LS: np.ndarray, active_LS: np.ndarray, probe: Probe, fewest: int = 0) -> np.ndarray:
    """Layers that need an expert, bool [L]; the probe is the last slot.

    Args:
      count_LS: int, tokens that chose each slot.
      active_LS: bool, slots that could be chosen; the last column must be True.
      fewest: a layer with fewer other experts is expanded whatever was counted: with no more slots than a token
        chooses, every count is the same. Only retired experts leave such a layer.

    Raises:
      ValueError: a probe that could not be chosen.
    """
    active_LS = np.asarray(active_LS, bool)
    probe_active_L = active_LS[:, -1]
    if not probe_active_L.all():
        raise ValueError("every layer needs its probe among the active slots")
    exact_LS = np.asarray(count_LS, np.int64)
    probe_L = exact_LS[:, -1]
    # Whole numbers stand on both sides of an even load, and their quotient is exact then: it expands nothing.
    is_chosen_L = probe_L > thresholds(count_LS, active_LS, probe)
    old_active_LS = active_LS[:, :-1]
    experts_L = old_active_LS.sum(axis=1)
    has_too_few_L = experts_L < fewest
    return is_chosen_L | has_too_few_L


def most_used(count_LS: np.ndarray, active_LS: np.ndarray, number: int) -> np.ndarray:
    """The `number` most used active slots of every layer, most used first, int32 [L, number]; repeated where there are
    fewer, -1 where there is none. Of equals the first."""
    exact_LS = np.asarray(count_LS, np.int64)
    # Inactive slots get the key 1, behind every count, which are negated.
    key_LS = np.where(active_LS, -exact_LS, 1)
    ranked_LS = np.argsort(key_LS, axis=1, kind="stable")
    active_LS = np.asarray(active_LS, bool)
    active_L1 = active_LS.sum(axis=1)[:, None]
    available_L1 = np.maximum(active_L1, 1)
    place_M = np.arange(number)
    # The remainder starts again with the most used slot where there are fewer than `number`.
    place_LM = place_M[None] % available_L1
    best_LM = np.take_along_axis(ranked_LS, place_LM, axis=1)
    most_used_LM = np.where(active_L1 > 0, best_LM, -1)
    return most_used_LM.astype(np.int32)
