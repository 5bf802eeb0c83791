"""What a mixture archives of a task, and the learner that follows from the archives of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.experts import pool
from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.methods.base import Archive, Learner
from hidecmoe_jax.methods.mixture_voices import own_slots
from hidecmoe_jax.models.llava import Model

if TYPE_CHECKING:
    from hidecmoe_jax.methods.mixture import Mixture

GAINS = ("gain", "control")  # of probes, by task and layer; None where layers are judged by frequency
COUNTS = ("count", "mass")  # of a probe: tokens that chose each slot, and the router weights they gave it


def to_archive(method: Mixture, learner: Learner, lesson: int) -> Archive:
    """A task's experts, its router over the slots of its time, the gate's part of it, and the verdict."""
    slots = method.slots(lesson)
    memory = learner.memory
    expert = pool.slice_slots(learner.past[POOL], slots.start, slots.stop)
    # Cut on the host: these shapes grow with the task, and each would be a program of its own.
    router_LDS = np.asarray(memory.routers[lesson])
    visible_LS = np.asarray(memory.visible[lesson])
    stored = {
        "router": router_LDS[..., : slots.stop],
        "visible": visible_LS[..., : slots.stop],
        "expand": np.asarray(memory.verdict.expand[lesson]),
    }
    for name in COUNTS:
        table_NLSK = getattr(memory.verdict, name)
        table_LSK = np.asarray(table_NLSK[lesson])
        old = table_LSK[:, : slots.start]
        probe = table_LSK[:, -1:]
        stored[name] = np.concatenate([old, probe], axis=1)
    for name in GAINS:
        by_task = getattr(memory.verdict, name)
        if by_task is not None:
            stored[name] = np.asarray(by_task[lesson])
    of_gate = method.gate.to_archive(memory.gate, lesson)
    for name, leaf in of_gate.items():
        stored[f"gate/{name}"] = leaf
    experts = trees.flatten(expert.factors) | {"owner": expert.owner_LS}
    return {"experts": experts, "shared": {}, "memory": stored}


def from_archive(method: Mixture, model: Model, capacity: int, archive: Sequence[Archive | None]) -> Learner:
    """The inverse of `to_archive`. Experts of a lesson that is None do not contribute, not under a later task's
    router either, which then shares a token among the experts that are left."""
    learner = method.init(model, capacity)
    past = learner.past[POOL]
    memory = learner.memory
    # Filled on the host, as `to_archive` cuts.
    routers = np.array(memory.routers)
    visible = np.array(memory.visible)
    verdict = jax.tree.map(np.array, memory.verdict)
    gate = memory.gate
    for task, groups in enumerate(archive):
        if groups is None:
            continue
        slots = method.slots(task)
        stored = groups["memory"]
        experts = _archived_experts(method, model, groups["experts"], len(slots))
        past = pool.write_slots(past, slots.start, experts)
        routers[task, :, :, : slots.stop] = stored["router"]
        visible[task, :, : slots.stop] = stored["visible"]
        verdict.expand[task] = stored["expand"]
        for name in GAINS:
            if name in stored:
                getattr(verdict, name)[task] = stored[name]
        for name in COUNTS:
            if name in stored:  # early archives have no mass
                table_LSK = getattr(verdict, name)[task]
                stored_LSK = stored[name]
                # A view of the table: what is written to it is in the table.
                table_LSK[:, : slots.start] = stored_LSK[:, :-1]
                table_LSK[:, -1] = stored_LSK[:, -1]
        of_gate = {}
        for path, leaf in stored.items():
            if method.is_gate_leaf(path):
                name = path.removeprefix("gate/")
                of_gate[name] = leaf
        gate = method.gate.from_archive(gate, task, of_gate)
    # Experts of lessons that could not be loaded are EMPTY: no later router may reach them.
    visible &= np.asarray(past.owner_LS) != EMPTY
    memory = memory.replace(
        routers=jnp.asarray(routers),
        visible=jnp.asarray(visible),
        verdict=jax.tree.map(jnp.asarray, verdict),
        gate=gate,
    )
    if method.is_open:
        tasks, _, slots = visible.shape
        own_NS = own_slots(method, tasks, slots)
        memory = memory.replace(always=jnp.asarray(visible & own_NS[:, None]))
    return learner.replace(past={POOL: past}, memory=memory)


def _archived_experts(method: Mixture, model: Model, stored: dict[str, Array], slots: int) -> Bank:
    leaves = {path: leaf for path, leaf in stored.items() if path != "owner"}
    factors = trees.unflatten(leaves)
    owner_LS = jnp.asarray(stored["owner"], jnp.int32)
    return method.blank_bank(model, slots).with_factors(factors).replace(owner_LS=owner_LS)
