"""Report of a pool's growth and size, as plain values: what probes measured, what was added where, which experts are
used.

Everything is computed from arrays and numbers (`PoolSummary`), so it depends on no method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.experts.combine import closeness, distance
from hidecmoe_jax.methods.base import no_parameters
from hidecmoe_jax.methods.growth.probe import Probe, most_used, thresholds, tokens_per_slot

GROWTH = ("experts", "frequency", "threshold", "by_kind", "mass", "used", "drift", "parameters")


def probe_frequencies(
    count_LS: np.ndarray, active_LS: np.ndarray, probe: Probe, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """How often tokens chose the probe, the last slot, and above which frequency a layer is expanded, float64 [L] each.

    Args:
      count_LS: int64, tokens that chose each slot.
      active_LS: bool, slots that could be chosen.
    """
    # Every token makes `top_k` choices, so the sum of choices is `top_k` times the number of tokens.
    choices_L = np.maximum(count_LS.sum(axis=1), 1)
    scale_L = top_k / choices_L
    frequency_L = count_LS[:, -1] * scale_L
    threshold_L = thresholds(count_LS, active_LS, probe) * scale_L
    return frequency_L, threshold_L


def active_slots(owner_LS: np.ndarray, first_new: int) -> np.ndarray:
    """Slots that could be chosen while a task was probed, bool [L, S + 1]: owned ones before the task's own slots, and
    the probe as the last one."""
    active_LS = np.asarray(owner_LS) != EMPTY
    # Owned today, but not while this task was probed.
    active_LS[:, first_new:] = False
    probe_L1 = np.ones((len(active_LS), 1), bool)
    return np.concatenate([active_LS, probe_L1], axis=1)


@dataclass(frozen=True)
class PoolSummary:
    """A pool after some tasks.

    Attributes:
      bank: the pool.
      chosen_NLS: bool, slots that every task's router chooses from.
      count_NLSK, mass_NLSK: tokens of each kind that chose each slot while a task was probed, and the router weights
        they gave it; the probe is the last slot.
      gain_NL, control_NL: nats an answer token that every task's probe saved, and that another one saved once the task
        was learned; None where layers are judged by frequency.
      counts_probes: whether tokens choose probes, so that frequencies mean something.
      learned: numbers of the learned tasks.
      slots: slots of every task up to the last learned one.
      lowest: the lowest decoder layer that has experts.
      top_k: experts a token is sent to.
      probe: how probes were judged.
      copies: whether new experts began as copies.
      expert_size, router_width, gate_size: parameters of one expert of one layer, of one router column, and of the
        gate for one task.
    """

    bank: Bank
    chosen_NLS: np.ndarray
    count_NLSK: np.ndarray
    mass_NLSK: np.ndarray
    gain_NL: np.ndarray | None
    control_NL: np.ndarray | None
    counts_probes: bool
    learned: tuple[int, ...]
    slots: tuple[range, ...]
    lowest: int
    top_k: int
    probe: Probe
    copies: bool
    expert_size: int
    router_width: int
    gate_size: int

    @property
    def owner_LS(self) -> np.ndarray:
        """Owners of the slots."""
        return np.asarray(self.bank.owner_LS)

    def growth(self) -> dict[str, list]:
        """By task, and within it by layer of the decoder; None for tasks and layers that were not probed.

        Returns:
          experts: how many the task added.
          frequency, threshold: how often its probe was chosen on the measuring records, as a part of all tokens that
            count, and above which frequency the layer was expanded (CMoE-D14).
          by_kind: the frequency among image, text and answer tokens; mass: the probe's part of the router weights
            (CMoE-D13).
          used: [task of the expert][layer], how many of each task's experts a token chose on average.
          drift: of new experts that began as copies, {cosine, distance} to what they were copied from, after tuning
            (CMoE-D17).
          parameters: numbers the task added, by kind.
          gain, control: nats an answer token that its probe saved in each layer, and that another probe saved once the
            task was learned; only where layers are judged by them.
        """
        names = GROWTH if self.gain_NL is None else (*GROWTH, "gain", "control")
        growth: dict[str, list] = {key: [] for key in names}
        for task in range(len(self.slots)):
            by_layer: dict[str, Any] = {}
            if self.count_NLSK[task].any():
                by_layer = self._probing(task)
            added_LS = self.owner_LS == task
            by_layer["experts"] = added_LS.sum(axis=1).tolist()
            by_layer |= self._gains(task)
            facts: dict[str, Any] = {}
            for name, rows in by_layer.items():
                facts[name] = self._from_the_bottom(name, rows)
            facts["parameters"] = self.added(task)
            for key, by_task in growth.items():
                by_task.append(facts.get(key))
        return growth

    def _gains(self, task: int) -> dict[str, list[float]]:
        """Gains of a task's probe and of its control; empty where layers are not judged by them, or nothing was
        measured."""
        gains = {}
        for name, by_task in (("gain", self.gain_NL), ("control", self.control_NL)):
            if by_task is not None and by_task[task].any():
                gains[name] = by_task[task].tolist()
        return gains

    def _from_the_bottom(self, name: str, rows: list | None) -> list | None:
        """Rows of all decoder layers, from those of a pool that may begin further up; `used` has such rows by task."""
        if rows is None:
            return None
        if name == "used":
            below = [0.0] * self.lowest
            return [below + row for row in rows]
        missing = 0 if name == "experts" else None
        return [missing] * self.lowest + rows

    def added(self, task: int) -> dict[str, int]:
        """Parameters that one task added, by kind."""
        experts = int((self.owner_LS == task).sum())
        columns = int(self.chosen_NLS[task].sum())
        return {
            "experts": self.expert_size * experts,
            "routers": self.router_width * columns,
            "locator": self.gate_size,
        }

    def sizes(self) -> dict[str, dict[str, int]]:
        """Parameters beyond the base by kind, as a method's `sizes`."""
        if not self.learned:
            return {"stored": no_parameters(), "archived": no_parameters(), "trained": no_parameters()}
        experts = int((self.owner_LS != EMPTY).sum())
        columns = int(self.chosen_NLS.sum())
        stored = no_parameters() | {
            "experts": self.expert_size * experts,
            "routers": self.router_width * columns,
            "locator": len(self.learned) * self.gate_size,
        }
        added = [self.added(task) for task in self.learned]
        largest = max(added, key=lambda counts: sum(counts.values()))
        trained = no_parameters() | largest
        return {"stored": stored, "archived": stored, "trained": trained}

    def _probing(self, task: int) -> dict[str, Any]:
        """Facts from the counts of a task's probe, by the names of `growth`, each a list by layer of the pool."""
        count_LSK = self.count_NLSK[task]
        mass_LSK = self.mass_NLSK[task]
        count_LS = tokens_per_slot(count_LSK, self.probe)
        first_new = self.slots[task].start
        active_LS = active_slots(self.owner_LS, first_new)
        frequency_L, threshold_L = probe_frequencies(count_LS, active_LS, self.probe, self.top_k)
        choices_L = np.maximum(count_LS.sum(axis=1), 1)
        # A probe that is on for every token counts them; otherwise every token makes `top_k` choices.
        tokens_L = choices_L / self.top_k if self.counts_probes else np.maximum(count_LS[:, -1], 1)
        # Of the pool, without the probe as the last slot.
        pool_count_LS = count_LS[:, :-1]
        pool_active_LS = active_LS[:, :-1]
        used = []
        for other in range(task):
            is_of_other_LS = self.owner_LS == other
            chosen_L = np.where(is_of_other_LS, pool_count_LS, 0).sum(axis=1)
            used_L = chosen_L / tokens_L
            used.append(used_L.tolist())
        choices_LK = np.maximum(count_LSK.sum(axis=1), 1)
        probe_LK = count_LSK[:, -1]
        by_kind_LK = probe_LK * self.top_k / choices_LK
        mass_of_all_L = mass_LSK.sum((1, 2))
        mass_of_probe_L = mass_LSK[:, -1].sum(-1)
        # The least mass keeps a layer without tokens from dividing by zero.
        mass_L = mass_of_probe_L / np.maximum(mass_of_all_L, 1e-9)
        source_L1 = most_used(pool_count_LS, pool_active_LS, 1)
        facts: dict[str, Any] = {}
        if self.counts_probes:
            facts["frequency"] = frequency_L.tolist()
            if self.gain_NL is None:
                facts["threshold"] = threshold_L.tolist()
            facts["by_kind"] = by_kind_LK.tolist()
            facts["mass"] = mass_L.tolist()
        return facts | {
            "used": used,
            "drift": self._drift(task, source_L1[:, 0]) if self.copies else None,
        }

    def _drift(self, task: int, source_L: np.ndarray) -> list[dict[str, float] | None]:
        """By layer, how far the task's first new expert has gone from the slot it was copied from; None where nothing
        was added or where the source is gone since."""
        new_slot = self.slots[task].start
        added_L = self.owner_LS[:, new_slot] == task
        drift: list[dict[str, float] | None] = [None] * len(source_L)
        sources = {int(slot) for slot in source_L if slot >= 0}
        # Both measures compare a pair of slots in all layers at once, so the loop is over sources.
        for slot in sorted(sources):
            distance_by_site = distance(self.bank, slot, new_slot)
            distances = list(distance_by_site.values())
            distance_L = np.mean(distances, axis=0)
            cosine_L = closeness(self.bank, slot, new_slot)
            is_source_L = source_L == slot
            copied_L = is_source_L & added_L
            for layer in np.flatnonzero(copied_L):
                cosine = float(cosine_L[layer])
                mean_distance = float(distance_L[layer])
                drift[layer] = {"cosine": cosine, "distance": mean_distance}
        return drift
