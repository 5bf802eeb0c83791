"""What a mixture's growth looked like: what probes saw, what was added where, and who is used, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hidecmoe_jax.experts.bank import EMPTY
from hidecmoe_jax.experts.combine import closeness, distance
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.methods.base import Learner
from hidecmoe_jax.methods.growth.probe import counted, limits, most_used
from hidecmoe_jax.models.llava import Model

if TYPE_CHECKING:
    from hidecmoe_jax.methods.mixture import Mixture


def growth_of(method: Mixture, model: Model, learner: Learner) -> dict[str, Any]:
    """By task, and within it by layer of the decoder; None for tasks and layers that were not probed.

    Returns:
      experts: how many the task added.
      frequency, threshold: how often its probe was picked on the measuring records, as a part of all tokens that count,
        and above which frequency the layer was expanded (CMoE-D14).
      by_kind: the frequency among image, text and answer tokens; mass: the probe's part of the gates' weights (D13).
      used: [task of the expert][layer], the part of tokens that picked experts of each task.
      drift: of new experts that began as copies, {cosine, distance} to what they were copied from, after tuning (D17).
      parameters: numbers the task added, by kind.
    """
    keys = ("experts", "frequency", "threshold", "by_kind", "mass", "used", "drift", "parameters")
    found: dict[str, list] = {key: [] for key in keys}
    owner_LS = np.asarray(learner.past[POOL].owner_LS)
    for task in range(max(method.learned(learner), default=-1) + 1):
        probed = np.asarray(learner.memory["verdict"]["count"][task]).any()
        told = _told(method, learner, task) if probed else {}
        told["experts"] = (owner_LS == task).sum(axis=1).tolist()
        told = {name: _from_the_bottom(method, name, rows) for name, rows in told.items()}
        told["parameters"] = added(method, model, learner, task)
        for key in keys:
            found[key].append(told.get(key))
    return found


def _from_the_bottom(method: Mixture, name: str, rows: list | None) -> list | None:
    """Rows of all layers, of those of a pool that may begin further up; `used` has such rows by task."""
    if name == "used":
        return [[0.0] * method.lowest + row for row in rows]
    return None if rows is None else [0 if name == "experts" else None] * method.lowest + rows


def added(method: Mixture, model: Model, learner: Learner, task: int) -> dict[str, int]:
    """Numbers that one task added, by kind."""
    owned = np.asarray(learner.past[POOL].owner_LS) == task
    seen = np.asarray(learner.memory["visible"][task])
    return {
        "experts": method.lora.size(model) * int(owned.sum()),
        "routers": model.config.width * int(seen.sum()),
        "locator": method.gate.size(model),
    }


def sizes(method: Mixture, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
    """Numbers beyond the base by kind, as a method's `sizes`."""
    none = {"experts": 0, "routers": 0, "locator": 0, "projector": 0}
    visible, tasks = np.asarray(learner.memory["visible"]), method.learned(learner)
    if not tasks:
        return {"stored": none, "archived": none, "trained": none}
    owned = int((np.asarray(learner.past[POOL].owner_LS) != EMPTY).sum())
    stored = none | {
        "experts": method.lora.size(model) * owned,
        "routers": model.config.width * int(visible.sum()),
        "locator": len(tasks) * method.gate.size(model),
    }
    parts = [added(method, model, learner, task) for task in tasks]
    return {"stored": stored, "archived": stored, "trained": none | max(parts, key=lambda part: sum(part.values()))}


def probed(method: Mixture, learner: Learner, task: int) -> tuple[np.ndarray, np.ndarray]:
    """How often a task's probe was picked in every layer, and above which frequency that expands it, [L] each."""
    return _frequencies(method, *_picked(method, learner, task))


def _picked(method: Mixture, learner: Learner, task: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that picked each slot while a task was probed, [L, S + 1], and which slots there were; last the probe."""
    chosen = counted(np.asarray(learner.memory["verdict"]["count"][task]), method.probe)
    heard = np.asarray(learner.past[POOL].owner_LS) != EMPTY
    heard[:, method.slots(task).start :] = False
    return chosen, np.concatenate([heard, np.ones((len(heard), 1), bool)], axis=1)


def _frequencies(method: Mixture, chosen: np.ndarray, heard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = method.top_k / np.maximum(chosen.sum(axis=1), 1)
    return chosen[:, -1] * scale, limits(chosen, heard, method.probe) * scale


def _told(method: Mixture, learner: Learner, task: int) -> dict[str, Any]:
    """What probing a task has shown."""
    verdict, owner_LS = learner.memory["verdict"], np.asarray(learner.past[POOL].owner_LS)
    count, mass = np.asarray(verdict["count"][task], np.int64), np.asarray(verdict["mass"][task], np.float64)
    chosen, heard = _picked(method, learner, task)
    tokens = np.maximum(chosen.sum(axis=1), 1) / method.top_k
    owners = [np.where(owner_LS == other, chosen[:, :-1], 0).sum(axis=1) / tokens for other in range(task)]
    frequency, threshold = _frequencies(method, chosen, heard)
    return {
        "frequency": frequency.tolist(),
        "threshold": threshold.tolist(),
        "by_kind": (count[:, -1] * method.top_k / np.maximum(count.sum(axis=1), 1)).tolist(),
        "mass": (mass[:, -1].sum(-1) / np.maximum(mass.sum((1, 2)), 1e-9)).tolist(),
        "used": [part.tolist() for part in owners],
        "drift": _drift(method, learner, task, most_used(chosen[:, :-1], heard[:, :-1], 1)[:, 0]),
    }


def _drift(method: Mixture, learner: Learner, task: int, source_L: np.ndarray) -> list[dict[str, float] | None] | None:
    """By layer, how far the task's first new expert has gone from the slot it was copied from; None where nothing was
    added or where the source is gone since."""
    if method.start != "copy":
        return None
    bank, own = learner.past[POOL], method.slots(task).start
    mine_L = np.asarray(bank.owner_LS)[:, own] == task
    found: list[dict[str, float] | None] = [None] * len(source_L)
    for slot in sorted({int(slot) for slot in source_L if slot >= 0}):
        apart, angle = np.mean(list(distance(bank, slot, own).values()), axis=0), closeness(bank, slot, own)
        for layer in np.flatnonzero((source_L == slot) & mine_L):
            found[layer] = {"cosine": float(angle[layer]), "distance": float(apart[layer])}
    return found
