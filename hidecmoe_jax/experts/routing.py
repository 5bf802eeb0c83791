"""Who speaks, and how loudly.

A routing gives every slot of every layer a gain per sample; silence is a gain of zero and lives here and
nowhere else. A token router, where there is one, turns the gains into a mask-and-volume over a softmax of the
`top_k` kept slots. A voice is a bank with its routing: the decoder takes a tuple of voices and never asks which
method made them. Voices that name the same gate compete in one softmax over all their slots, so an expert that
trains can stand in a bank of its own beside the frozen ones.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from hidecmoe_jax.experts.bank import Bank


@struct.dataclass
class Routing:
    """Gains and token routers of one bank.

    Attributes:
      gain_LBS: float32 >= 0; B is the batch, or 1 when every sample is treated alike.
      router_LBDS: None, or the token router gathered for each sample's task (B may be 1).
      top_k: slots kept by the token router.
      gate: voices with the same name here share one softmax over their slots, in order; "" stands for itself.
      site_routers: None, or a token router of every site, {site: [L, D, S]}: all slots are then weighed at each site by
        a softmax of what that site reads, whatever task the sample belongs to.
    """

    gain_LBS: Array
    router_LBDS: Array | None = None
    top_k: int = struct.field(pytree_node=False, default=0)
    gate: str = struct.field(pytree_node=False, default="")
    site_routers: dict[str, Array] | None = None


@struct.dataclass
class Voice:
    """A bank, its routing, and the dropout of its input (training only: needs a key)."""

    bank: Bank
    routing: Routing
    key: Array | None = None
    dropout: float = struct.field(pytree_node=False, default=0.0)


def constant(gain_LS: Array) -> Routing:
    """The same gains for every sample."""
    return Routing(jnp.asarray(gain_LS, jnp.float32)[:, None, :])


def everyone(bank: Bank, gain: float = 1.0) -> Routing:
    """Every slot of the bank speaks with the same gain (empty slots hold zeros and add nothing)."""
    return constant(jnp.full(bank.owner_LS.shape, gain, jnp.float32))


def softmax_top_k(logits: Array, heard: Array, top_k: int) -> Array:
    """Float32 softmax over the `top_k` largest heard logits (of equals the first), zero elsewhere; last axis S.

    A position where nothing is heard gets zeros: a softmax over nothing would be NaN and have a NaN gradient.
    """
    masked = jnp.where(heard, logits.astype(jnp.float32), -jnp.inf)
    keep = min(top_k, masked.shape[-1])
    # By place, not by value: equal logits (a router that starts at zero) must not keep more than `top_k`.
    places = jax.lax.top_k(masked, keep)[1]
    kept = heard & jnp.any(places[..., None] == jnp.arange(masked.shape[-1]), axis=-2)
    top = jnp.max(jnp.where(kept, masked, -1e30), axis=-1, keepdims=True)
    power = jnp.where(kept, jnp.exp(jnp.where(kept, masked, top) - top), 0.0)
    return power / jnp.maximum(jnp.sum(power, axis=-1, keepdims=True), 1e-30)


def slot_gates(x_BTD: Array, gain_BS: Array, router_BDS: Array | None, top_k: int) -> tuple[Array, Array]:
    """Weights the slots get, and chances: what the router's softmax gave them before any slot was dropped. Float32.

    Both are [B, S] and the gains themselves without a token router, [B, T, S] with one.
    """
    if router_BDS is None:
        return gain_BS, gain_BS
    router = jnp.broadcast_to(router_BDS, (x_BTD.shape[0], *router_BDS.shape[1:]))
    x32, router32 = x_BTD.astype(jnp.float32), router.astype(jnp.float32)
    # Accelerators shorten float32 products unless told not to, and a gate near a tie would flip between programs.
    logits_BTS = jnp.einsum("btd,bds->bts", x32, router32, precision=jax.lax.Precision.HIGHEST)
    heard = jnp.broadcast_to(gain_BS[:, None, :] > 0, logits_BTS.shape)
    weights = softmax_top_k(logits_BTS, heard, top_k) * gain_BS[:, None, :]
    return weights, softmax_top_k(logits_BTS, heard, logits_BTS.shape[-1])


def balance_loss(count_LS: Array, chance_LS: Array, heard_LS: Array) -> Array:
    """Load-balancing loss, mean over layers: E * sum_e f_e P_e over the E heard experts (arXiv 2101.03961, eq. 4).

    With more than one expert a token, f_e is an expert's part of all choices, so an even load gives 1 as for top-1.

    Args:
      count_LS: tokens that chose a slot; no gradient passes through it.
      chance_LS: summed router softmax over the heard slots.
      heard_LS: bool. A layer in which nobody is heard counts as nothing.
    """
    count, chance = jnp.where(heard_LS, count_LS, 0).astype(jnp.float32), jnp.where(heard_LS, chance_LS, 0.0)
    load = count / jnp.maximum(count.sum(-1, keepdims=True), 1.0)
    share = chance / jnp.maximum(chance.sum(-1, keepdims=True), 1e-30)
    experts = jnp.sum(heard_LS.astype(jnp.float32), axis=-1)
    return jnp.mean(experts * jnp.sum(jax.lax.stop_gradient(load) * share, axis=-1))
