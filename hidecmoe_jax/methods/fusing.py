"""How experts of several tasks become one that always speaks (HiDe-LLaVA, arXiv 2503.12941, section 3).

`factor_sum` writes a slot of its own, owned by FUSED; the product rules are gains of the experts themselves. Either
way the sources stay in the bank, so a fusion can be made anew when a task comes or goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import FUSED, Bank
from hidecmoe_jax.experts.slots import clear

FUSED_SLOT = 0  # tasks start at slot 1, so that widening never moves the fusion


def owners(bank: Bank) -> tuple[int, ...]:
    """Tasks that own an expert, ascending."""
    return tuple(int(task) for task in np.unique(np.asarray(bank.owner_LS)) if task >= 0)


@dataclass(frozen=True)
class Fusing:
    """A fusion rule (HiDe-D1) and the weight of every task in it; no weights mean 1.0 each (HiDe-D2)."""

    mode: surgery.Fusion = "factor_sum"
    eps: tuple[float, ...] = ()

    def fused(self, bank: Bank, layers: tuple[int, ...]) -> Bank:
        """The bank with a fusion of all its tasks in these decoder layers and in no other.

        Raises:
          ConfigError: a task has no weight.
        """
        tasks = owners(bank)
        layers = layers if tasks else ()
        there = np.asarray(bank.owner_LS)[:, FUSED_SLOT] == FUSED
        stale = np.flatnonzero(there & ~np.isin(np.arange(bank.layers) + bank.first_layer, layers))
        if stale.size:
            bank = clear(bank, stale, np.full(stale.size, FUSED_SLOT))
        if not layers:
            return bank
        return surgery.fuse(bank, tasks, mode=self.mode, slot=FUSED_SLOT, layers=layers, eps=self._weights(tasks))

    def gains(self, bank: Bank, layers: tuple[int, ...]) -> Array:
        """Gains float32 [L, S] with which a bank speaks that `fused` has made; zero outside `layers`."""
        tasks = owners(bank)
        if not tasks:
            return jnp.zeros(bank.owner_LS.shape)
        return surgery.fusion_gains(bank, tasks, mode=self.mode, layers=layers, eps=self._weights(tasks))

    def _weights(self, tasks: tuple[int, ...]) -> tuple[float, ...]:
        if self.eps and len(self.eps) <= max(tasks):
            raise ConfigError(
                "a fusion weight is missing", where="method.eps",
                why=f"{len(self.eps)} weights for {max(tasks) + 1} tasks",
                remedy="give one weight per task, or leave it empty for 1.0 each",
            )  # fmt: skip
        return tuple(self.eps[task] for task in tasks) if self.eps else (1.0,) * len(tasks)
