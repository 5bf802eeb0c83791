"""Compiled programs of surgery: each changes all sites of a bank at once.

Leaf by leaf, a new process would compile, and every use would dispatch, a handful of tiny programs for each. Slots,
tasks and rows are operands, so a later task compiles nothing. Programs return dictionaries sorted: callers put the
sites in order again (`slots.in_order_of`). What is checked is checked there, on the host.
"""

from __future__ import annotations

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts.bank import EMPTY, Bank

Sums = tuple[dict[str, Array], dict[str, Array]]


@partial(jax.jit, static_argnums=(0, 1, 2))
def blank_leaves(a_shapes: tuple, b_shapes: tuple, dtype: np.dtype) -> tuple[list[Array], list[Array], Array]:
    """Zeros of the shapes of every site's a and b, and owners int32 [L, S], all EMPTY."""
    a = [jnp.zeros(shape, dtype) for shape in a_shapes]
    b = [jnp.zeros(shape, dtype) for shape in b_shapes]
    layers, slots, _, _ = b_shapes[0]
    return a, b, jnp.full((layers, slots), EMPTY, jnp.int32)


@jax.jit
def written(
    bank: Bank, rows: Array, slots_L: Array, a_LDR: dict[str, Array], b_LRF: dict[str, Array], owner_L: Array
) -> Bank:
    """The bank with these factors and owners in the slots `slots_L` of the rows."""
    a = {}
    b = {}
    for site in bank.a:
        a_slots = bank.a[site].at[rows, :, slots_L]
        b_slots = bank.b[site].at[rows, slots_L]
        a[site] = a_slots.set(a_LDR[site])
        b[site] = b_slots.set(b_LRF[site])
    owner_slots = bank.owner_LS.at[rows, slots_L]
    owner_LS = owner_slots.set(owner_L)
    return bank.replace(a=a, b=b, owner_LS=owner_LS)


@jax.jit
def drawn(bank: Bank, rows: Array, key: Array) -> dict[str, Array]:
    """Standard normal values for an expert in the rows, float32 [L, D, R] of every site."""
    layer_L = rows.astype(jnp.int32) + bank.first_layer

    def drawn_site(site: str) -> Array:
        # crc32, not hash(): Python salts strings, and the draw must be the same in every process.
        site_number = zlib.crc32(site.encode())
        site_key = jax.random.fold_in(key, site_number)
        width = bank.a[site].shape[1]

        def layer_key(layer: Array) -> Array:
            return jax.random.fold_in(site_key, layer)

        def layer_draw(key_of_layer: Array) -> Array:
            return jax.random.normal(key_of_layer, (width, bank.rank), jnp.float32)

        layer_keys = jax.vmap(layer_key)(layer_L)
        return jax.vmap(layer_draw)(layer_keys)

    return {site: drawn_site(site) for site in bank.sites}


# Not one program with the draw: the compiler would multiply by the deviation earlier, which rounds otherwise.
@jax.jit
def sprouted(bank: Bank, normal_LDR: dict[str, Array], rows: Array, slot: Array, task: Array, std: Array) -> Bank:
    """The bank with a fresh expert of `task` in a slot of the rows: a is the draw times `std`."""
    # With b = 0 the product is zero, and a still gets a gradient as soon as b has moved.
    a_LDR = {}
    b_LRF = {}
    for site in bank.sites:
        site_LDR = std * normal_LDR[site]
        a_LDR[site] = site_LDR.astype(bank.a[site].dtype)
        b_LRF[site] = jnp.zeros((), bank.b[site].dtype)
    slots_L = jnp.broadcast_to(slot, rows.shape)
    owner_L = jnp.broadcast_to(task, rows.shape)
    return written(bank, rows, slots_L, a_LDR, b_LRF, owner_L)


@jax.jit
def extracted(bank: Bank, slots_L: Array, owner_L: Array) -> Bank:
    """One slot of every row, zeros where it is -1."""
    rows = jnp.arange(bank.layers)
    # Slot 0 is read where the task owns none, and replaced by zeros.
    index_L = jnp.maximum(slots_L, 0)
    is_owned_L11 = (slots_L >= 0)[:, None, None]

    def only_owned(leaf_LXY: Array) -> Array:
        zero = jnp.zeros((), leaf_LXY.dtype)
        return jnp.where(is_owned_L11, leaf_LXY, zero)

    a = {}
    b = {}
    for site in bank.a:
        a_LDR = only_owned(slot_values(bank.a[site], rows, index_L, slot_axis=2))
        b_LRF = only_owned(slot_values(bank.b[site], rows, index_L, slot_axis=1))
        a[site] = a_LDR[:, :, None]
        b[site] = b_LRF[:, None]
    return bank.replace(a=a, b=b, owner_LS=owner_L[:, None])


@jax.jit
def planted(bank: Bank, expert: Bank, rows: Array, slot: Array, task: Array) -> Bank:
    """The bank with the expert's rows in a slot."""
    a_LDR = {site: a[rows, :, 0] for site, a in expert.a.items()}
    b_LRF = {site: b[rows, 0] for site, b in expert.b.items()}
    slots_L = jnp.broadcast_to(slot, rows.shape)
    owner_L = jnp.broadcast_to(task, rows.shape)
    return written(bank, rows, slots_L, a_LDR, b_LRF, owner_L)


@partial(jax.jit, static_argnames="more")
def padded(bank: Bank, more: int) -> Bank:
    """The bank with `more` slots at the end, all EMPTY."""
    a = {}
    b = {}
    for site in bank.a:
        a[site] = pad(bank.a[site], 2, more)
        b[site] = pad(bank.b[site], 1, more)
    owner_LS = jnp.pad(bank.owner_LS, ((0, 0), (0, more)), constant_values=EMPTY)
    return bank.replace(a=a, b=b, owner_LS=owner_LS)


@partial(jax.jit, static_argnames=("low", "high"))
def cut_rows(bank: Bank, low: int, high: int) -> Bank:
    """Rows `low` up to `high`, still counted from the bank's first layer."""
    a = {site: leaf[low:high] for site, leaf in bank.a.items()}
    b = {site: leaf[low:high] for site, leaf in bank.b.items()}
    return bank.replace(a=a, b=b, owner_LS=bank.owner_LS[low:high])


def slot_values(leaf: Array, rows: Array, slots_L: Array, slot_axis: int) -> Array:
    """One slot [X, Y] of every row, as [L, X, Y]; the slot axis of a [L, X, S, Y] is 2, that of b [L, S, X, Y] is 1."""
    if slot_axis == 2:
        return leaf[rows, :, slots_L]
    return leaf[rows, slots_L]


@jax.jit
def no_sums(bank: Bank, rows: Array) -> Sums:
    """Zeros, float32 [L, D, R] and [L, R, F] of every site."""
    a = {}
    b = {}
    for site in bank.a:
        _, width, _, rank = bank.a[site].shape
        features = bank.b[site].shape[3]
        a[site] = jnp.zeros((rows.shape[0], width, rank), jnp.float32)
        b[site] = jnp.zeros((rows.shape[0], rank, features), jnp.float32)
    return a, b


@jax.jit
def source_of(bank: Bank, rows: Array, slots_L: Array, weight: Array) -> Sums:
    """One source of a fusion in float32: its a as it is, its b weighted; zeros where its slot is -1."""
    # Slot 0 is read where the source has no expert, and left out of the sum.
    index_L = jnp.maximum(slots_L, 0)
    has_slot_L11 = (slots_L >= 0)[:, None, None]
    a = {}
    b = {}
    for site in bank.a:
        a_LDR = slot_values(bank.a[site], rows, index_L, slot_axis=2).astype(jnp.float32)
        b_LRF = slot_values(bank.b[site], rows, index_L, slot_axis=1).astype(jnp.float32)
        # Weights enter at b alone: at both factors they would count squared.
        weighted_LRF = b_LRF * weight
        a[site] = jnp.where(has_slot_L11, a_LDR, 0.0)
        b[site] = jnp.where(has_slot_L11, weighted_LRF, 0.0)
    return a, b


# Not one program with the weighting: the compiler would add without rounding the product first.
@jax.jit
def added(sums: Sums, source: Sums) -> Sums:
    """The sums and one more source."""
    return jax.tree.map(jnp.add, sums, source)


@jax.jit
def as_stored(bank: Bank, sums: Sums) -> Sums:
    """The sums in the dtypes of the bank's factors."""
    a_sums, b_sums = sums
    a = {site: a_sums[site].astype(bank.a[site].dtype) for site in bank.a}
    b = {site: b_sums[site].astype(bank.b[site].dtype) for site in bank.b}
    return a, b


def pad(leaf: Array, axis: int, more: int) -> Array:
    """`more` zeros at the end of one axis."""
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (0, more)
    return jnp.pad(leaf, widths)
