"""What new experts of a pool and the columns of their router begin as (LLaVA-CMoE, arXiv 2503.21227, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts import pool, surgery
from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.methods.growth.probe import most_used

ROUTER_STD = 0.02


def blank(bare: Bank, new: int, task: int, key: Array) -> Bank:
    """`new` experts of a task that say nothing yet, in every layer; `bare` is a bank of one empty slot.

    They share an owner, so they are drawn one by one.
    """
    return pool.beside([surgery.sprout(bare, 0, task, jax.random.fold_in(key, number)) for number in range(new)])


def copied(live: Bank, past: Bank, used_LS: np.ndarray) -> Bank:
    """The new experts as copies of the most used old ones of their layer (CMoE-D17); `used_LS` counts tokens."""
    source = most_used(used_LS, np.asarray(past.owner_LS) != EMPTY, live.slots)
    rows = np.arange(past.layers)[:, None]
    a = {site: jnp.moveaxis(jnp.moveaxis(leaf, 2, 1)[rows, source], 1, 2) for site, leaf in past.a.items()}
    return live.replace(a=a, b={site: leaf[rows, source] for site, leaf in past.b.items()})


def promoted(live: Bank, probe: dict[str, dict[str, Array]]) -> Bank:
    """The new experts as the trained probe, whose factors are given."""
    a = {site: jnp.repeat(leaf, live.slots, axis=2) for site, leaf in probe["a"].items()}
    return live.replace(a=a, b={site: jnp.repeat(leaf, live.slots, axis=1) for site, leaf in probe["b"].items()})


def only(live: Bank, expand_L: Array) -> Bank:
    """The new experts in those layers that are expanded; EMPTY in the others."""
    return live.replace(
        a={site: jnp.where(expand_L[:, None, None, None], leaf, 0.0) for site, leaf in live.a.items()},
        b={site: jnp.where(expand_L[:, None, None, None], leaf, 0.0) for site, leaf in live.b.items()},
        owner_LS=jnp.where(expand_L[:, None], live.owner_LS, EMPTY),
    )


def blank_router(old_LDS: Array, past: Bank, new: int, key: Array) -> Array:
    """The last task's router with columns for `new` experts: the mean of the old columns (CMoE-D10); small noise where
    there is no old expert."""
    shape, heard_LS = (*old_LDS.shape[:2], new), (past.owner_LS != EMPTY).astype(jnp.float32)
    if not np.asarray(heard_LS).any():
        return jnp.concatenate([old_LDS, ROUTER_STD * jax.random.normal(key, shape)], axis=-1)
    mean_LD = jnp.einsum("lds,ls->ld", old_LDS, heard_LS) / jnp.maximum(heard_LS.sum(-1, keepdims=True), 1.0)
    return jnp.concatenate([old_LDS, jnp.broadcast_to(mean_LD[..., None], shape)], axis=-1)


def promoted_router(probe_LDS: Array, new: int) -> Array:
    """The probe's router, whose last column is the probe's, with that column for each of `new` experts (CMoE-D18)."""
    old, own = probe_LDS[..., :-1], probe_LDS[..., -1:]
    return jnp.concatenate([old, jnp.repeat(own, new, axis=-1)], axis=-1)
