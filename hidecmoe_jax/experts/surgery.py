"""Surgery on banks: every change an expert's life needs, as a pure function that returns a new bank.

A task's expert is sprouted or planted into a free slot, thinned out of layers where it is not needed, fused
with others, and retired; what a function does not name keeps its bytes. Only `widen` and `concatenate` change
the number of slots, so all the rest meets programs that are compiled already. Ownership is read on the host:
none of this is for use inside `jit`.

`layers`, `start` and `stop` always count decoder layers (a bank that begins at layer 3 has no layer 0), while
a gain [L, S] has the bank's own rows. Misuse raises ValueError with the numbers at fault.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts.bank import EMPTY, FUSED, Bank, owned_slots
from hidecmoe_jax.experts.pool import beside
from hidecmoe_jax.experts.slots import (
    check_alike,
    check_free,
    check_fusible,
    clear,
    layer_at,
    pad,
    rows_of,
    slots_of,
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
    """A bank of zeros that nobody owns; `sites` gives the input and output width (D, F) of every site."""
    if not sites or min(layers, rank) < 1 or min(slots, first_layer) < 0:
        raise ValueError(
            f"a bank needs a site, layers >= 1, rank >= 1, slots >= 0 and first_layer >= 0; "
            f"got {len(sites)} sites, layers {layers}, rank {rank}, slots {slots}, first_layer {first_layer}"
        )
    return Bank(
        a={site: jnp.zeros((layers, width, slots, rank), dtype) for site, (width, _) in sites.items()},
        b={site: jnp.zeros((layers, slots, rank, out), dtype) for site, (_, out) in sites.items()},
        owner_LS=jnp.full((layers, slots), EMPTY, jnp.int32),
        scale=float(scale),
        first_layer=first_layer,
    )


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
    numbers = jnp.asarray(rows + bank.first_layer, jnp.int32)

    def drawn(site: str) -> Array:
        own = jax.random.fold_in(key, zlib.crc32(site.encode()))
        keys = jax.vmap(lambda layer: jax.random.fold_in(own, layer))(numbers)
        shape = (bank.a[site].shape[1], bank.rank)
        return std * jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(keys)

    fresh = {site: drawn(site).astype(bank.a[site].dtype) for site in bank.sites}
    silent = {site: jnp.zeros((), bank.b[site].dtype) for site in bank.sites}
    return write(bank, rows, slot, a_LDR=fresh, b_LRF=silent, owner=task)


def extract(bank: Bank, task: int) -> Bank:
    """The expert of `task` as a bank of one slot; layers where it owns nothing are zeros with owner EMPTY.

    Raises:
      ValueError: `task` owns no slot, or two slots of one layer.
    """
    slots = slots_of(bank, task)
    owned, at, rows = slots >= 0, np.maximum(slots, 0), np.arange(bank.layers)

    def only_owned(leaf_LXY: Array) -> Array:
        return jnp.where(owned[:, None, None], leaf_LXY, jnp.zeros((), leaf_LXY.dtype))

    return bank.replace(
        a={site: only_owned(a[rows, :, at])[:, :, None] for site, a in bank.a.items()},
        b={site: only_owned(b[rows, at])[:, None] for site, b in bank.b.items()},
        owner_LS=jnp.asarray(np.where(owned, task, EMPTY)[:, None], jnp.int32),
    )


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
    rows = np.flatnonzero(np.asarray(expert.owner_LS)[:, 0] != EMPTY)
    if rows.size == 0:
        raise ValueError(f"the expert for task {task}, slot {slot} is EMPTY in all {expert.layers} layers")
    check_free(bank, slot, task, rows)
    a_LDR = {site: a[rows, :, 0] for site, a in expert.a.items()}
    b_LRF = {site: b[rows, 0] for site, b in expert.b.items()}
    return write(bank, rows, slot, a_LDR=a_LDR, b_LRF=b_LRF, owner=task)


def thin(bank: Bank, task: int, layers: Sequence[int]) -> Bank:
    """Drops the expert of `task` in the given decoder layers: zeros, and the slot is EMPTY there.

    Raises:
      ValueError: `task` has no expert in one of the layers.
    """
    rows, slots = rows_of(bank, layers), slots_of(bank, task)
    absent = rows[slots[rows] < 0]
    if absent.size:
        raise ValueError(f"task {task} has no expert in {layer_at(bank, absent[0])}, nothing to thin there")
    return clear(bank, rows, slots[rows])


def retire(bank: Bank, task: int) -> Bank:
    """Drops the expert of `task` in every layer; its slot is free for another task.

    Raises:
      ValueError: `task` owns no slot.
    """
    slots = slots_of(bank, task)
    rows = np.flatnonzero(slots >= 0)
    return clear(bank, rows, slots[rows])


def widen(bank: Bank, slots: int) -> Bank:
    """The same experts in a bank of `slots` slots, the new ones EMPTY. Programs recompile once.

    Raises:
      ValueError: `slots` is smaller than what the bank has.
    """
    more = _added(bank, slots)
    return bank.replace(
        a={site: pad(a, 2, more) for site, a in bank.a.items()},
        b={site: pad(b, 1, more) for site, b in bank.b.items()},
        owner_LS=jnp.pad(bank.owner_LS, ((0, 0), (0, more)), constant_values=EMPTY),
    )


def widen_state(opt_state: Any, old: Bank, slots: int) -> Any:
    """Optimiser state for `widen(old, slots).factors`: moments padded with zeros, all else untouched.

    A moment is a leaf at `.../a/SITE` or `.../b/SITE` for a site of `old`, as optax keeps them for
    `Bank.factors`, alone or inside a larger tree.

    Raises:
      ValueError: such a leaf has not the shape of its factor, or `slots` is smaller than what the bank has.
    """
    more, factors = _added(old, slots), old.factors

    def padded(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        kind, site = names[-2:] if len(names) > 1 else ("", "")
        if site not in factors.get(kind, {}):
            return leaf
        wanted = factors[kind][site].shape
        if jnp.shape(leaf) != wanted:
            raise ValueError(f"moment {'/'.join(names)} has shape {jnp.shape(leaf)}, its factor {wanted}")
        return pad(leaf, 2 if kind == "a" else 1, more)

    return jax.tree_util.tree_map_with_path(padded, opt_state)


def concatenate(banks: Sequence[Bank]) -> Bank:
    """One bank with the slots of all `banks`, in order.

    Raises:
      ValueError: no bank, banks that differ in more than their slots, or an owner who would hold two slots of
      a layer.
    """
    if not banks:
        raise ValueError("concatenate needs at least one bank, got 0")
    joined = beside(banks)
    for owner in set(np.asarray(joined.owner_LS).ravel().tolist()) - {EMPTY}:
        owned_slots(joined, owner)
    return joined


def cut(bank: Bank, start: int, stop: int) -> Bank:
    """The bank of decoder layers `start` up to, not including, `stop`.

    Raises:
      ValueError: the bank does not cover them.
    """
    first, last = bank.first_layer, bank.first_layer + bank.layers
    if not first <= start <= stop <= last:
        raise ValueError(f"cannot cut layers {start}..{stop} out of a bank of layers {first}..{last}")
    low, high = start - first, stop - first
    return bank.replace(
        a={site: a[low:high] for site, a in bank.a.items()},
        b={site: b[low:high] for site, b in bank.b.items()},
        owner_LS=bank.owner_LS[low:high],
        first_layer=start,
    )


def fuse(
    bank: Bank,
    tasks: Sequence[int],
    *,
    mode: Fusion,
    layers: Sequence[int],
    slot: int | None = None,
    eps: Sequence[float] | None = None,
    slots: Mapping[int, np.ndarray] | None = None,
) -> Bank:
    """Fuses the experts of `tasks` in the given decoder layers: E = sum_i eps_i E_i.

    Source: HiDe-LLaVA, arXiv 2503.12941.

    `factor_sum` writes one expert of the same rank, a = sum_i a_i and b = sum_i eps_i b_i, into `slot` with
    owner FUSED, in place of an earlier fusion there. It multiplies summed factors, so cross terms a_i b_j
    belong to it, and no set of gains expresses it; `eps` scales b alone, otherwise it would enter squared.
    `product_sum` and `product_mean` need no slot: they are gains (`fusion_gains`), and the bank comes back as
    it is. Sources stay; `fusion_gains` silences them. Sums run in float32 in the order of `tasks`; a layer in
    which none of them has an expert becomes EMPTY. With FUSED as one of the `tasks` the earlier fusion in
    `slot` is added to, so sources can be dropped as soon as they are fused.

    Args:
      slots: slot that stands for a task in every row (-1 for none), where that is not its own: a task that was merged
        into another is in the fusion with the expert they share, which then counts once for each.

    Raises:
      ValueError: `factor_sum` without a slot, a slot a task owns, a second fusion in a layer, tasks without
        an expert, a task named twice, or `eps` of another length.
    """
    rows = rows_of(bank, layers)
    sources = _sources(bank, tasks, mode, eps=eps, slots=slots)
    if mode != "factor_sum":
        return bank
    if slot is None:
        raise ValueError(f"factor_sum of tasks {list(tasks)} writes a slot; slot is None")
    check_fusible(bank, slot, rows)

    def summed(leaf_LSXY: Array, weights: Sequence[float]) -> Array:
        total = jnp.float32(0)
        for (slots_L, _), weight in zip(sources, weights, strict=True):
            part = leaf_LSXY[rows, np.maximum(slots_L[rows], 0)].astype(jnp.float32) * weight
            total = total + jnp.where((slots_L[rows] >= 0)[:, None, None], part, 0.0)
        return total.astype(leaf_LSXY.dtype)

    ones, loud = [1.0] * len(sources), [weight for _, weight in sources]
    a_LDR = {site: summed(jnp.moveaxis(a, 2, 1), ones) for site, a in bank.a.items()}
    b_LRF = {site: summed(b, loud) for site, b in bank.b.items()}
    any_L = np.any([slots_L[rows] >= 0 for slots_L, _ in sources], axis=0)
    return write(bank, rows, slot, a_LDR=a_LDR, b_LRF=b_LRF, owner=np.where(any_L, FUSED, EMPTY))


def fusion_gains(
    bank: Bank,
    tasks: Sequence[int],
    *,
    mode: Fusion,
    layers: Sequence[int],
    eps: Sequence[float] | None = None,
    slots: Mapping[int, np.ndarray] | None = None,
) -> Array:
    """Gains float32 [L, S] with which the bank speaks as the fusion of `tasks`; zero outside `layers`.

    `factor_sum`: 1 for the FUSED slot, 0 for its sources. `product_sum`: eps_i for the sources.
    `product_mean`: eps_i / len(tasks), whether or not a task was thinned out of the layer. `slots` as in `fuse`.

    Raises:
      ValueError: as in `fuse`; and for `factor_sum` a layer with sources but no FUSED slot (call `fuse`
      first).
    """
    rows = rows_of(bank, layers)
    sources = _sources(bank, tasks, mode, eps=eps, slots=slots)
    gain_LS = np.zeros(bank.owner_LS.shape, np.float32)
    if mode == "factor_sum":
        slots_L = owned_slots(bank, FUSED)
        any_L = np.any([slots_L >= 0 for slots_L, _ in sources], axis=0)
        missing = rows[any_L[rows] & (slots_L[rows] < 0)]
        if missing.size:
            where = layer_at(bank, missing[0])
            raise ValueError(f"{where} holds no fusion of tasks {list(tasks)}; fuse first")
        sources = [(slots_L, 1.0)]
    for slots_L, weight in sources:
        owned = rows[slots_L[rows] >= 0]
        gain_LS[owned, slots_L[owned]] += weight
    return jnp.asarray(gain_LS)


def delta(bank: Bank, gain_LS: Array) -> dict[str, Array]:
    """The update of every site's kernel, float32 [L, D, F]: scale * sum_s gain_s a_s b_s."""
    gain_LS = _gains(bank, gain_LS)
    dense = jax.vmap(partial(_dense, bank.scale))
    return {site: dense(bank.a[site], bank.b[site], gain_LS) for site in bank.sites}


def merge_into_base(layers_params: dict, bank: Bank, gain_LS: Array) -> dict:
    """Stacked decoder layers {site: {"kernel": [layers, D, F]}, ...} with W + delta in the bank's layers.

    The sum is float32, cast once to the kernel's dtype, one layer at a time. There is no unmerge: subtracting
    does not give the old bytes back, so keep the parameters that were passed in (they are not changed).

    Raises:
      ValueError: a site of the bank has no kernel of its shape (the parallel site "ffn" has none), or too few
      layers.
    """
    gain_LS = _gains(bank, gain_LS)
    start, stop = bank.first_layer, bank.first_layer + bank.layers
    merged = dict(layers_params)
    for site in bank.sites:
        wide = (bank.a[site].shape[1], bank.b[site].shape[3])
        kernel = layers_params.get(site, {}).get("kernel")
        found = None if kernel is None else kernel.shape
        if found is None or found[1:] != wide or found[0] < stop:
            raise ValueError(f"site {site!r} needs a kernel [>= {stop}, {wide[0]}, {wide[1]}], got {found}")
        new = _added_to(kernel[start:stop], bank.a[site], bank.b[site], gain_LS, scale=bank.scale)
        merged[site] = {**layers_params[site], "kernel": kernel.at[start:stop].set(new)}
    return merged


def _dense(scale: float, a_DSR: Array, b_SRF: Array, gain_S: Array) -> Array:
    """One layer's update, float32 [D, F]; accelerators would round float32 products at lower precision."""
    a = a_DSR.astype(jnp.float32) * (gain_S * scale)[None, :, None]
    return jnp.einsum("dsr,srf->df", a, b_SRF.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="scale")
def _added_to(kernel_LDF: Array, a_LDSR: Array, b_LSRF: Array, gain_LS: Array, *, scale: float) -> Array:
    def one(layer):
        kernel, a, b, gain = layer
        return (kernel.astype(jnp.float32) + _dense(scale, a, b, gain)).astype(kernel.dtype)

    return jax.lax.map(one, (kernel_LDF, a_LDSR, b_LSRF, gain_LS))


def _gains(bank: Bank, gain_LS: Array) -> Array:
    if jnp.shape(gain_LS) != bank.owner_LS.shape:
        raise ValueError(f"gains are {jnp.shape(gain_LS)}, the bank is [layers, slots] {bank.owner_LS.shape}")
    return jnp.asarray(gain_LS, jnp.float32)


def _sources(
    bank: Bank,
    tasks: Sequence[int],
    mode: Fusion,
    *,
    eps: Sequence[float] | None,
    slots: Mapping[int, np.ndarray] | None,
) -> list[tuple[np.ndarray, float]]:
    """Slots [L] (-1 where it has none) and weight of every task."""
    if mode not in FUSIONS:
        raise ValueError(f"unknown fusion mode {mode!r}; known: {', '.join(FUSIONS)}")
    if len(tasks) == 0 or len(set(tasks)) != len(tasks):
        raise ValueError(f"fusion needs at least one task and each once, got {list(tasks)}")
    if eps is not None and len(eps) != len(tasks):
        raise ValueError(f"fusion of {len(tasks)} tasks needs as many eps, got {len(eps)}")
    share = len(tasks) if mode == "product_mean" else 1
    eps = [1.0] * len(tasks) if eps is None else eps
    found = [slots_of(bank, task) if slots is None else slots[task] for task in tasks]
    return [(slots_L, float(weight) / share) for slots_L, weight in zip(found, eps, strict=True)]


def _added(bank: Bank, slots: int) -> int:
    if slots < bank.slots:
        raise ValueError(f"widen only grows: the bank has {bank.slots} slots, asked for {slots}")
    return slots - bank.slots
