"""Pools: banks in which a task may own several slots of a layer, at places that are known beforehand.

A pool's experts are told apart by where they stand, not by their owner, so whole runs of slots are taken out and put
in. Places are operands, not parts of a program, so a later task's slots compile nothing. Misuse raises ValueError with
the numbers at fault.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.lax import dynamic_slice_in_dim, dynamic_update_slice_in_dim

from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.experts.slots import check_alike

POOL = "pool"  # the family name of a pool's bank and routers in a learner


def beside(banks: Sequence[Bank]) -> Bank:
    """Like `concatenate`, for experts of a pool: a task may own several slots of a layer."""
    for index, bank in enumerate(banks[1:], start=1):
        check_alike(banks[0], bank, f"cannot put bank {index} beside the others")
    return banks[0].replace(
        a={site: jnp.concatenate([bank.a[site] for bank in banks], axis=2) for site in banks[0].a},
        b={site: jnp.concatenate([bank.b[site] for bank in banks], axis=1) for site in banks[0].b},
        owner_LS=jnp.concatenate([bank.owner_LS for bank in banks], axis=1),
    )


def taken(bank: Bank, start: int, stop: int) -> Bank:
    """The slots `start` up to, not including, `stop` of a pool as a bank of their own; the inverse of `put`.

    Raises:
      ValueError: there are no such slots.
    """
    if not 0 <= start <= stop <= bank.slots:
        raise ValueError(f"slots {start}..{stop} are not all among the bank's {bank.slots}")
    count = stop - start
    return bank.replace(
        a={site: dynamic_slice_in_dim(a, start, count, axis=2) for site, a in bank.a.items()},
        b={site: dynamic_slice_in_dim(b, start, count, axis=1) for site, b in bank.b.items()},
        owner_LS=dynamic_slice_in_dim(bank.owner_LS, start, count, axis=1),
    )


def put(bank: Bank, start: int, experts: Bank) -> Bank:
    """Writes all slots of `experts` into a pool from slot `start` on, EMPTY ones as well.

    Raises:
      ValueError: too few slots, one that is owned, or banks that differ in more than their slots.
    """
    check_alike(bank, experts, f"cannot put experts at slot {start}")
    stop = start + experts.slots
    taken_LS = np.asarray(bank.owner_LS)[:, start:stop] != EMPTY
    if not 0 <= start <= stop <= bank.slots or taken_LS.any():
        raise ValueError(f"slots {start}..{stop} of {bank.slots} are not all free")
    return bank.replace(
        a={site: dynamic_update_slice_in_dim(a, experts.a[site], start, axis=2) for site, a in bank.a.items()},
        b={site: dynamic_update_slice_in_dim(b, experts.b[site], start, axis=1) for site, b in bank.b.items()},
        owner_LS=dynamic_update_slice_in_dim(bank.owner_LS, experts.owner_LS, start, axis=1),
    )
