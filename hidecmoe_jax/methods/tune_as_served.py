"""Tuning an expert as it will be served: in fused layers at its volume, beside the fusion of earlier tasks.

HiDe-LLaVA trains every expert as if it were the only one and serves it as a part of a sum (HiDe-D16). Here the forward
pass of training is the one that serves the task right after it was learned: earlier tasks' experts stand beside it in
the fused layers, frozen, and the volume is that of one task more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.methods.base import FrozenFeatures, Learner, with_leaves
from hidecmoe_jax.methods.fusion import volume_of
from hidecmoe_jax.methods.growth.layer_choice import LayerGains
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.methods.routed_stages import Tune
from hidecmoe_jax.methods.shared_slots import serving_slots
from hidecmoe_jax.models.llava import Model

if TYPE_CHECKING:
    from hidecmoe_jax.methods.routed import Routed


def tuning_of(method: Routed) -> Tune:
    """The stage that trains a task's expert: alone, or as it will be served."""
    if method.train_as == "served":
        return TuneAsServed(method=method)
    return Tune(method=method)


@dataclass(frozen=True, kw_only=True)
class TuneAsServed(Tune):
    """Trains the task's own expert beside the fusion of earlier ones, every one at its serving volume."""

    uses_past: bool = True

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """As `Tune.prepare`, with the gains of old experts and of the one that trains."""
        ready = super().prepare(model, learner, lesson, key)
        method = self.method
        bank = learner.past[LINEARS]
        memory = learner.memory
        layers = method.fused(bank.layers, memory)
        tasks = len(method.learned(learner)) + 1
        volume = volume_of(method.volume, tasks)
        slot_LN = serving_slots(bank, memory.home)
        # Without its volume, which counts the tasks before this one.
        plain_rule = replace(method.fusion_rule, volume=None)
        fused_LS = volume * plain_rule.gains(bank, layers, slot_LN)
        weight = method.eps[lesson] if method.eps else 1.0
        is_fused_L = np.isin(np.arange(bank.layers), layers)
        own_L1 = jnp.where(is_fused_L[:, None], volume * weight, 1.0)
        gains = LayerGains(own=own_L1.astype(jnp.float32), fused=fused_LS.astype(jnp.float32))
        return ready.replace(memory=memory.replace(weighing=gains))

    def forward(self, model: Model, learner: Learner, key: Array) -> tuple[Model, tuple[Voice, ...]]:
        """Model and voices of the training loss: those that serve the task."""
        gains = learner.memory.weighing
        live = learner.live[LINEARS]
        old_voice = Voice(learner.past[LINEARS], Routing(gains.fused[:, None]))
        own_voice = Voice(live, Routing(gains.own[:, None]), key, dropout=self.method.lora.dropout)
        # On the right side of `|`, because what trains replaces what was tuned before.
        tuned_model = with_leaves(model, learner.shared | learner.tuned)
        return tuned_model, (old_voice, own_voice)

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """As `Tune.finish`; the gains have served."""
        ready = learner.replace(memory=learner.memory.replace(weighing=None))
        return super().finish(model, ready, lesson, result, key)
