"""Banks of LoRA experts.

A bank holds low-rank experts for named sites of consecutive decoder layers: `slots` of them in every layer,
each slot with an owner per layer (a task, nobody, or the fusion of several tasks). Its shape never changes
while capacity lasts, so adding a task is writing into a slot, and one compiled program serves the whole stream.
A bank says what its experts are, never how loudly they speak: that is `Routing`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

EMPTY = -1
FUSED = -2


@struct.dataclass
class Bank:
    """Experts of one site family.

    Attributes:
      a: site -> [L, D, S, R], the factors that read.
      b: site -> [L, S, R, F], the factors that write.
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
        return self.a[self.sites[0]].shape[3]

    @property
    def factors(self) -> dict[str, dict[str, Array]]:
        """The float leaves, as the optimiser sees them."""
        return {"a": self.a, "b": self.b}

    def with_factors(self, factors: dict[str, dict[str, Array]]) -> Bank:
        """The same bank with other float leaves."""
        return self.replace(a=factors["a"], b=factors["b"])


def bank_axes(bank: Bank) -> Bank:
    """Logical axis names with the tree of `bank`: experts are small, only their wide axes are worth cutting."""
    wide = {"o_proj": "heads", "down_proj": "hidden"}
    out = {"q_proj": "heads", "k_proj": "heads", "v_proj": "heads", "gate_proj": "hidden", "up_proj": "hidden"}
    return bank.replace(
        a={site: ("layer", wide.get(site, "width"), "slot", "rank") for site in bank.a},
        b={site: ("layer", "slot", "rank", out.get(site, "width")) for site in bank.b},
        owner_LS=("layer", "slot"),
    )


def owned_slots(bank: Bank, owner: int) -> np.ndarray:
    """Slot of `owner` in every layer, int32 [L]; -1 where the layer holds none.

    Raises:
      ValueError: if a layer holds the owner twice (one slot per owner and layer).
    """
    mine = np.asarray(bank.owner_LS) == owner
    if (mine.sum(axis=1) > 1).any():
        layer = int(np.argmax(mine.sum(axis=1)))
        raise ValueError(f"owner {owner} holds {int(mine[layer].sum())} slots of layer {layer}; allowed: one")
    return np.where(mine.any(axis=1), mine.argmax(axis=1), -1).astype(np.int32)


def apply_experts(x_BTD: Array, a_DSR: Array, b_SRF: Array, weight: Array, scale: float) -> Array:
    """Weighted sum of all slots' outputs, as two skinny products with the weights applied in rank space.

    `scale * sum_s weight_s * (x @ a_s) @ b_s`, exact for any mixture because the weights multiply linearly.

    Args:
      x_BTD: input of the site.
      weight: float32 [B, S] (per sample) or [B, T, S] (per token); B may be 1 for a constant.

    Returns:
      [B, T, F] in the dtype of `x_BTD`.
    """
    width, slots, rank = a_DSR.shape
    u = x_BTD @ a_DSR.reshape(width, slots * rank).astype(x_BTD.dtype)
    loud = weight[:, None, :] if weight.ndim == 2 else weight
    loud = jnp.repeat(loud * scale, rank, axis=-1, total_repeat_length=slots * rank)
    u = (u.astype(jnp.float32) * jnp.broadcast_to(loud, u.shape)).astype(x_BTD.dtype)
    return u @ b_SRF.reshape(slots * rank, -1).astype(x_BTD.dtype)
