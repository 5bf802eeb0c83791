"""Voices of a bank in which every task has a slot of its own in each layer."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.methods.base import Decision, Serving


@dataclass(frozen=True)
class SlotVoices:
    """The expanded layers' bank, every task's slot weighted by the task's weight.

    Attributes:
      mixes_tasks: whether a sample may have weights of several tasks.
    """

    mixes_tasks: bool

    def voices(self, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
        """The voices that the decoder takes for a decision; none where all experts are folded into the model."""
        if serving.bank is None:
            return ()
        slots = jnp.arange(serving.bank.slots)
        slot_LN1 = serving.slot_LN[..., None]
        # Slot -1 matches no slot, so a layer without the task's expert adds nothing.
        place_LNS = (slot_LN1 == slots).astype(jnp.float32)
        exact = jax.lax.Precision.HIGHEST
        gain_LBS = jnp.einsum("lns,bn->lbs", place_LNS, decision.weight_BN, precision=exact)
        return (Voice(serving.bank, Routing(gain_LBS, most=None if self.mixes_tasks else 1)),)
