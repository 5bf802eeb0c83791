"""Voices of a mixture, while it trains and while it answers.

With a `closed` token gate (LLaVA-CMoE as published, arXiv 2503.21227) all experts of a layer, old and new, share one
softmax over the `top_k` kept ones, so old experts always have a part. With an `open` one the task's own experts are on
for every token, and old ones stand behind the task's router with a null expert: a token can leave them nearly silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.methods.base import Decision, Learner, Serving
from hidecmoe_jax.methods.mixture_memory import MixtureMemory

if TYPE_CHECKING:
    from hidecmoe_jax.methods.mixture import Mixture


def pool_voices(method: Mixture, learner: Learner, key: Array | None, *, probing: bool = False) -> tuple[Voice, Voice]:
    """Old and new experts under the router that trains; new ones are outside of it where the gate is open.

    While `probing` an open gate has no null expert: old experts have the whole softmax, so that a task which they know
    is answered by them and leaves the probe little to save.
    """
    past = learner.past[POOL]
    live = learner.live[POOL]
    router_L1DS = learner.routers[POOL][:, None]
    old_columns = router_L1DS[..., : past.slots]
    if method.is_open:
        null = None if probing else method.null
        old_routing = Routing(_owned(past), old_columns, method.top_k, null=null)
        new_routing = Routing(_owned(live))
    else:
        new_columns = router_L1DS[..., past.slots :]
        old_routing = Routing(_owned(past), old_columns, method.top_k, softmax_group=POOL)
        new_routing = Routing(_owned(live), new_columns, method.top_k, softmax_group=POOL)
    old_voice = Voice(past, old_routing)
    new_voice = Voice(live, new_routing, key, dropout=method.lora.dropout)
    return old_voice, new_voice


def _owned(bank: Bank) -> Array:
    """Gain 1 for owned slots and 0 for EMPTY ones, float32 [L, 1, S]."""
    is_owned_LS = bank.owner_LS != EMPTY
    gain_LS = is_owned_LS.astype(jnp.float32)
    return gain_LS[:, None]


def serving_voices(method: Mixture, serving: Serving, decision: Decision) -> tuple[Voice, ...]:
    """The pool under the located task's router, gathered per sample; with soft weights one voice a task."""
    router_NLDS = serving.memory.routers
    routed_NLS, always_NLS = _reached(serving.memory)
    weight_BN = decision.weight_BN
    if method.gate.mixes_tasks:
        voices = []
        for task in range(len(router_NLDS)):
            weight_B1 = weight_BN[:, task, None]
            gain_LBS = routed_NLS[task][:, None] * weight_B1
            always_LBS = None
            if always_NLS is not None:
                always_LBS = always_NLS[task][:, None] * weight_B1
            router_L1DS = router_NLDS[task][:, None]
            voices.append(_routed_voice(method, serving.bank, gain_LBS, router_L1DS, always_LBS))
        return tuple(voices)
    choice_B = jnp.argmax(weight_BN, axis=-1)
    # An unknown input gets some task's router, but no active slot.
    is_known_B11 = (jnp.max(weight_BN, axis=-1) > 0)[:, None, None]

    def of_sample(leaf_NLS: Array) -> Array:
        of_task_BLS = leaf_NLS[choice_B] * is_known_B11
        return jnp.moveaxis(of_task_BLS, 0, 1)

    gain_LBS = of_sample(routed_NLS)
    always_LBS = None if always_NLS is None else of_sample(always_NLS)
    router_LBDS = jnp.moveaxis(router_NLDS[choice_B], 0, 1)
    return (_routed_voice(method, serving.bank, gain_LBS, router_LBDS, always_LBS),)


def _routed_voice(method: Mixture, bank: Bank, gain_LBS: Array, router_LBDS: Array, always_LBS: Array | None) -> Voice:
    null = method.null if method.is_open else None
    routing = Routing(gain_LBS, router_LBDS, method.top_k, null=null, always_LBS=always_LBS)
    return Voice(bank, routing)


def _reached(memory: MixtureMemory) -> tuple[Array, Array | None]:
    """Slots that every task's router chooses from, and those that are always on for a task (None: the gate is closed),
    1 or 0, float32 [N, L, S] each."""
    if memory.always is None:
        return memory.visible.astype(jnp.float32), None
    routed_NLS = memory.visible & ~memory.always
    return routed_NLS.astype(jnp.float32), memory.always.astype(jnp.float32)


def own_slots(method: Mixture, tasks: int, slots: int) -> np.ndarray:
    """Slots of every task's own experts, bool [N, S]."""
    own_NS = np.zeros((tasks, slots), bool)
    for task in range(tasks):
        of_task = method.slots(task)
        own_NS[task, of_task.start : of_task.stop] = True
    return own_NS
