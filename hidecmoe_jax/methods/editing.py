"""Edits of what was learned: experts of a task are retired, or merged into those of another task.

An edit is a small description; `edited` is a pure function from a learner to a learner, so the archive of a run is
never touched and an edit is taken back by leaving it out. An edit is a candidate until its effect on every task has
been measured (`runs.trial`). Merge modes carry the names that PEFT gives them (`experts.combine`).

In a pool (`Mixture`) a retired slot becomes EMPTY and no router sees it any more, so its part of the softmax goes to
the experts that are left; a task whose router sees nothing at all is not learned any more, and the locator passes over
it. Every expert of a task that is merged away goes into that expert of the other task, in the same layer, to whose
update its own has the largest cosine. The merged expert stands in the latter's slot. A router that saw any of the
sources sees it, and its column is the mean of the columns of those that this router saw: with equal columns and equal
experts the answers stay what they were.

A method with an expert for every task (`Routed`) can retire a whole task: its slot is emptied, fusions are made anew
from the experts that are left, and the gate masks it, so its inputs go to the next best task or to none. Two of its
tasks cannot share one slot, so merging is refused there (the lower layers are a merge already). What a locator knows
stays in its memory whatever is edited.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.experts import combine, surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.combine import closeness
from hidecmoe_jax.experts.slots import clear, rows_of, write
from hidecmoe_jax.methods.learner import Learner, Method
from hidecmoe_jax.methods.mixture import POOL, Mixture
from hidecmoe_jax.methods.routed import FAMILY, Routed


@dataclass(frozen=True)
class Edit:
    """What is to be done to the experts of a task.

    Attributes:
      kind: `retire` the experts of `task`, or `merge` them into those of task `into`.
      task, into: numbers of tasks, from 0.
      layers: decoder layers; None for all in which the task (for a merge: both) owns experts.
      mode, weights, density: as in `combine`. Two weights, of the expert merged into and of every one merged into it;
        empty for those with which copies of an expert give it back.
      seed: draws what DARE drops.
    """

    kind: Literal["retire", "merge"]
    task: int
    into: int | None = None
    layers: tuple[int, ...] | None = None
    mode: str = "svd"
    weights: tuple[float, ...] = ()
    density: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if self.kind == "merge" and (self.into is None or self.into == self.task):
            raise ValueError("a merge needs two tasks")
        if self.mode not in combine.MODES:
            raise ValueError(f"unknown mode {self.mode!r}; {nearest(self.mode, combine.MODES)}")
        if len(self.weights) not in (0, 2):
            raise ValueError(f"give two weights or none, got {len(self.weights)}")
        if self.layers is not None and len(self.layers) == 0:
            raise ValueError("an empty list of layers edits nothing; leave layers out for all")


def narrowed(method: Method, learner: Learner, edit: Edit) -> Edit | None:
    """The edit in those of its layers in which a learner has something to edit; None where it has nothing.

    Seeds of a run may have grown experts in different layers, and one edit is for all of them.
    """
    bank = learner.past.get(POOL if isinstance(method, Mixture) else FAMILY)
    if bank is None:
        return edit
    tasks = tuple(task for task in (edit.into, edit.task) if task is not None)
    there = set((_shared(bank, tasks) + bank.first_layer).tolist())
    if edit.layers is None:
        return edit if there else None
    layers = tuple(layer for layer in edit.layers if layer in there)
    return replace(edit, layers=layers) if layers else None


def edited(method: Method, learner: Learner, edit: Edit) -> Learner:
    """The learner after an edit; every slot that is not named keeps its bytes.

    Raises:
      ConfigError: the method cannot be edited so, or the task owns no expert in the layers.
    """
    match method, edit.kind:
        case Mixture(), "retire":
            return _retired(learner, edit)
        case Mixture(), "merge":
            return _merged(learner, edit)
        case Routed(growth="per_task"), "retire":
            return _without(method, learner, edit)
    raise ConfigError(
        f"{method.name} cannot {edit.kind} experts", where="method",
        why="merging needs a pool with token routers, as in LLaVA-CMoE; retiring needs that, or an expert per task",
        remedy="hidecmoe retire RUN TASK" if isinstance(method, Routed) and method.gated else None,
    )  # fmt: skip


def even_weights(mode: str, count: int) -> tuple[float, ...]:
    """Weights with which `combine` makes of `count` copies of an expert that expert again."""
    rule = mode.removesuffix("_svd")
    if rule in ("ties", "dare_ties"):
        return (1.0,) * count
    return (1.0 / count,) * count if mode in combine.SVD_MODES else (1.0 / count**2,) * count


def _shared(bank: Bank, tasks: tuple[int, ...]) -> np.ndarray:
    """Rows in which every one of `tasks` owns a slot."""
    owner_LS = np.asarray(bank.owner_LS)
    return np.flatnonzero(np.all([(owner_LS == task).any(axis=1) for task in tasks], axis=0))


def owned(bank: Bank, tasks: tuple[int, ...], layers: tuple[int, ...] | None) -> np.ndarray:
    """Rows in which every one of `tasks` owns a slot; of `layers` only, if these are given.

    Raises:
      ConfigError: there is no such row, or a layer is named in which one owns nothing.
    """
    rows = _shared(bank, tasks)
    known = ", ".join(str(row + bank.first_layer) for row in rows) or "none"
    try:
        asked = rows if layers is None else rows_of(bank, layers)
    except ValueError as error:
        raise ConfigError("no such layers", where="layers", why=str(error)) from error
    if not len(rows) or not set(asked) <= set(rows):
        both = " and ".join(f"number {task}" for task in tasks)
        raise ConfigError(
            "there is no expert to edit", where=f"task {both}",
            why=f"layers in which {'both own' if len(tasks) > 1 else 'it owns'} experts: {known}",
            remedy="give other tasks or --layers; `hidecmoe inspect RUN` shows who owns what" if len(rows) else
            "`hidecmoe inspect RUN` shows who owns what",
        )  # fmt: skip
    return asked


def _retired(learner: Learner, edit: Edit) -> Learner:
    """Empties the slots of a task in a pool and hides them from every router."""
    bank = learner.past[POOL]
    asked = np.isin(np.arange(bank.layers), owned(bank, (edit.task,), edit.layers))
    rows, slots = np.nonzero((np.asarray(bank.owner_LS) == edit.task) & asked[:, None])
    memory = dict(learner.memory)
    memory["visible"] = memory["visible"].at[:, rows, slots].set(False)
    memory["routers"] = memory["routers"].at[:, rows, :, slots].set(0.0)
    return learner.replace(past={POOL: clear(bank, rows, slots)}, memory=memory)


def _merged(learner: Learner, edit: Edit) -> Learner:
    """Merges in every layer a task's experts into those of another task that are most like them."""
    bank, memory = learner.past[POOL], dict(learner.memory)
    owner_LS = np.asarray(bank.owner_LS)
    routers, visible = np.array(memory["routers"]), np.array(memory["visible"])
    for row in owned(bank, (edit.into, edit.task), edit.layers):
        layer = surgery.cut(bank, bank.first_layer + row, bank.first_layer + row + 1)
        for slot, others in _pairs(layer, owner_LS[row], edit).items():
            sources = (slot, *others)
            made = _combined(layer, sources, edit)
            a, b = ({site: leaf[:, :, 0] for site, leaf in made.a.items()}, {s: v[:, 0] for s, v in made.b.items()})
            bank = write(bank, np.array([row]), slot, a_LDR=a, b_LRF=b, owner=edit.into)
            bank = clear(bank, np.full(len(others), row), np.array(others))
            _listen(routers[:, row], visible[:, row], sources)
    memory |= {"routers": jnp.asarray(routers), "visible": jnp.asarray(visible)}
    return learner.replace(past={POOL: bank}, memory=memory)


def _pairs(layer: Bank, owner_S: np.ndarray, edit: Edit) -> dict[int, list[int]]:
    """For slots of `edit.into` in one layer, the slots of `edit.task` that go there: the most alike, of equals the
    first."""
    targets, found = np.flatnonzero(owner_S == edit.into), {}
    for slot in np.flatnonzero(owner_S == edit.task):
        alike = [closeness(layer, int(target), int(slot))[0] for target in targets]
        best = int(targets[int(np.argmax(np.nan_to_num(alike, nan=-2.0)))])
        found.setdefault(best, []).append(int(slot))
    return found


def _combined(layer: Bank, sources: tuple[int, ...], edit: Edit) -> Bank:
    weights = even_weights(edit.mode, len(sources))
    if edit.weights:
        weights = (edit.weights[0], *(edit.weights[1],) * (len(sources) - 1))
    key = jax.random.key(edit.seed)
    try:
        return combine.combine(layer, sources, mode=edit.mode, weights=weights, density=edit.density, key=key)
    except ValueError as error:
        raise ConfigError("these experts cannot be merged so", where="merge", why=str(error)) from error


def _listen(router_NDS: np.ndarray, visible_NS: np.ndarray, sources: tuple[int, ...]) -> None:
    """One layer's routers and masks after a merge into the first of `sources`, in place."""
    slots = list(sources)
    for task in np.flatnonzero(visible_NS[:, slots].any(axis=1)):
        seen = [slot for slot in slots if visible_NS[task, slot]]
        column = router_NDS[task][:, seen].mean(axis=1)
        router_NDS[task][:, slots], visible_NS[task, slots] = 0.0, False
        router_NDS[task][:, slots[0]], visible_NS[task, slots[0]] = column, True


def _without(method: Routed, learner: Learner, edit: Edit) -> Learner:
    """Retires a whole task of a method that has an expert for every task."""
    if edit.layers is not None:
        raise ConfigError(
            f"{method.name} retires whole tasks", where="layers",
            why="a task would be located, and then half of its expert missing", remedy="leave --layers out",
        )  # fmt: skip
    bank = learner.past[FAMILY]
    owned(bank, (edit.task,), None)
    return learner.replace(past={FAMILY: method.fused_again(surgery.retire(bank, edit.task), learner.memory)})
