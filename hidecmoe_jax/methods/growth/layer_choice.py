"""Choice of the expanded layers (those that keep one expert per task) by measuring after every task.

HiDe-LLaVA expands the last layer, because features of differently tuned models agree below it (arXiv 2503.12941,
section 3). Where that does not hold, every layer's worth to a task is measured on a small part of the task's records:

* `loss`: all layers are fused, one at a time gets the task's own expert back; its worth is the fall of the answer loss
  (in the spirit of LLaVA-CMoE's probes, arXiv 2503.21227).
* `cka`: the dissimilarity of the layer's features under the task's own expert and under every earlier task's (HiDe's
  study, repeated while learning).
* `probe`: every layer gets a token router over the experts of all tasks, which trains for a few steps with all experts
  frozen; the worth is the part of held-out tokens whose first choice is the newest expert (LLaVA-CMoE, section 3.2).

All three read the present task's records alone, so nothing is replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice, constant
from hidecmoe_jax.methods.base import Loss
from hidecmoe_jax.methods.growth.probe import Probe, split_records
from hidecmoe_jax.models.llava import Batch, Model, answer_loss, layer_features


class LayerGains(struct.PyTreeNode):
    """Gains [L, S] of the task's own expert alone (`own`), and of the fusion of all tasks (`fused`), in every layer."""

    own: Array
    fused: Array


@dataclass(frozen=True)
class LayerChoice:
    """How the layers to expand are chosen from the measured worth of every layer.

    Attributes:
      layers: how many; the choice is made anew after every task, from the mean over tasks.
      by: `loss`, `cka` or `probe`, as above.
      share: part of a task's training records that is measured on; of a `probe`, 4 in 5 of them train the routers.
      steps: least number of optimiser steps that routers train for (`probe` alone).
    """

    layers: int = 1
    by: Literal["loss", "cka", "probe"] = "loss"
    share: float = 0.1
    steps: int = 40

    def __post_init__(self):
        if min(self.layers, self.steps) < 1 or not 0 < self.share <= 1:
            raise ValueError(
                f"layers {self.layers} and steps {self.steps} must be at least 1 and share {self.share} in (0, 1]"
            )

    def pick(self, worth_NL: Array) -> tuple[int, ...]:
        """The layers of most worth over all tasks, ascending; of equals the upper ones, so it is `last` as long as
        nothing is measured."""
        exact_NL = np.asarray(worth_NL, np.float64)
        total_L = exact_NL.sum(axis=0)
        layers = range(len(total_L))
        best_first = sorted(layers, key=lambda layer: (total_L[layer], layer), reverse=True)
        best = best_first[: self.layers]
        return tuple(sorted(best))

    def subset(self, name: str, count: int, seed: int) -> np.ndarray:
        """Numbers of the records, of `count`, that routers are trained on (`probe`) or layers measured on (`measure`).

        Raises:
          DataError: a single record cannot both train and be measured on.
        """
        if self.by == "probe":
            probe = Probe(share=self.share, measured=0.2)
            trained, measured = split_records(probe, count, seed, otherwise="set method.expand.by=loss")
            return trained if name == "probe" else measured
        generator = np.random.default_rng([seed, 2])
        order = generator.permutation(count)
        share_of_records = round(self.share * count)
        # `hsic` is defined from four records on.
        measured = max(4, share_of_records)
        return order[:measured]

    def blank_router(self, bank: Bank, width: int) -> Array | None:
        """Zero token routers [L, D, S] of a `probe`; None for the other measures."""
        if self.by != "probe":
            return None
        shape = (bank.layers, width, bank.slots)
        return jnp.zeros(shape)

    def loss(self, model: Model, bank: Bank, router_LDS: Array, batch: Batch) -> Loss:
        """Answer loss with every token mixing all tasks' experts; the routers alone train."""
        voice = _every_task(bank, router_LDS, bank.slots)
        total, tokens, _ = answer_loss(model, batch, (voice,))
        return Loss(total, tokens)

    def measure(
        self, model: Model, bank: Bank, gains: LayerGains, router_LDS: Array | None, batch: Batch
    ) -> dict[str, Array]:
        """Sums of one batch that `worth` reads."""
        if self.by == "loss":
            return _losses(model, bank, gains, batch)
        if self.by == "cka":
            return _similarities(model, bank, gains.own, batch)
        # One choice a token: the worth counts first choices.
        voice = _every_task(bank, router_LDS, 1)
        _, _, tallies = answer_loss(model, batch, (voice,), tally=True)
        count_LSK = tallies[0][0].count
        return {"count_LS": count_LSK.sum(axis=-1)}

    def worth(self, sums: dict[str, np.ndarray], earlier_S: np.ndarray) -> np.ndarray:
        """Worth of every layer, float32 [L].

        Args:
          sums: of `measure`, over all batches.
          earlier_S: bool, slots of earlier tasks' experts.
        """
        if self.by == "loss":
            nll_V = sums["nll_V"]
            fall_L = nll_V[0] - nll_V[1:]
            tokens = max(int(sums["tokens"]), 1)
            return (fall_L / tokens).astype(np.float32)
        if self.by == "probe":
            count_LS = sums["count_LS"]
            newest_L = count_LS[:, ~earlier_S].sum(axis=1)
            tokens_L = np.maximum(count_LS.sum(axis=1), 1)
            return (newest_L / tokens_L).astype(np.float32)
        hsic_EL3 = sums["hsic_SL3"][earlier_S]
        own_EL, cross_EL, other_EL = np.moveaxis(hsic_EL3, -1, 0)
        power_EL = own_EL * other_EL
        varies_EL = power_EL > 0
        positive_EL = np.where(varies_EL, power_EL, 1.0)
        ratio_EL = cross_EL / np.sqrt(positive_EL)
        # Features that do not vary have no CKA: they count as alike, so the layer is worth nothing.
        cka_EL = np.where(varies_EL, ratio_EL, 1.0)
        worth_L = (1.0 - cka_EL).mean(axis=0)
        return worth_L.astype(np.float32)


def _every_task(bank: Bank, router_LDS: Array, top_k: int) -> Voice:
    """The experts of all tasks under a token router; the fusion and EMPTY slots cannot be chosen."""
    # EMPTY and FUSED are negative.
    is_task_LS = bank.owner_LS >= 0
    gain_L1S = is_task_LS.astype(jnp.float32)[:, None]
    router_L1DS = router_LDS[:, None]
    routing = Routing(gain_L1S, router_L1DS, top_k)
    return Voice(bank, routing)


def _losses(model: Model, bank: Bank, gains: LayerGains, batch: Batch) -> dict[str, Array]:
    """Summed answer loss with all layers fused, then with each layer's own expert: [1 + L], and answer tokens."""
    layers = jnp.arange(bank.layers)

    def loss(layer: Array) -> tuple[Array, Array]:
        is_own_L1 = (layers == layer)[:, None]
        gain_LS = jnp.where(is_own_L1, gains.own, gains.fused)
        voice = Voice(bank, constant(gain_LS))
        total, tokens, _ = answer_loss(model, batch, (voice,))
        return total, tokens

    # Layer -1 matches no layer: the loss with all of them fused.
    own_layers = jnp.arange(-1, bank.layers)
    nll_V, tokens_V = jax.lax.map(loss, own_layers)
    return {"nll_V": nll_V, "tokens": tokens_V[0]}


def _similarities(model: Model, bank: Bank, own_LS: Array, batch: Batch) -> dict[str, Array]:
    """Debiased Hilbert-Schmidt sums (own with own, own with other, other with other) of every slot and layer.

    Estimates of batches add up to one of the whole set (arXiv 2010.15327), so no features are kept.
    """
    # Rows that fill up the last batch have no answer tokens.
    real_B = jnp.any(batch.answer_mask_BA, axis=-1)

    def features(gain_LS: Array) -> Array:
        voice = Voice(bank, constant(gain_LS))
        return layer_features(model, batch.prompt, (voice,))

    def compared(slot: Array) -> Array:
        is_slot_S = jax.nn.one_hot(slot, bank.slots)
        slot_LS = jnp.broadcast_to(is_slot_S, own_LS.shape)
        other_LBD = features(slot_LS)
        hsic_by_layer = jax.vmap(hsic, (0, 0, None))
        own_L = hsic_by_layer(own_LBD, own_LBD, real_B)
        cross_L = hsic_by_layer(own_LBD, other_LBD, real_B)
        other_L = hsic_by_layer(other_LBD, other_LBD, real_B)
        return jnp.stack([own_L, cross_L, other_L], axis=-1)

    own_LBD = features(own_LS)
    slots = jnp.arange(bank.slots)
    # Slot after slot: features under one other expert at a time are in memory.
    hsic_SL3 = jax.lax.map(compared, slots)
    return {"hsic_SL3": hsic_SL3}


def hsic(x_BD: Array, y_BD: Array, real_B: Array) -> Array:
    """Unbiased estimate of the linear Hilbert-Schmidt criterion (Song et al. 2012) over the real rows; 0 below four."""
    count = jnp.sum(real_B)
    n = jnp.maximum(count, 4).astype(jnp.float32)
    real_B1 = real_B[:, None]
    both_real_BB = real_B1 & real_B[None, :]
    is_same_BB = jnp.eye(len(real_B), dtype=bool)
    # The diagonal is left out: a row's product with itself is what biases the plain estimate.
    is_pair_BB = both_real_BB & ~is_same_BB
    pair_BB = is_pair_BB.astype(jnp.float32)

    def kernel(z_BD: Array) -> Array:
        total_D = jnp.sum(z_BD * real_B1, axis=0)
        mean_D = total_D / n
        centred_BD = z_BD - mean_D
        # Accelerators shorten float32 products by default.
        kernel_BB = jnp.matmul(centred_BD, centred_BD.T, precision=jax.lax.Precision.HIGHEST)
        return kernel_BB * pair_BB

    k = kernel(x_BD)
    m = kernel(y_BD)
    total_product = k.sum() * m.sum()
    of_totals = total_product / ((n - 1) * (n - 2))
    row_scale = 2.0 / (n - 2)
    row_product = jnp.dot(k.sum(0), m.sum(0))
    of_rows = row_scale * row_product
    cross = of_totals - of_rows
    trace = (k * m).sum()
    pairs = n * (n - 3)
    estimate = (trace + cross) / pairs
    return jnp.where(count >= 4, estimate, 0.0)
