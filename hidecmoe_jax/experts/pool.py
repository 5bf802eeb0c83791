"""Pools: banks in which a task may own several slots of a layer, at positions that are fixed beforehand.

A pool's experts are identified by their position, not by their owner, so contiguous runs of slots are sliced and
written. Positions are operands of the compiled programs, not constants in them, so a later task's slots compile
nothing. Misuse raises ValueError with the numbers at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import dynamic_slice_in_dim, dynamic_update_slice_in_dim

from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.experts.slots import check_alike, in_order_of

POOL = "pool"  # the family name of a pool's bank and routers in a learner


def concat_slots(banks: Sequence[Bank]) -> Bank:
    """Like `surgery.concatenate`, for experts of a pool: a task may own several slots of a layer."""
    first = banks[0]
    for index, bank in enumerate(banks[1:], start=1):
        check_alike(first, bank, f"cannot put bank {index} beside the others")

    return in_order_of(first, _joined(tuple(banks)))


def slice_slots(bank: Bank, start: int, stop: int) -> Bank:
    """The slots `start` up to, not including, `stop` of a pool as a bank of their own; the inverse of `write_slots`.

    Raises:
      ValueError: there are no such slots.
    """
    if not 0 <= start <= stop <= bank.slots:
        raise ValueError(f"slots {start}..{stop} are not all among the bank's {bank.slots}")
    return in_order_of(bank, _sliced(bank, np.int32(start), size=stop - start))


def write_slots(bank: Bank, start: int, experts: Bank) -> Bank:
    """Writes all slots of `experts` into a pool from slot `start` on, EMPTY ones as well.

    Raises:
      ValueError: too few slots, one that is owned, or banks that differ in more than their slots.
    """
    check_alike(bank, experts, f"cannot put experts at slot {start}")
    stop = start + experts.slots
    owner_LS = np.asarray(bank.owner_LS)
    occupied_LS = owner_LS[:, start:stop] != EMPTY
    # The range is checked too: an update that does not fit would be shifted, not refused.
    in_range = 0 <= start <= stop <= bank.slots
    if not in_range or occupied_LS.any():
        raise ValueError(f"slots {start}..{stop} of {bank.slots} are not all free")
    return in_order_of(bank, _with_slots(bank, experts, np.int32(start)))


# Each is one program for all sites: leaf by leaf, dispatching takes longer than the copying.
@jax.jit
def _joined(banks: tuple[Bank, ...]) -> Bank:
    def joined(axis: int, *leaves: Array) -> Array:
        return jnp.concatenate(leaves, axis=axis)

    return _over_slots(joined, *banks)


@partial(jax.jit, static_argnames="size")
def _sliced(bank: Bank, start: Array, size: int) -> Bank:
    def sliced(axis: int, leaf: Array) -> Array:
        return dynamic_slice_in_dim(leaf, start, size, axis=axis)

    return _over_slots(sliced, bank)


@jax.jit
def _with_slots(bank: Bank, experts: Bank, start: Array) -> Bank:
    def written(axis: int, leaf: Array, update: Array) -> Array:
        return dynamic_update_slice_in_dim(leaf, update, start, axis=axis)

    return _over_slots(written, bank, experts)


def _over_slots(change: Callable[..., Array], *banks: Bank) -> Bank:
    """The bank whose leaves are `change(slot axis, *leaves of the banks)`."""
    a = {}
    b = {}
    first = banks[0]
    for site in first.a:
        # Slots are axis 2 of a [L, D, S, R], and axis 1 of b [L, S, R, F] and of the owners.
        a_leaves = [bank.a[site] for bank in banks]
        b_leaves = [bank.b[site] for bank in banks]
        a[site] = change(2, *a_leaves)
        b[site] = change(1, *b_leaves)
    owners = [bank.owner_LS for bank in banks]
    owner_LS = change(1, *owners)
    return first.replace(a=a, b=b, owner_LS=owner_LS)
