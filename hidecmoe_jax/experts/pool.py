"""Pools: banks in which a task may own several slots of a layer, at places that are known beforehand.

A pool's experts are told apart by where they stand, not by their owner, so whole runs of slots are taken out and put
in. Misuse raises ValueError with the numbers at fault.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

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
    """The slots `start` up to, not including, `stop` of a pool as a bank of their own; the inverse of `put`."""
    return bank.replace(
        a={site: a[:, :, start:stop] for site, a in bank.a.items()},
        b={site: b[:, start:stop] for site, b in bank.b.items()},
        owner_LS=bank.owner_LS[:, start:stop],
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
        a={site: a.at[:, :, start:stop].set(experts.a[site]) for site, a in bank.a.items()},
        b={site: b.at[:, start:stop].set(experts.b[site]) for site, b in bank.b.items()},
        owner_LS=bank.owner_LS.at[:, start:stop].set(experts.owner_LS),
    )
