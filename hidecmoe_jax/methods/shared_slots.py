"""Slots that serve several tasks after a merge, in methods with one slot per task.

`home_LN` (int32 [L, N]) is the task in whose slot a task is served, in every row of the bank. A task may have been
merged into one task in one layer and into another task in the next, and own an expert in a third. It is None as long as
every task is served from its own slot, so that a learner that was never merged carries nothing of this.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts.bank import Bank, owned_slots


def redirect(home_LN: Array | None, rows: np.ndarray, task: int, into: int, *, shape: tuple[int, int]) -> Array:
    """Record that `task`, and every task already merged into it, is now served from the slot of `into` in `rows`.

    Args:
      shape: rows of the bank and tasks there is room for, (L, N).
    """
    _, tasks = shape
    if home_LN is None:
        home_LN = np.broadcast_to(np.arange(tasks), shape)
    redirected_LN = np.array(home_LN)
    homes_RN = redirected_LN[rows]
    # Not the column of `task` alone: tasks that were merged into it before move along.
    moves_RN = homes_RN == task
    redirected_LN[rows] = np.where(moves_RN, into, homes_RN)
    return jnp.asarray(redirected_LN, jnp.int32)


def clear_redirects(home_LN: Array | None, task: int) -> Array | None:
    """Record that `task` is served from its own slot again; None where no other task is redirected."""
    if home_LN is None:
        return None
    cleared_LN = np.array(home_LN)
    cleared_LN[:, task] = task
    _, tasks = cleared_LN.shape
    is_redirected_LN = cleared_LN != np.arange(tasks)
    if not is_redirected_LN.any():
        # None again, so that the learner equals a learner that was never merged.
        return None
    return jnp.asarray(cleared_LN)


def redirected(home_LN: Array | None) -> dict[tuple[int, int], np.ndarray]:
    """Rows in which a task is served from another's slot, by the two tasks (task, home)."""
    if home_LN is None:
        return {}
    table_LN = np.asarray(home_LN)
    unmerged_N = np.arange(table_LN.shape[1])
    rows, tasks = np.nonzero(table_LN != unmerged_N)
    homes = table_LN[rows, tasks]
    pairs = zip(tasks.tolist(), homes.tolist(), strict=True)
    distinct_pairs = set(pairs)
    rows_by_pair = {}
    for task, home in sorted(distinct_pairs):
        is_served_L = table_LN[:, task] == home
        rows_by_pair[task, home] = np.flatnonzero(is_served_L)
    return rows_by_pair


def own_slots(bank: Bank) -> np.ndarray:
    """The slot that every task owns in every row, int32 [L, N], of a bank with a slot for each task beside that of the
    fusion; -1 where it owns none."""
    tasks = bank.slots - 1
    slots = [owned_slots(bank, task) for task in range(tasks)]
    slot_table = np.array(slots, np.int32)
    # The reshape is for a bank without tasks, whose list is empty.
    slot_NL = slot_table.reshape(tasks, bank.layers)
    return slot_NL.T


def serving_slots(bank: Bank, home_LN: Array | None) -> np.ndarray:
    """The slot that serves every task in every row, int32 [L, N]: its own, or that of its home; -1 for none."""
    own_LN = own_slots(bank)
    if home_LN is None:
        return own_LN
    home_LN = np.asarray(home_LN)
    home_slot_LN = np.take_along_axis(own_LN, home_LN, axis=1)
    has_own_LN = own_LN >= 0
    return np.where(has_own_LN, own_LN, home_slot_LN)
