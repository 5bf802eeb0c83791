"""Which layers keep their tasks apart: measured after every task, instead of named in advance.

HiDe-LLaVA expands the last layer, because features of differently tuned models agree below it (arXiv 2503.12941,
section 3). Where that does not hold, a small part of a task's own records can tell. `loss` is a probe in the spirit of
LLaVA-CMoE's (arXiv 2503.21227): all layers are fused, one at a time is given the task's own expert back, and the fall
of the answer loss is what that layer is worth. `cka` repeats HiDe's study on the way: a layer is worth the
dissimilarity of its features under the task's own expert and under every earlier task's. `probe` is LLaVA-CMoE's own
question (section 3.2): every layer gets a token router over the experts of all tasks, the newest among them, is trained
for a few steps with all experts frozen, and a layer is worth the part of held-out tokens whose first choice is the
newest. All three look at the present task's records alone, so nothing is replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.methods.base import Loss, Stage
from hidecmoe_jax.methods.growth.probe import Probe, cut
from hidecmoe_jax.models.llava import Batch, Model, answer_loss, layer_features

WEIGH = "weigh"


@dataclass(frozen=True)
class LayerChoice:
    """Layers to expand, chosen from what every layer was found to be worth.

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
        """The layers of most worth, ascending; of equals the upper ones, so `last` as long as nothing is measured."""
        total_L = np.asarray(worth_NL, np.float64).sum(axis=0)
        best = sorted(range(len(total_L)), key=lambda layer: (total_L[layer], layer), reverse=True)
        return tuple(sorted(best[: self.layers]))

    def stages(self) -> tuple[Stage, ...]:
        """What a task has to go through for its layers to be weighed."""
        probe = Stage("probe", hears_past=True, part="probe", steps=self.steps)
        weigh = Stage(WEIGH, source="usage", hears_past=True, part="measure")
        return (probe, weigh) if self.by == "probe" else (weigh,)

    def part(self, stage: Stage, count: int, seed: int) -> np.ndarray | None:
        """Numbers of the records, of `count`, that a stage reads; None for all.

        Raises:
          DataError: a single record cannot both train and be measured on.
        """
        if stage.part == "all":
            return None
        if self.by == "probe":
            probe = Probe(share=self.share, measured=0.2)
            return cut(probe, count, seed, otherwise="set method.expand.by=loss")[stage.part == "measure"]
        return np.random.default_rng([seed, 2]).permutation(count)[: max(4, round(self.share * count))]

    def blank(self, bank: Bank, width: int) -> dict[str, Array]:
        """What is remembered between two stages, of the shape it always has: the routers [L, D, S] of a `probe`."""
        return {"router": jnp.zeros((bank.layers, width, bank.slots))} if self.by == "probe" else {}

    def loss(self, model: Model, bank: Bank, router_LDS: Array, batch: Batch) -> Loss:
        """Answer loss with every token mixing all tasks' experts; the routers alone train."""
        total, count, _ = answer_loss(model, batch, (_choice(bank, router_LDS, bank.slots),))
        return Loss(total, count)

    def measure(self, model: Model, bank: Bank, known: dict[str, Any], batch: Batch) -> dict[str, Array]:
        """Sums of one batch that `worth` reads.

        Args:
          known: the `router` of a `probe`; of the others the gains [L, S] with which the task's `own` expert, and the
            fusion of all tasks (`fused`), speak in every layer.
        """
        if self.by == "loss":
            return _losses(model, bank, known["own"], known["fused"], batch)
        if self.by == "cka":
            return _likeness(model, bank, known["own"], batch)
        _, _, tallies = answer_loss(model, batch, (_choice(bank, known["router"], 1),), tally=True)
        return {"count_LS": tallies[0][0].count.sum(axis=-1)}

    def worth(self, found: dict[str, np.ndarray], earlier_S: np.ndarray) -> np.ndarray:
        """Worth of every layer, float32 [L], from the sums over all batches; `earlier_S` marks earlier tasks' slots."""
        if self.by == "loss":
            fall_L = found["nll_V"][0] - found["nll_V"][1:]
            return (fall_L / max(int(found["tokens"]), 1)).astype(np.float32)
        if self.by == "probe":
            count_LS = found["count_LS"]
            return (count_LS[:, ~earlier_S].sum(axis=1) / np.maximum(count_LS.sum(axis=1), 1)).astype(np.float32)
        own, both, other = np.moveaxis(found["hsic_SL3"][earlier_S], -1, 0)
        power = own * other
        alike = np.where(power > 0, both / np.sqrt(np.where(power > 0, power, 1.0)), 1.0)
        return (1.0 - alike).mean(axis=0).astype(np.float32)


def _choice(bank: Bank, router_LDS: Array, top_k: int) -> Voice:
    """The experts of all tasks under a token router; a fusion and empty slots are not to be chosen."""
    heard_LS = (bank.owner_LS >= 0).astype(jnp.float32)
    return Voice(bank, Routing(heard_LS[:, None], router_LDS[:, None], top_k))


def _losses(model: Model, bank: Bank, own_LS: Array, fused_LS: Array, batch: Batch) -> dict[str, Array]:
    """Summed answer loss with all layers fused, then with each layer's own expert: [1 + L], and answer tokens."""
    layers = jnp.arange(bank.layers)

    def loss(layer: Array) -> tuple[Array, Array]:
        gain_LS = jnp.where((layers == layer)[:, None], own_LS, fused_LS)
        total, count, _ = answer_loss(model, batch, (Voice(bank, Routing(gain_LS[:, None])),))
        return total, count

    nll_V, count_V = jax.lax.map(loss, jnp.arange(-1, bank.layers))
    return {"nll_V": nll_V, "tokens": count_V[0]}


def _likeness(model: Model, bank: Bank, own_LS: Array, batch: Batch) -> dict[str, Array]:
    """Debiased Hilbert-Schmidt sums (own with own, own with other, other with other) of every slot and layer.

    Estimates of batches add up to one of the whole set (arXiv 2010.15327), so no features are kept.
    """
    real_B = jnp.any(batch.answer_mask_BA, axis=-1)

    def features(gain_LS: Array) -> Array:
        return layer_features(model, batch.prompt, (Voice(bank, Routing(gain_LS[:, None])),))

    def compared(slot: Array) -> Array:
        other_LBD = features(jnp.broadcast_to(jax.nn.one_hot(slot, bank.slots), own_LS.shape))
        pairs = ((own_LBD, own_LBD), (own_LBD, other_LBD), (other_LBD, other_LBD))
        return jnp.stack([jax.vmap(hsic, (0, 0, None))(x, y, real_B) for x, y in pairs], axis=-1)

    own_LBD = features(own_LS)
    return {"hsic_SL3": jax.lax.map(compared, jnp.arange(bank.slots))}


def hsic(x_BD: Array, y_BD: Array, real_B: Array) -> Array:
    """Unbiased estimate of the linear Hilbert-Schmidt criterion (Song et al. 2012) over the real rows; 0 below four."""
    count = jnp.sum(real_B)
    n = jnp.maximum(count, 4).astype(jnp.float32)
    pair_BB = (real_B[:, None] & real_B[None, :] & ~jnp.eye(len(real_B), dtype=bool)).astype(jnp.float32)

    def kernel(z_BD: Array) -> Array:
        mean_D = jnp.sum(z_BD * real_B[:, None], axis=0) / n
        centred = z_BD - mean_D
        return jnp.matmul(centred, centred.T, precision=jax.lax.Precision.HIGHEST) * pair_BB

    k, m = kernel(x_BD), kernel(y_BD)
    cross = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * jnp.dot(k.sum(0), m.sum(0))
    return jnp.where(count >= 4, ((k * m).sum() + cross) / (n * (n - 3)), 0.0)
