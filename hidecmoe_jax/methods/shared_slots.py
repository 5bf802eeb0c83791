"""Whose expert serves a task in layers that keep tasks apart: its own, or the one that it was merged into.

A home is a fact of a layer: a task may have been merged into one task here and into another there, and have an expert
of its own in a third layer. Homes are in a learner's memory only as long as some task lives with another, so a learner
that was never merged carries nothing of this.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.experts.bank import Bank, owned_slots

HOME = "home"  # int32 [L, N]: the task in whose slot a task lives, in every row of the bank


def moved(memory: dict[str, Any], rows: np.ndarray, task: int, into: int, *, shape: tuple[int, int]) -> dict[str, Any]:
    """The memory after `task`, and whoever lived with it, moved in with `into` in these rows.

    Args:
      shape: rows of the bank and tasks there is room for, (L, N).
    """
    home_LN = np.array(memory.get(HOME, np.broadcast_to(np.arange(shape[1]), shape)))
    home_LN[rows] = np.where(home_LN[rows] == task, into, home_LN[rows])
    return memory | {HOME: jnp.asarray(home_LN, jnp.int32)}


def left(memory: dict[str, Any], task: int) -> dict[str, Any]:
    """The memory after `task` lives with nobody any more."""
    if HOME not in memory:
        return memory
    home_LN = np.array(memory[HOME])
    home_LN[:, task] = task
    rest = {name: leaf for name, leaf in memory.items() if name != HOME}
    away = (home_LN != np.arange(home_LN.shape[1])).any()
    return rest | {HOME: jnp.asarray(home_LN)} if away else rest


def shared(memory: dict[str, Any]) -> dict[tuple[int, int], np.ndarray]:
    """Rows in which a task is served from another's slot, by the two tasks (task, home)."""
    if HOME not in memory:
        return {}
    home_LN = np.asarray(memory[HOME])
    rows, tasks = np.nonzero(home_LN != np.arange(home_LN.shape[1]))
    pairs = sorted(set(zip(tasks.tolist(), home_LN[rows, tasks].tolist(), strict=True)))
    return {(task, home): np.flatnonzero(home_LN[:, task] == home) for task, home in pairs}


def own_slots(bank: Bank) -> np.ndarray:
    """The slot that every task owns in every row, int32 [L, N], of a bank with a slot for each beside that of the
    fusion; -1 where it owns none."""
    tasks = bank.slots - 1
    return np.array([owned_slots(bank, task) for task in range(tasks)], np.int32).reshape(tasks, bank.layers).T


def serving_slots(bank: Bank, memory: dict[str, Any]) -> np.ndarray:
    """The slot that serves every task in every row, int32 [L, N]: its own, or that of its home; -1 for none."""
    own_LN = own_slots(bank)
    if HOME not in memory:
        return own_LN
    return np.where(own_LN >= 0, own_LN, np.take_along_axis(own_LN, np.asarray(memory[HOME]), axis=1))
