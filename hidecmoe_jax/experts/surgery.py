"""Surgery on banks: adding, moving, fusing and removing experts, by pure functions that return a new bank.

A task's expert is sprouted or planted into a free slot, thinned out of layers where it is not needed, fused with
others, and retired; what a function does not name keeps its bytes. Only `widen` and `concatenate` change the number of
slots: no other function makes a compiled program recompile. Ownership is read on the host: none of this is for use
inside `jit`.

`layers`, `start` and `stop` always count decoder layers (a bank that begins at layer 3 has no layer 0), while a gain
[L, S] has the bank's own rows. Misuse raises ValueError with the numbers at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts import programs
from hidecmoe_jax.experts.bank import EMPTY, FUSED, Bank, owned_slots
from hidecmoe_jax.experts.pool import concat_slots
from hidecmoe_jax.experts.slots import (
    check_alike,
    check_free,
    check_fusible,
    clear,
    in_order_of,
    layer_at,
    owners_of,
    rows_of,
    slots_of,
    sum_sources,
    write,
)

Fusion = Literal["factor_sum", "product_sum", "product_mean"]
FUSIONS: tuple[Fusion, ...] = ("factor_sum", "product_sum", "product_mean")


def blank(
    sites: dict[str, tuple[int, int]],
    *,
    layers: int,
    slots: int,
    rank: int,
    scale: float,
    first_layer: int = 0,
    dtype: Any = jnp.float32,
) -> Bank:
    """A bank of zeros without owners; `sites` gives the input and output width (D, F) of every site."""
    are_sizes_allowed = min(layers, rank) >= 1 and min(slots, first_layer) >= 0
    if not sites or not are_sizes_allowed:
        raise ValueError(
            f"a bank needs a site, layers >= 1, rank >= 1, slots >= 0 and first_layer >= 0; "
            f"got {len(sites)} sites, layers {layers}, rank {rank}, slots {slots}, first_layer {first_layer}"
        )
    a_shapes = tuple((layers, width, slots, rank) for width, _ in sites.values())
    b_shapes = tuple((layers, slots, rank, features) for _, features in sites.values())
    a_leaves, b_leaves, owner_LS = programs.blank_leaves(a_shapes, b_shapes, jnp.dtype(dtype))
    a = dict(zip(sites, a_leaves, strict=True))
    b = dict(zip(sites, b_leaves, strict=True))
    return Bank(a=a, b=b, owner_LS=owner_LS, scale=float(scale), first_layer=first_layer)


def sprout(
    bank: Bank, slot: int, task: int, key: Array, *, layers: Sequence[int] | None = None, std: float = 0.01
) -> Bank:
    """Gives `task` a fresh expert in `slot`: a ~ N(0, std^2), b = 0. Outputs stay the same bit for bit.

    The draw of a site and layer depends on `key`, the site's name and the decoder layer alone, not on the
    other sites, the slot or where the bank begins (the initialisation of arXiv 2106.09685, with a fixed
    deviation).

    Args:
      layers: decoder layers that get the expert; None for all of the bank.

    Raises:
      ValueError: the slot is taken or out of range, or `task` has an expert in one of the layers.
    """
    rows = rows_of(bank, layers)
    check_free(bank, slot, task, rows)
    normal_LDR = programs.drawn(bank, rows, key)
    sprouted = programs.sprouted(bank, normal_LDR, rows, np.int32(slot), np.int32(task), np.float32(std))
    return in_order_of(bank, sprouted)


def extract(bank: Bank, task: int) -> Bank:
    """The expert of `task` as a bank of one slot; layers where it owns nothing are zeros with owner EMPTY.

    Raises:
      ValueError: `task` owns no slot, or two slots of one layer.
    """
    slots_L = slots_of(bank, task)
    is_owned_L = slots_L >= 0
    owner_L = np.where(is_owned_L, task, EMPTY).astype(np.int32)
    return in_order_of(bank, programs.extracted(bank, slots_L, owner_L))


def plant(bank: Bank, slot: int, expert: Bank, task: int) -> Bank:
    """Writes a one-slot bank into `slot` as the expert of `task`, in the layers where the expert is owned.

    The inverse of `extract`. Layers that the expert leaves EMPTY keep whatever the slot holds there.

    Raises:
      ValueError: the slot is taken, `task` has an expert in one of the layers, or the expert's slots, sites,
        shapes, dtypes, layers or scale are not the bank's.
    """
    if expert.slots != 1:
        raise ValueError(f"an expert to plant has one slot, got {expert.slots} (task {task}, slot {slot})")
    check_alike(bank, expert, f"cannot plant task {task} into slot {slot}")
    owner_L = np.asarray(expert.owner_LS)[:, 0]
    is_owned_L = owner_L != EMPTY
    rows = np.flatnonzero(is_owned_L)
    if rows.size == 0:
        raise ValueError(f"the expert for task {task}, slot {slot} is EMPTY in all {expert.layers} layers")
    check_free(bank, slot, task, rows)
    return in_order_of(bank, programs.planted(bank, expert, rows, np.int32(slot), np.int32(task)))


def thin(bank: Bank, task: int, layers: Sequence[int]) -> Bank:
    """Drops the expert of `task` in the given decoder layers: zeros, and the slot is EMPTY there.

    Raises:
      ValueError: `task` has no expert in one of the layers.
    """
    rows = rows_of(bank, layers)
    slots_L = slots_of(bank, task)
    slot_of_rows = slots_L[rows]
    absent = rows[slot_of_rows < 0]
    if absent.size:
        where = layer_at(bank, absent[0])
        raise ValueError(f"task {task} has no expert in {where}, nothing to thin there")
    return clear(bank, rows, slot_of_rows)


def retire(bank: Bank, task: int) -> Bank:
    """Drops the expert of `task` in every layer; its slot is free for another task.

    Raises:
      ValueError: `task` owns no slot.
    """
    slots_L = slots_of(bank, task)
    rows = np.flatnonzero(slots_L >= 0)
    return clear(bank, rows, slots_L[rows])


def widen(bank: Bank, slots: int) -> Bank:
    """The same experts in a bank of `slots` slots, the new ones EMPTY. Programs recompile once.

    Raises:
      ValueError: `slots` is smaller than what the bank has.
    """
    more = _added(bank, slots)
    return in_order_of(bank, programs.padded(bank, more))


def widen_state(opt_state: Any, old: Bank, slots: int) -> Any:
    """Optimiser state for `widen(old, slots).factors`: moments padded with zeros, all else untouched.

    A moment is a leaf at `.../a/SITE` or `.../b/SITE` for a site of `old`, as optax keeps them for
    `Bank.factors`, alone or inside a larger tree.

    Raises:
      ValueError: such a leaf has not the shape of its factor, or `slots` is smaller than what the bank has.
    """
    more = _added(old, slots)
    factors = old.factors

    def padded(path: tuple, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        parent, _, site = name.rpartition("/")
        # The last two parts of a moment's path are those of its factor: `a` or `b`, and the site.
        factor_name = parent.rpartition("/")[2]
        factor_by_site = factors.get(factor_name, {})
        factor = factor_by_site.get(site)
        if factor is None:
            return leaf  # a step count, or the moment of something else
        shape = jnp.shape(leaf)
        if shape != factor.shape:
            raise ValueError(f"moment {name} has shape {shape}, its factor {factor.shape}")
        slot_axis = 2 if factor_name == "a" else 1
        return programs.pad(leaf, slot_axis, more)

    return jax.tree_util.tree_map_with_path(padded, opt_state)


def concatenate(banks: Sequence[Bank]) -> Bank:
    """One bank with the slots of all `banks`, in order.

    Raises:
      ValueError: no bank, banks that differ in more than their slots, or an owner of two slots of a layer.
    """
    if not banks:
        raise ValueError("concatenate needs at least one bank, got 0")
    joined = concat_slots(banks)
    for owner in owners_of(joined):
        owned_slots(joined, owner)  # raises where the owner has two slots of a layer
    return joined


def cut(bank: Bank, start: int, stop: int) -> Bank:
    """The bank of decoder layers `start` up to, not including, `stop`.

    Raises:
      ValueError: the bank does not cover them.
    """
    first = bank.first_layer
    end = first + bank.layers
    if not first <= start <= stop <= end:
        raise ValueError(f"cannot cut layers {start}..{stop} out of a bank of layers {first}..{end}")
    return in_order_of(bank, programs.cut_rows(bank, start - first, stop - first)).replace(first_layer=start)


def fuse(
    bank: Bank,
    tasks: Sequence[int],
    *,
    mode: Fusion,
    layers: Sequence[int],
    slot: int | None = None,
    eps: Sequence[float] | None = None,
    serving_slots: Mapping[int, np.ndarray] | None = None,
) -> Bank:
    """Fuses the experts of `tasks`, the sources: E = sum_i eps_i E_i (HiDe-LLaVA, arXiv 2503.12941).

    `factor_sum` writes one expert of the same rank, a = sum_i a_i and b = sum_i eps_i b_i, into `slot` with owner
    FUSED, in place of an earlier fusion there. Its product has cross terms a_i b_j, which no gains (factors on the
    slots' outputs) express; `eps` scales b alone, otherwise it would enter squared. `product_sum` and `product_mean`
    are gains of the sources (`fusion_gains`), and the bank is returned as it is. Sources stay; beside a fused slot
    their gain is 0. Sums run in float32 in the order of `tasks`; a layer without a source becomes EMPTY.

    Args:
      tasks: owners of the sources. With FUSED among them the earlier fusion in `slot` is added to, so that sources can
        be dropped as soon as they are fused.
      mode: fusion rule, one of FUSIONS.
      layers: decoder layers to fuse.
      slot: slot of the fused expert; only `factor_sum` needs one.
      eps: weight of every task in the sum, in the order of `tasks`; None for 1 each.
      serving_slots: serving_slots[task][row] is the slot whose expert answers for that task, -1 for none; None for the
        task's own. The expert of tasks that were merged counts once for each of them.

    Raises:
      ValueError: `factor_sum` without a slot, a slot a task owns, a second fusion in a layer, tasks without an expert,
        a task named twice, or `eps` of another length.
    """
    rows = rows_of(bank, layers)
    sources = _sources(bank, tasks, mode, eps=eps, serving_slots=serving_slots)
    if mode != "factor_sum":
        return bank
    if slot is None:
        raise ValueError(f"factor_sum of tasks {list(tasks)} writes a slot; slot is None")
    check_fusible(bank, slot, rows)
    a_LDR, b_LRF = sum_sources(bank, rows, sources)
    has_source_L = np.any([slots_L >= 0 for slots_L, _ in sources], axis=0)
    owner_L = np.where(has_source_L[rows], FUSED, EMPTY)
    return write(bank, rows, slot, a_LDR=a_LDR, b_LRF=b_LRF, owner=owner_L)


def fusion_gains(
    bank: Bank,
    tasks: Sequence[int],
    *,
    mode: Fusion,
    layers: Sequence[int],
    eps: Sequence[float] | None = None,
    serving_slots: Mapping[int, np.ndarray] | None = None,
) -> Array:
    """Gains float32 [L, S] that make the bank the fusion of `tasks`; zero outside `layers`.

    `factor_sum`: 1 for the FUSED slot, 0 for its sources. `product_sum`: eps_i for the sources.
    `product_mean`: eps_i / len(tasks), whether or not a task was thinned out of the layer. `eps` and
    `serving_slots` as in `fuse`.

    Raises:
      ValueError: as in `fuse`; and for `factor_sum` a layer with sources but no FUSED slot (call `fuse` first).
    """
    rows = rows_of(bank, layers)
    sources = _sources(bank, tasks, mode, eps=eps, serving_slots=serving_slots)
    gain_LS = np.zeros(bank.owner_LS.shape, np.float32)
    if mode == "factor_sum":
        fused_slot_L = owned_slots(bank, FUSED)
        has_source_L = np.any([slots_L >= 0 for slots_L, _ in sources], axis=0)
        has_fusion_L = fused_slot_L >= 0
        lacks_fusion_L = has_source_L & ~has_fusion_L
        missing = rows[lacks_fusion_L[rows]]
        if missing.size:
            where = layer_at(bank, missing[0])
            raise ValueError(f"{where} holds no fusion of tasks {list(tasks)}; fuse first")
        sources = [(fused_slot_L, 1.0)]
    for slots_L, weight in sources:
        has_expert_L = slots_L >= 0
        owned = rows[has_expert_L[rows]]
        # Added, not set: merged tasks share a slot, which counts once for each of them.
        gain_LS[owned, slots_L[owned]] += weight
    return jnp.asarray(gain_LS)


def _sources(
    bank: Bank,
    tasks: Sequence[int],
    mode: Fusion,
    *,
    eps: Sequence[float] | None,
    serving_slots: Mapping[int, np.ndarray] | None,
) -> list[tuple[np.ndarray, float]]:
    """Slots [L] (-1 where it has none) and weight of every source."""
    if mode not in FUSIONS:
        raise ValueError(f"unknown fusion mode {mode!r}; known: {', '.join(FUSIONS)}")
    if len(tasks) == 0 or len(set(tasks)) != len(tasks):
        raise ValueError(f"fusion needs at least one task and each once, got {list(tasks)}")
    if eps is not None and len(eps) != len(tasks):
        raise ValueError(f"fusion of {len(tasks)} tasks needs as many eps, got {len(eps)}")
    weights = [1.0] * len(tasks) if eps is None else eps
    divisor = len(tasks) if mode == "product_mean" else 1
    sources = []
    for task, weight in zip(tasks, weights, strict=True):
        slots_L = slots_of(bank, task) if serving_slots is None else serving_slots[task]
        share = float(weight) / divisor
        sources.append((slots_L, share))
    return sources


def _added(bank: Bank, slots: int) -> int:
    """Slots that widening to `slots` adds."""
    if slots < bank.slots:
        raise ValueError(f"widen only grows: the bank has {bank.slots} slots, asked for {slots}")
    return slots - bank.slots
