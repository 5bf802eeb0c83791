"""Fusion: the experts of several tasks become one that is always active (HiDe-LLaVA, arXiv 2503.12941, section 3).

`factor_sum` writes a slot of its own, owned by FUSED; the product rules are gains of the experts themselves. Either
way the sources stay in the bank, so a fusion can be made anew when a task comes or goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import pool, surgery
from hidecmoe_jax.experts.bank import FUSED, Bank
from hidecmoe_jax.experts.slots import clear, owners_of
from hidecmoe_jax.methods.shared_slots import own_slots

FUSED_SLOT = 0  # tasks start at slot 1, so that widening never moves the fusion


def slot_of(task: int) -> int:
    """The slot of a task's own expert, behind that of the fusion."""
    return FUSED_SLOT + 1 + task


def owning_tasks(bank: Bank) -> tuple[int, ...]:
    """Tasks that own an expert, ascending."""
    return tuple(sorted(owners_of(bank) - {FUSED}))


def own_factors(bank: Bank, task: int) -> dict[str, Array]:
    """The factors of a task's own expert, flat. They are read by slot, so those of a retired task are zero."""
    slot = slot_of(task)
    expert = pool.slice_slots(bank, slot, slot + 1)
    return trees.flatten(expert.factors)


def with_expert(bank: Bank, empty_slot: Bank, task: int, factors: dict[str, Array]) -> Bank:
    """The bank with an expert of these factors in the task's slot; the inverse of `own_factors`.

    Args:
      empty_slot: a bank of one EMPTY slot, of the same layers, sites and rank.
    """
    slot = slot_of(task)
    owner_L1 = jnp.full_like(empty_slot.owner_LS, task)
    tree = trees.unflatten(factors)
    expert = empty_slot.with_factors(tree).replace(owner_LS=owner_L1)
    return surgery.plant(bank, slot, expert, task)


@dataclass(frozen=True)
class FusionRule:
    """A fusion rule and the weight of every task in it; no weights mean 1.0 each.

    `where` is the field that gives the weights, for errors.
    """

    mode: surgery.Fusion = "factor_sum"
    eps: tuple[float, ...] = ()
    where: str = "method.eps"

    def fused(self, bank: Bank, layers: tuple[int, ...], serving_slot_LN: np.ndarray | None = None) -> Bank:
        """The bank with a fusion of all its tasks in these decoder layers and in no other.

        Args:
          serving_slot_LN: serving_slot_LN[row, task] is the slot whose expert answers for that task, -1 for none;
            None for the task's own.

        Raises:
          ConfigError: a task has no weight.
        """
        sources = self._sources(bank, serving_slot_LN)
        layers = layers if sources["tasks"] else ()
        owner_LS = np.asarray(bank.owner_LS)
        has_fusion_L = owner_LS[:, FUSED_SLOT] == FUSED
        layer_L = np.arange(bank.layers) + bank.first_layer
        to_fuse_L = np.isin(layer_L, layers)
        is_stale_L = has_fusion_L & ~to_fuse_L
        # Fusions of layers that are expanded now, or whose last task was retired.
        stale = np.flatnonzero(is_stale_L)
        if stale.size:
            fused_slots = np.full(stale.size, FUSED_SLOT)
            bank = clear(bank, stale, fused_slots)
        if not layers:
            return bank
        return surgery.fuse(bank, mode=self.mode, slot=FUSED_SLOT, layers=layers, **sources)

    def gains(self, bank: Bank, layers: tuple[int, ...], serving_slot_LN: np.ndarray | None = None) -> Array:
        """Gains float32 [L, S] of a bank that `fused` has made of the same arguments; zero outside `layers`."""
        sources = self._sources(bank, serving_slot_LN)
        if not sources["tasks"]:
            return jnp.zeros(bank.owner_LS.shape)
        return surgery.fusion_gains(bank, mode=self.mode, layers=layers, **sources)

    def stored(self, tasks: int) -> int:
        """How many experts serving needs of a fused layer after so many tasks: product sums keep the rank of all."""
        if self.mode == "factor_sum":
            return min(tasks, 1)
        return tasks

    def require(self, tasks: int) -> None:
        """Raises ConfigError where one of so many tasks has no weight."""
        weights = len(self.eps)
        if self.eps and weights < tasks:
            raise ConfigError(
                "a fusion weight is missing", where=self.where,
                why=f"{weights} weights for {tasks} tasks",
                remedy="give one weight per task, or leave it empty for 1.0 each",
            )  # fmt: skip

    def _sources(self, bank: Bank, serving_slot_LN: np.ndarray | None) -> dict[str, Any]:
        """Tasks, their weights and their slots, as `surgery` takes them."""
        if serving_slot_LN is None:
            serving_slot_LN = own_slots(bank)
        has_slot_N = (serving_slot_LN >= 0).any(axis=0)
        tasks = tuple(np.flatnonzero(has_slot_N).tolist())
        self.require(max(tasks, default=-1) + 1)
        eps = (1.0,) * len(tasks)
        if self.eps:
            eps = tuple(self.eps[task] for task in tasks)
        serving_slots = {task: serving_slot_LN[:, task] for task in tasks}
        return {"tasks": tasks, "eps": eps, "serving_slots": serving_slots}
