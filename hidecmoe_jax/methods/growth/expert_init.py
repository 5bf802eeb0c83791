"""Initial weights of a pool's new experts and of their router columns (LLaVA-CMoE, arXiv 2503.21227, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts import pool, surgery
from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.methods.growth.probe import most_used

ROUTER_STD = 0.02


def blank(empty_slot: Bank, new: int, task: int, key: Array) -> Bank:
    """`new` experts of a task whose update is zero, in every layer; `empty_slot` is a bank of one empty slot."""
    experts = []
    for number in range(new):
        expert_key = jax.random.fold_in(key, number)
        # They share an owner, so each is sprouted in a bank of its own.
        expert = surgery.sprout(empty_slot, 0, task, expert_key)
        experts.append(expert)
    return pool.concat_slots(experts)


def init_from_copy(live: Bank, past: Bank, used_LS: np.ndarray) -> Bank:
    """Initialise the new experts with the most used old ones of their layer (CMoE-D17).

    Args:
      used_LS: tokens that chose each old slot.
    """
    owner_LS = np.asarray(past.owner_LS)
    is_owned_LS = owner_LS != EMPTY
    source_LM = most_used(used_LS, is_owned_LS, live.slots)
    rows_L = np.arange(past.layers)
    rows_L1 = rows_L[:, None]
    a = {}
    for site, a_LDSR in past.a.items():
        # Slots come second here, so that one index picks a slot of its own for every layer.
        a_LSDR = jnp.moveaxis(a_LDSR, 2, 1)
        source_LMDR = a_LSDR[rows_L1, source_LM]
        a[site] = jnp.moveaxis(source_LMDR, 1, 2)
    b = {}
    for site, b_LSRF in past.b.items():
        b[site] = b_LSRF[rows_L1, source_LM]
    return live.replace(a=a, b=b)


def init_from_probe(live: Bank, probe: dict[str, dict[str, Array]]) -> Bank:
    """Initialise the new experts with the probe's weights; `probe` holds the factors of one slot, [L, D, 1, R] and
    [L, 1, R, F] by site."""
    a = {}
    for site, a_LD1R in probe["a"].items():
        a[site] = jnp.repeat(a_LD1R, live.slots, axis=2)
    b = {}
    for site, b_L1RF in probe["b"].items():
        b[site] = jnp.repeat(b_L1RF, live.slots, axis=1)
    return live.replace(a=a, b=b)


def keep_only_layers(live: Bank, expand_L: Array) -> Bank:
    """The new experts in those layers that are expanded; EMPTY slots in the others."""
    expand_L111 = expand_L[:, None, None, None]
    a = {}
    b = {}
    for site, a_LDMR in live.a.items():
        b_LMRF = live.b[site]
        a[site] = jnp.where(expand_L111, a_LDMR, 0.0)
        b[site] = jnp.where(expand_L111, b_LMRF, 0.0)
    expand_L1 = expand_L[:, None]
    owner_LM = jnp.where(expand_L1, live.owner_LS, EMPTY)
    return live.replace(a=a, b=b, owner_LS=owner_LM)


def blank_router(old_LDS: Array, past: Bank, new: int, key: Array) -> Array:
    """The last task's router with columns for `new` experts: the mean of the old columns (CMoE-D10); small noise where
    there is no old expert."""
    layers, width, _ = old_LDS.shape
    shape = (layers, width, new)
    is_owned_LS = past.owner_LS != EMPTY
    active_LS = is_owned_LS.astype(jnp.float32)
    if not np.asarray(active_LS).any():
        noise = ROUTER_STD * jax.random.normal(key, shape)
        return jnp.concatenate([old_LDS, noise], axis=-1)
    # A layer without an old expert gets columns of zeros.
    owned_L1 = active_LS.sum(-1, keepdims=True)
    experts_L1 = jnp.maximum(owned_L1, 1.0)
    total_LD = jnp.einsum("lds,ls->ld", old_LDS, active_LS)
    mean_LD = total_LD / experts_L1
    mean_LD1 = mean_LD[..., None]
    new_LDM = jnp.broadcast_to(mean_LD1, shape)
    return jnp.concatenate([old_LDS, new_LDM], axis=-1)


def fair_router(old_LDS: Array, new: int, key: Array) -> Array:
    """A router as wide as the last task's, with columns for `new` experts, all drawn anew with one small spread.

    No column differs from another before training, so every expert, old or new, is among the `top_k` of E experts for
    top_k / E of the tokens, whatever E is. The mean of E old columns (`blank_router`) hardly ever is where E is large:
    the largest of E logits are far above their mean.
    """
    layers, width, slots = old_LDS.shape
    shape = (layers, width, slots + new)
    return ROUTER_STD * jax.random.normal(key, shape)


def probe_router(router_LDS: Array, new: int) -> Array:
    """The probe's router, whose last column is the probe's, with that column for each of `new` experts (CMoE-D18)."""
    old = router_LDS[..., :-1]
    probe = router_LDS[..., -1:]
    new_columns = jnp.repeat(probe, new, axis=-1)
    return jnp.concatenate([old, new_columns], axis=-1)
