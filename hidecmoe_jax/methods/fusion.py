"""Fusion: the experts of several tasks become one that is always active (HiDe-LLaVA, arXiv 2503.12941, section 3).

`factor_sum` writes a slot of its own, owned by FUSED; the product rules are gains of the experts themselves. Either
way the sources stay in the bank, so a fusion can be made anew when a task comes or goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import pool, surgery
from hidecmoe_jax.experts.bank import FUSED, Bank
from hidecmoe_jax.experts.slots import clear, owners_of
from hidecmoe_jax.methods.shared_slots import own_slots

if TYPE_CHECKING:
    from hidecmoe_jax.methods.routed import Routed

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


Volume = Literal["1/T", "1/sqrt(T)"] | float | None
"""Factor of a `product_sum` over T tasks. Updates of independent tasks add up in quadrature, so 1/sqrt(T) keeps the
size of one of them where 1/T, a mean, dilutes even the newest."""


def volume_of(volume: Volume, tasks: Any) -> Any:
    """The factor for `tasks` tasks, a number or an integer array []; 1 for None."""
    if volume is None:
        return 1.0
    count = jnp.maximum(tasks, 1)
    match volume:
        case "1/T":
            return 1.0 / count
        case "1/sqrt(T)":
            return 1.0 / jnp.sqrt(count)
        case _:
            return float(volume)


def check_sum(method: Routed) -> None:
    """Raises ValueError where settings of a sum of products (`volume`, `train_as`) stand beside another fusion, or the
    volume is no number that a sum can have."""
    volume = method.volume
    is_sum = method.growth == "per_task" and method.fusion == "product_sum"
    if method.train_as == "served" and not is_sum:
        raise ValueError("train_as 'served' needs growth 'per_task' and fusion 'product_sum'")
    if volume is not None and not is_sum:
        raise ValueError(f"volume {volume} scales fusion 'product_sum' of growth 'per_task', not {method.fusion!r}")
    if isinstance(volume, float | int) and not 0 <= volume < float("inf"):
        raise ValueError(f"volume {volume} must be at least 0, or 1/T or 1/sqrt(T)")


@dataclass(frozen=True)
class FusionRule:
    """A fusion rule and the weight of every task in it; no weights mean 1.0 each.

    `volume` scales a `product_sum`; `where` is the field that gives the weights, for errors.
    """

    mode: surgery.Fusion = "factor_sum"
    eps: tuple[float, ...] = ()
    where: str = "method.eps"
    volume: Volume = None

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
        gain_LS = surgery.fusion_gains(bank, mode=self.mode, layers=layers, **sources)
        if self.volume is None:
            return gain_LS
        return gain_LS * jnp.float32(volume_of(self.volume, len(sources["tasks"])))

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
