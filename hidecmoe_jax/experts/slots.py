"""Rows and slots of a bank: the checks before surgery, sums of slots, and the one function that writes.

A row is a layer counted from the bank's first one, a layer is a layer of the decoder: callers name layers, arrays have
rows. Ownership is read on the host, so that a wrong slot or task is an error with numbers and not a silent overwrite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts import programs
from hidecmoe_jax.experts.bank import EMPTY, FUSED, Bank, owned_slots


def rows_of(bank: Bank, layers: Sequence[int] | None) -> np.ndarray:
    """Ascending rows of the given decoder layers, int64; None means all.

    Raises:
      ValueError: a layer outside the bank, or named twice.
    """
    if layers is None:
        return np.arange(bank.layers)
    first = bank.first_layer
    end = first + bank.layers
    for layer in layers:
        if not first <= layer < end:
            last = end - 1
            raise ValueError(f"layer {int(layer)} is not one of the bank's, {first}..{last}")
    distinct = set(layers)
    if len(distinct) != len(layers):
        raise ValueError(f"a layer is named twice: {list(layers)}")
    ascending = sorted(layers)
    layer_numbers = np.asarray(ascending, np.int64)
    return layer_numbers - first


def slots_of(bank: Bank, task: int) -> np.ndarray:
    """Slot of `task` in every row, -1 where it has none, int32 [L].

    Raises:
      ValueError: the task owns nothing in the bank, or two slots of one layer.
    """
    if task == EMPTY:
        raise ValueError(f"{EMPTY} marks a free slot, it is no task")
    slots_L = owned_slots(bank, task)
    has_none_L = slots_L < 0
    if has_none_L.all():
        owners = owners_of(bank)
        raise ValueError(f"task {task} owns no slot of the bank; owners: {sorted(owners)}")
    return slots_L


def owners_of(bank: Bank) -> set[int]:
    """Tasks (or FUSED) that own a slot somewhere in the bank."""
    owner_LS = np.asarray(bank.owner_LS)
    owner_numbers = owner_LS.ravel().tolist()
    owners = set(owner_numbers)
    return owners - {EMPTY}


def layer_at(bank: Bank, row: int) -> str:
    """A row as an error message names it."""
    layer = bank.first_layer + int(row)
    return f"layer {layer}"


def check_slot(bank: Bank, slot: int) -> None:
    """Raises ValueError where the bank has no such slot."""
    if not 0 <= slot < bank.slots:
        raise ValueError(f"slot {slot} is not in the bank, which has {bank.slots}; widen it first")


def check_free(bank: Bank, slot: int, task: int, rows: np.ndarray) -> None:
    """Raises ValueError unless `task` may own `slot` in all `rows`: EMPTY, and the only slot of the task there."""
    check_slot(bank, slot)
    if task < 0 and task != FUSED:
        raise ValueError(f"an owner is a task >= 0 or FUSED ({FUSED}), got {task}")
    owner_LS = np.asarray(bank.owner_LS)
    owners_LS = owner_LS[rows]
    slot_owner_L = owners_LS[:, slot]
    occupied = np.flatnonzero(slot_owner_L != EMPTY)
    if occupied.size:
        first = occupied[0]
        where = layer_at(bank, rows[first])
        owner = slot_owner_L[first]
        raise ValueError(f"slot {slot} is taken in {where} by task {owner}; wanted for task {task}")
    # One slot per owner and layer, as `owned_slots` requires.
    is_owner_LS = owners_LS == task
    doubled = rows[is_owner_LS.any(axis=1)]
    if doubled.size:
        where = layer_at(bank, doubled[0])
        raise ValueError(f"task {task} has an expert in {where} already; no second one in slot {slot}")


def check_fusible(bank: Bank, slot: int, rows: np.ndarray) -> None:
    """Raises ValueError where a task owns the slot, or another slot of a row holds a fusion."""
    check_slot(bank, slot)
    owner_LS = np.asarray(bank.owner_LS)
    owners_LS = owner_LS[rows]
    slot_owner_L = owners_LS[:, slot]
    occupied = np.flatnonzero(slot_owner_L >= 0)
    if occupied.size:
        first = occupied[0]
        where = layer_at(bank, rows[first])
        task = slot_owner_L[first]
        raise ValueError(f"cannot fuse into slot {slot}: task {task} owns it in {where}")
    other_owners_LS = np.delete(owners_LS, slot, axis=1)
    is_fusion_LS = other_owners_LS == FUSED
    doubled = rows[is_fusion_LS.any(axis=1)]
    if doubled.size:
        where = layer_at(bank, doubled[0])
        raise ValueError(f"cannot fuse into slot {slot}: another slot holds a fusion in {where}")


def check_alike(bank: Bank, other: Bank, what: str) -> None:
    """Raises ValueError where banks differ in more than slots: an implicit cast or rescaling would alter an expert."""
    expected = _description(bank)
    actual = _description(other)
    wrong = []
    for name, value in expected.items():
        other_value = actual[name]
        if other_value != value:
            wrong.append(f"{name} {other_value} instead of {value}")
    if wrong:
        differences = "; ".join(wrong)
        raise ValueError(f"{what}: {differences}")


def _description(bank: Bank) -> dict[str, Any]:
    """All that banks must share for their slots to be exchanged."""
    sites = {}
    dtypes = {}
    for site in bank.sites:
        a = bank.a[site]
        b = bank.b[site]
        width = a.shape[1]
        features = b.shape[3]
        sites[site] = (width, features)
        dtypes[site] = (a.dtype.name, b.dtype.name)
    return {
        "sites": sites,
        "rank": bank.rank,
        "layers": bank.layers,
        "first_layer": bank.first_layer,
        "scale": bank.scale,
        "dtypes": dtypes,
    }


def write(
    bank: Bank,
    rows: np.ndarray,
    slot: int | np.ndarray,
    *,
    a_LDR: dict[str, Array],
    b_LRF: dict[str, Array],
    owner: int | np.ndarray,
) -> Bank:
    """Sets one slot of every row; `slot` and `owner` are numbers, or arrays with an entry for each row."""
    slots = np.asarray(slot)
    slots_L = np.broadcast_to(slots, rows.shape)
    owners = np.asarray(owner, np.int32)
    owner_L = np.broadcast_to(owners, rows.shape)
    written = programs.written(bank, rows, slots_L, a_LDR, b_LRF, owner_L)
    return in_order_of(bank, written)


def in_order_of(bank: Bank, changed: Bank) -> Bank:
    """A bank that a program returned, whose dictionaries are sorted, with its sites in the order of `bank`."""
    a = {site: changed.a[site] for site in bank.a}
    b = {site: changed.b[site] for site in bank.b}
    return changed.replace(a=a, b=b)


def sum_sources(
    bank: Bank, rows: np.ndarray, sources: Sequence[tuple[np.ndarray, float]]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Factors of the fusion `factor_sum` in the given rows: sum_i a_i and sum_i weight_i b_i of every site.

    The sums run in float32 in the order of the sources, and are cast to the dtypes of the bank once.

    Args:
      sources: slot in every row of the bank [L] (-1 for none) and weight, of every fused expert.
    """
    sums = programs.no_sums(bank, rows)
    # One program adds any source: one for all of them together would be compiled anew for every number of tasks.
    for slots_L, weight in sources:
        source = programs.source_of(bank, rows, slots_L[rows].astype(np.int32), np.float32(weight))
        sums = programs.added(sums, source)
    a_LDR, b_LRF = programs.as_stored(bank, sums)
    return {site: a_LDR[site] for site in bank.a}, {site: b_LRF[site] for site in bank.b}


def clear(bank: Bank, rows: np.ndarray, slots: np.ndarray) -> Bank:
    """Sets slots to zeros without an owner: a free slot must contribute nothing, whatever gain multiplies it."""
    # Scalars: `write` broadcasts them over the slots.
    zero_a = {}
    zero_b = {}
    for site in bank.a:
        zero_a[site] = jnp.zeros((), bank.a[site].dtype)
        zero_b[site] = jnp.zeros((), bank.b[site].dtype)
    return write(bank, rows, slots, a_LDR=zero_a, b_LRF=zero_b, owner=EMPTY)
