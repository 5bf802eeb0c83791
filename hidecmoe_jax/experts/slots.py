"""Rows and slots of a bank: what surgery asks before it cuts, and the one write that it cuts with.

A row is a layer counted from the bank's beginning, a layer is a layer of the decoder; users speak of layers,
arrays have rows. Ownership is read on the host, so that a wrong slot or task is an error with numbers and not
a silent overwrite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts.bank import EMPTY, FUSED, Bank, owned_slots


def rows_of(bank: Bank, layers: Sequence[int] | None) -> np.ndarray:
    """Ascending rows of the given decoder layers, int64; None means all.

    Raises:
      ValueError: a layer outside the bank, or named twice.
    """
    if layers is None:
        return np.arange(bank.layers)
    last = bank.first_layer + bank.layers
    outside = [int(layer) for layer in layers if not bank.first_layer <= layer < last]
    if outside:
        raise ValueError(f"layer {outside[0]} is not one of the bank's, {bank.first_layer}..{last - 1}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"a layer is named twice: {list(layers)}")
    return np.asarray(sorted(layers), np.int64) - bank.first_layer


def slots_of(bank: Bank, task: int) -> np.ndarray:
    """Slot of `task` in every row, -1 where it has none, int32 [L].

    Raises:
      ValueError: the task owns nothing in the bank, or two slots of one layer.
    """
    if task == EMPTY:
        raise ValueError(f"{EMPTY} marks a free slot, it is no task")
    slots = owned_slots(bank, task)
    if (slots < 0).all():
        owners = sorted({int(owner) for owner in np.asarray(bank.owner_LS).ravel()} - {EMPTY})
        raise ValueError(f"task {task} owns no slot of the bank; owners: {owners}")
    return slots


def layer_at(bank: Bank, row: int) -> str:
    """A row as an error message names it."""
    return f"layer {bank.first_layer + int(row)}"


def check_slot(bank: Bank, slot: int) -> None:
    """Raises ValueError where the bank has no such slot."""
    if not 0 <= slot < bank.slots:
        raise ValueError(f"slot {slot} is not in the bank, which has {bank.slots}; widen it first")


def check_free(bank: Bank, slot: int, task: int, rows: np.ndarray) -> None:
    """Raises ValueError unless `task` may move into `slot` in all `rows`: EMPTY, and its only one there."""
    check_slot(bank, slot)
    if task < 0 and task != FUSED:
        raise ValueError(f"an owner is a task >= 0 or FUSED ({FUSED}), got {task}")
    owners_LS = np.asarray(bank.owner_LS)[rows]
    taken = np.flatnonzero(owners_LS[:, slot] != EMPTY)
    if taken.size:
        where, owner = layer_at(bank, rows[taken[0]]), owners_LS[taken[0], slot]
        raise ValueError(f"slot {slot} is taken in {where} by task {owner}; wanted for task {task}")
    twice = rows[(owners_LS == task).any(axis=1)]
    if twice.size:
        where = layer_at(bank, twice[0])
        raise ValueError(f"task {task} has an expert in {where} already; no second one in slot {slot}")


def check_fusible(bank: Bank, slot: int, rows: np.ndarray) -> None:
    """Raises ValueError where a task owns the slot, or another slot of a row holds a fusion."""
    check_slot(bank, slot)
    owners_LS = np.asarray(bank.owner_LS)[rows]
    taken = np.flatnonzero(owners_LS[:, slot] >= 0)
    if taken.size:
        where, task = layer_at(bank, rows[taken[0]]), owners_LS[taken[0], slot]
        raise ValueError(f"cannot fuse into slot {slot}: task {task} owns it in {where}")
    doubled = rows[(np.delete(owners_LS, slot, axis=1) == FUSED).any(axis=1)]
    if doubled.size:
        where = layer_at(bank, doubled[0])
        raise ValueError(f"cannot fuse into slot {slot}: another slot holds a fusion in {where}")


def check_alike(bank: Bank, other: Bank, what: str) -> None:
    """Raises ValueError where banks differ in more than slots: a quiet cast or rescaling alters an expert."""

    def facts(b: Bank) -> dict[str, Any]:
        return {
            "sites": {site: (b.a[site].shape[1], b.b[site].shape[3]) for site in b.sites},
            "rank": b.rank,
            "layers": b.layers,
            "first_layer": b.first_layer,
            "scale": b.scale,
            "dtypes": {site: (b.a[site].dtype.name, b.b[site].dtype.name) for site in b.sites},
        }

    mine, theirs = facts(bank), facts(other)
    wrong = [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if mine[name] != theirs[name]]
    if wrong:
        raise ValueError(f"{what}: {'; '.join(wrong)}")


def write(bank: Bank, rows: np.ndarray, slot: int | np.ndarray, *, a_LDR: dict, b_LRF: dict, owner) -> Bank:
    """Sets one slot of every row; `slot` and `owner` are numbers, or arrays with an entry for each row."""
    at = np.broadcast_to(np.asarray(slot), rows.shape)
    owner_L = jnp.asarray(np.broadcast_to(np.asarray(owner), rows.shape), jnp.int32)
    return bank.replace(
        a={site: a.at[rows, :, at].set(a_LDR[site]) for site, a in bank.a.items()},
        b={site: b.at[rows, at].set(b_LRF[site]) for site, b in bank.b.items()},
        owner_LS=bank.owner_LS.at[rows, at].set(owner_L),
    )


def clear(bank: Bank, rows: np.ndarray, slots: np.ndarray) -> Bank:
    """Zeros and no owner: a slot that is free must also be silent, whatever gain reaches it."""
    nothing_a = {site: jnp.zeros((), a.dtype) for site, a in bank.a.items()}
    nothing_b = {site: jnp.zeros((), b.dtype) for site, b in bank.b.items()}
    return write(bank, rows, slots, a_LDR=nothing_a, b_LRF=nothing_b, owner=EMPTY)


def pad(leaf: Array, axis: int, more: int) -> Array:
    """Zeros at the end of one axis."""
    return jnp.pad(leaf, [(0, more if index == axis else 0) for index in range(leaf.ndim)])
