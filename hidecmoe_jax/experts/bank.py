"""Banks of LoRA experts.

A bank holds low-rank experts for named sites of consecutive decoder layers: `slots` of them in every layer, each slot
with an owner per layer (a task, none, or the fusion of several tasks). Its shape never changes while capacity lasts,
so adding a task is writing into a slot, and one compiled program serves the whole stream. A bank stores the experts
alone; their weights are those of a `Routing`.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from hidecmoe_jax.core.products import product

EMPTY = -1
FUSED = -2
# Operations that an accelerator does while it reads a byte: 184 on an H200, 240 on a v5e, more on others.
OPERATIONS_A_BYTE = 200
BYTES_A_NUMBER = 2


class Bank(struct.PyTreeNode):
    """Experts of one site family.

    Attributes:
      a: site -> [L, D, S, R], the down projections.
      b: site -> [L, S, R, F], the up projections.
      owner_LS: int32, the task owning a slot in a layer, or EMPTY, or FUSED.
      scale: multiplies every expert's output (alpha / rank of one expert; arXiv 2106.09685).
      first_layer: decoder layer of the bank's layer 0.
    """

    a: dict[str, Array]
    b: dict[str, Array]
    owner_LS: Array
    scale: float = struct.field(pytree_node=False)
    first_layer: int = struct.field(pytree_node=False, default=0)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(sorted(self.a))

    @property
    def layers(self) -> int:
        return self.owner_LS.shape[0]

    @property
    def slots(self) -> int:
        return self.owner_LS.shape[1]

    @property
    def rank(self) -> int:
        first_site = self.sites[0]
        return self.a[first_site].shape[3]

    @property
    def factors(self) -> dict[str, dict[str, Array]]:
        """The float leaves, as the optimiser takes them."""
        return {"a": self.a, "b": self.b}

    def with_factors(self, factors: dict[str, dict[str, Array]]) -> Bank:
        """The same bank with other float leaves."""
        return self.replace(a=factors["a"], b=factors["b"])


def bank_axes(bank: Bank) -> Bank:
    """Logical axis names with the tree of `bank`."""
    # Experts are small: only the axes that are wide in the base model are worth sharding.
    input_axis = {"o_proj": "heads", "down_proj": "hidden"}
    output_axis = {"q_proj": "heads", "k_proj": "heads", "v_proj": "heads", "gate_proj": "hidden", "up_proj": "hidden"}
    a_axes = {}
    b_axes = {}
    for site in bank.a:
        width_axis = input_axis.get(site, "width")
        features_axis = output_axis.get(site, "width")
        a_axes[site] = ("layer", width_axis, "slot", "rank")
        b_axes[site] = ("layer", "slot", "rank", features_axis)
    return bank.replace(a=a_axes, b=b_axes, owner_LS=("layer", "slot"))


def owned_slots(bank: Bank, owner: int) -> np.ndarray:
    """Slot of `owner` in every layer, int32 [L]; -1 where the layer holds none.

    Raises:
      ValueError: if a layer holds the owner twice (one slot per owner and layer).
    """
    owner_LS = np.asarray(bank.owner_LS)
    owned_LS = owner_LS == owner
    count_L = owned_LS.sum(axis=1)
    most = count_L.max(initial=0)
    if most > 1:
        layer = int(np.argmax(count_L))
        raise ValueError(f"owner {owner} holds {int(most)} slots of layer {layer}; allowed: one")
    # `argmax` gives 0 where nothing is owned, too.
    first_L = owned_LS.argmax(axis=1)
    owns_any_L = owned_LS.any(axis=1)
    slot_L = np.where(owns_any_L, first_L, -1)
    return slot_L.astype(np.int32)


def apply_experts(x_BTD: Array, a_DSR: Array, b_SRF: Array, weight: Array, scale: float) -> Array:
    """`expert_sums` in the dtype of `x_BTD`."""
    return expert_sums(x_BTD, a_DSR, b_SRF, weight, scale).astype(x_BTD.dtype)


def expert_sums(x_BTD: Array, a_DSR: Array, b_SRF: Array, weight: Array, scale: float) -> Array:
    """Weighted sum of all slots' outputs, as two skinny products with the weights applied in rank space.

    `scale * sum_s weight_s * (x @ a_s) @ b_s`, exact for any mixture because the weights multiply linearly.

    Args:
      x_BTD: input of the site.
      weight: float32 [B, S] (per sample) or [B, T, S] (per token); B may be 1 for a constant.

    Returns:
      [B, T, F], float32: to be added to the float32 output of the site's linear and rounded with it.
    """
    width, slots, rank = a_DSR.shape
    chex.assert_shape(x_BTD, (None, None, width), custom_message="the input of experts must be [B, T, D], D that of a")
    chex.assert_shape(b_SRF, (slots, rank, None), custom_message="b must have the slots and the rank of a")
    chex.assert_rank(weight, {2, 3})
    chex.assert_axis_dimension(weight, -1, slots)
    ranks = slots * rank
    # All slots side by side are one matrix [D, S * R]: one product instead of S small ones.
    u_BTU = product(x_BTD, a_DSR.reshape(width, ranks))
    weight_BTS = weight[:, None, :] if weight.ndim == 2 else weight
    scaled_BTS = weight_BTS * scale
    # Without `total_repeat_length`, which makes a cumulated sum, two scatters and a gather of what is a broadcast.
    scaled_BTU = jnp.repeat(scaled_BTS, rank, axis=-1)
    # Weights stay float32: a softmax rounded to bfloat16 no longer sums to one.
    scaled_BTU = jnp.broadcast_to(scaled_BTU, u_BTU.shape)
    u_BTU = u_BTU * scaled_BTU
    u_BTU = u_BTU.astype(x_BTD.dtype)
    return product(u_BTU, b_SRF.reshape(ranks, -1))


def sums_of_chosen(x_BTD: Array, a_DSR: Array, b_SRF: Array, weight_BS: Array, scale: float, most: int) -> Array:
    """`expert_sums` where no sample has more than `most` weights above zero: its experts are taken out of the bank.

    Args:
      weight_BS: float32 >= 0; B may be 1 for a constant.

    Returns:
      [B, T, F], float32.
    """
    share_BK, slot_BK = jax.lax.top_k(weight_BS, most)
    chosen = (x_BTD.shape[0], most)
    share_BK = jnp.broadcast_to(share_BK, chosen)
    slot_BK = jnp.broadcast_to(slot_BK, chosen)
    a_SDR = jnp.moveaxis(a_DSR, 1, 0).astype(x_BTD.dtype)
    a_BKDR = a_SDR[slot_BK]
    b_BKRF = b_SRF.astype(x_BTD.dtype)[slot_BK]
    u_BTKR = jnp.einsum("btd,bkdr->btkr", x_BTD, a_BKDR, preferred_element_type=jnp.float32)
    scaled_BK = share_BK * scale
    u_BTKR = u_BTKR * scaled_BK[:, None, :, None]
    u_BTKR = u_BTKR.astype(x_BTD.dtype)
    return jnp.einsum("btkr,bkrf->btf", u_BTKR, b_BKRF, preferred_element_type=jnp.float32)


def multiplied_slots(shape: tuple[int, int, int], slots: int, rank: int, features: int, most: int | None) -> int:
    """How many slots' experts every token is multiplied with: all, or `most` where taking those out of the bank first
    saves more than a tenth of the operations and moved bytes.

    All experts are read once and multiplied with every token; those of a sample are read, written and read again for
    each sample, and multiplied with its tokens alone. So long prompts gain where many ranks lie side by side, and a new
    token, which is bound by reading, does not.

    Args:
      shape: samples and tokens of a batch, and the width of a token: [B, T, D].
    """
    if most is None or most >= slots:
        return slots
    batch, tokens, width = shape
    rows = batch * tokens
    numbers = rank * (width + features)

    def cost(multiplied: int, read: int) -> float:
        operations = 2 * rows * numbers * multiplied
        # The input is read, the output of the linear read and written.
        moved = rows * (width + 2 * features) + numbers * read
        return operations / OPERATIONS_A_BYTE + BYTES_A_NUMBER * moved

    return most if cost(most, 3 * batch * most) < 0.9 * cost(slots, slots) else slots
