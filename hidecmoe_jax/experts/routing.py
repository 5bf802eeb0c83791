"""Which experts are active, and with which weight.

A routing gives every slot of every layer a gain per sample; a slot is inactive where its gain is zero, and nowhere
else is that recorded. A token router, where there is one, turns the gains into a mask and a factor of a softmax over
the `top_k` selected slots. A null expert, where there is one, takes a part of that softmax and adds nothing, so that a
token can leave all slots nearly silent; slots that are always on stand outside of it. A voice is a bank with its
routing: the decoder takes a tuple of voices, whatever method made them. Voices of one softmax group share one softmax
over all their slots, so an expert in training can stand in a bank of its own beside the frozen ones.
"""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from hidecmoe_jax.experts.bank import Bank, expert_sums, multiplied_slots, sums_of_chosen

# Accelerators shorten float32 products by default, and a selection near a tie would differ between programs.
_EXACT = jax.lax.Precision.HIGHEST


class Routing(struct.PyTreeNode):
    """Gains and token routers of one bank.

    Attributes:
      gain_LBS: float32 >= 0; B is the batch, or 1 when every sample is treated alike.
      router_LBDS: None, or the token router gathered for each sample's task (B may be 1).
      top_k: slots kept by the token router.
      null: logit of the null expert, whose part of the token router's softmax adds nothing; None for no such expert.
      always_LBS: None, or float32 >= 0, what is added to the weights beside the token router's: slots that are on for
        every token. Such slots have gain 0.
      softmax_group: voices with the same name here share one softmax over their slots, in order; "" for a softmax of
        this voice alone.
      site_routers: None, or a token router of every site, {site: [L, D, S]}: all slots are then weighted at each site
        by a softmax over that site's input, whatever task the sample belongs to.
      most: in no layer has a sample more gains above zero, so that its experts may be taken out of the bank; None where
        that is not known, or weights are chosen token by token.
    """

    gain_LBS: Array
    router_LBDS: Array | None = None
    top_k: int = struct.field(pytree_node=False, default=0)
    softmax_group: str = struct.field(pytree_node=False, default="")
    site_routers: dict[str, Array] | None = None
    null: float | None = struct.field(pytree_node=False, default=None)
    always_LBS: Array | None = None
    most: int | None = struct.field(pytree_node=False, default=None)


class Voice(struct.PyTreeNode):
    """A bank, its routing, and the dropout of its input (training only: needs a key)."""

    bank: Bank
    routing: Routing
    key: Array | None = None
    dropout: float = struct.field(pytree_node=False, default=0.0)


def constant(gain_LS: Array) -> Routing:
    """The same gains for every sample."""
    gain_LS = jnp.asarray(gain_LS, jnp.float32)
    gain_L1S = gain_LS[:, None, :]
    return Routing(gain_L1S)


def all_slots(bank: Bank, gain: float = 1.0) -> Routing:
    """The same gain for every slot of the bank (empty slots hold zeros and add nothing)."""
    shape = bank.owner_LS.shape
    gain_LS = jnp.full(shape, gain, jnp.float32)
    return constant(gain_LS)


def softmax_top_k(logits: Array, active: Array, top_k: int, null: float | None = None) -> Array:
    """Float32 softmax over the `top_k` largest active logits (of equals the first), zero elsewhere; last axis S.

    With `null`, the logit of a null expert, the sum is below 1: the null expert takes the rest.

    A position without an active slot gets zeros: a softmax over nothing would be NaN and have a NaN gradient.
    """
    chex.assert_equal_shape([logits, active], custom_message="`active` must mask every logit")
    chex.assert_type(active, bool)
    logits = logits.astype(jnp.float32)
    masked = jnp.where(active, logits, -jnp.inf)
    selected = active
    if top_k < masked.shape[-1]:
        selected = active & _is_among_top(masked, top_k)
    return masked_softmax(masked, selected, null)


def _is_among_top(values: Array, count: int) -> Array:
    """Whether an entry is among the `count` largest of the last axis; of equal ones the first are taken.

    By comparison of all pairs: slots are few, and a sort is not divided over devices, which would send each other all
    of a batch's logits for it.
    """
    slots = values.shape[-1]
    number_S = jnp.arange(slots)
    other = values[..., None, :]
    this = values[..., :, None]
    # By place, not by value alone: equal logits (a router that starts at zero) must not select more than `count`.
    is_earlier_SS = number_S[None, :] < number_S[:, None]
    is_ahead = (other > this) | ((other == this) & is_earlier_SS)
    place = jnp.sum(is_ahead, axis=-1)
    return place < count


def masked_softmax(logits: Array, active: Array, null: float | None = None) -> Array:
    """Float32 softmax over the active entries of the last axis, zero elsewhere; all zero where none is active.

    With `null` there is one entry more, of that logit, whose part is left out.

    Not the library's softmax, which is NaN, gradient included, where nothing is active.
    """
    finite = jnp.where(active, logits, -1e30)
    top = jnp.max(finite, axis=-1, keepdims=True)
    if null is not None:
        top = jnp.maximum(top, null)
    # Both branches of a `where` get gradients, so the exponent is finite for entries that are not active too.
    at_most_top = jnp.where(active, logits, top)
    power = jnp.exp(at_most_top - top)
    power = jnp.where(active, power, 0.0)
    total = jnp.sum(power, axis=-1, keepdims=True)
    if null is not None:
        total = total + jnp.exp(null - top)
    # The largest active entry adds 1 to the total, so the bound matters only where there is none.
    return power / jnp.maximum(total, 1e-30)


def routed_weights(
    x_BTD: Array,
    gain_BS: Array,
    router_BDS: Array | None,
    top_k: int,
    *,
    null: float | None = None,
    always_BS: Array | None = None,
) -> tuple[Array, Array]:
    """Weights of the slots, and chances: what the router's softmax gave them before any slot was dropped. Float32.

    Both are [B, S] and the gains themselves without a token router, [B, T, S] with one. `null` and `always_BS` as in
    `Routing`; slots that are always on have no chance, for no router chooses them.
    """
    chex.assert_rank(gain_BS, 2)
    if router_BDS is None:
        return gain_BS, gain_BS
    slots = gain_BS.shape[-1]
    chex.assert_rank(x_BTD, 3)
    batch, _, width = x_BTD.shape
    chex.assert_shape(router_BDS, (None, width, slots), custom_message="a token router is [B, D, S], S as in the gains")
    router_BDS = jnp.broadcast_to(router_BDS, (batch, width, slots))
    x32_BTD = x_BTD.astype(jnp.float32)
    router32_BDS = router_BDS.astype(jnp.float32)
    logits_BTS = jnp.einsum("btd,bds->bts", x32_BTD, router32_BDS, precision=_EXACT)
    gain_B1S = gain_BS[:, None, :]
    is_active_B1S = gain_B1S > 0
    active_BTS = jnp.broadcast_to(is_active_B1S, logits_BTS.shape)
    share_BTS = softmax_top_k(logits_BTS, active_BTS, top_k, null)
    weights_BTS = share_BTS * gain_B1S
    if always_BS is not None:
        weights_BTS = weights_BTS + always_BS[:, None, :]
    chances_BTS = softmax_top_k(logits_BTS, active_BTS, slots, null)
    return weights_BTS, chances_BTS


class Experts(nn.Module):
    """Sums of experts, in whichever way is cheaper, as a Linen module: a row of `nn.tabulate` for a voice at one site.

    Banks are arguments of the decoder, not parameters of it (surgery replaces them between tasks), so the module
    declares no parameter and the decoder's tree stays that of the base model.
    """

    scale: float
    most: int | None = None

    @nn.compact
    def __call__(self, x_BTD: Array, a_DSR: Array, b_SRF: Array, weight: Array) -> Array:
        slots, rank, features = b_SRF.shape
        batch, tokens, width = x_BTD.shape
        multiplied = multiplied_slots((batch, tokens, width), slots, rank, features, self.most)
        if multiplied < slots:
            return sums_of_chosen(x_BTD, a_DSR, b_SRF, weight, self.scale, multiplied)
        return expert_sums(x_BTD, a_DSR, b_SRF, weight, self.scale)


class TokenRouter(nn.Module):
    """`routed_weights` as a Linen module, for the same reason and as thin as `Experts`."""

    top_k: int
    null: float | None = None

    @nn.compact
    def __call__(
        self, x_BTD: Array, gain_BS: Array, router_BDS: Array | None, always_BS: Array | None = None
    ) -> tuple[Array, Array]:
        return routed_weights(x_BTD, gain_BS, router_BDS, self.top_k, null=self.null, always_BS=always_BS)


def balance_loss(count_LS: Array, chance_LS: Array, active_LS: Array) -> Array:
    """Load-balancing loss, mean over layers: E * sum_e f_e P_e over the E active experts (arXiv 2101.03961, eq. 4).

    With more than one expert a token, f_e is an expert's part of all choices, so an even load gives 1 as for top-1.

    Args:
      count_LS: tokens that chose a slot; no gradient passes through it.
      chance_LS: summed router softmax over the active slots.
      active_LS: bool. A layer without an active slot contributes 0.
    """
    chex.assert_equal_shape([count_LS, chance_LS, active_LS])
    chex.assert_rank(count_LS, 2)
    count_LS = jnp.where(active_LS, count_LS, 0)
    count_LS = count_LS.astype(jnp.float32)
    chance_LS = jnp.where(active_LS, chance_LS, 0.0)
    # Bounds below keep a layer without choices at 0, where 0 / 0 would be NaN.
    choices_L1 = count_LS.sum(-1, keepdims=True)
    choices_L1 = jnp.maximum(choices_L1, 1.0)
    load_LS = count_LS / choices_L1
    total_L1 = chance_LS.sum(-1, keepdims=True)
    total_L1 = jnp.maximum(total_L1, 1e-30)
    share_LS = chance_LS / total_L1
    one_if_active_LS = active_LS.astype(jnp.float32)
    experts_L = jnp.sum(one_if_active_LS, axis=-1)
    # Counts are a step function of the logits: the gradient passes through the softmax alone.
    fixed_load_LS = jax.lax.stop_gradient(load_LS)
    agreement_LS = fixed_load_LS * share_LS
    agreement_L = jnp.sum(agreement_LS, axis=-1)
    return jnp.mean(experts_L * agreement_L)
