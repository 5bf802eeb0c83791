"""Edits of what was learned: experts of a task are retired, or merged into those of another task.

An edit is a small description; `edited` is a pure function from a learner to a learner, so the archive of a run is
never touched and an edit is taken back by leaving it out. An edit is a candidate until its effect on every task has
been measured (`runs.trial`). Merge modes carry the names that PEFT gives them (`experts.combine`).

In a pool (`Mixture`) a retired slot becomes EMPTY and no router sees it any more, so its part of the softmax goes to
the experts that are left; a task whose router sees nothing at all is not learned any more, and the locator passes over
it. Every expert of a task that is merged away goes into that expert of the other task, in the same layer, to whose
update its own has the largest cosine. The merged expert stands in the latter's slot. A router that saw any of the
sources sees it, and its column is the mean of the columns of those that this router saw: with equal columns and equal
experts the answers stay what they were. So it is in the pool of a `Stacked` method; the layers below it stay.

A method with an expert for every task (`Routed`) merges in the layers that keep tasks apart: the expert made of two
stands in the slot of one of them, the other's slot is emptied, and both are answered from the former (`homes`). Fused
layers are a merge of all tasks already and stay as they are, with an expert of each as a source. Which layers keep
tasks apart may be chosen anew after a later task; a merge is then still one in the layers in which it was made, and the
expert that two tasks share counts in a fusion once for each. Such a method retires whole tasks: the slot is emptied,
fusions are made anew from the experts that are left, and the gate masks the task, so its inputs go to the next best
one or to none. What a task gave to a merged expert stays in it. What a locator knows stays in its memory whatever is
edited.
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
from hidecmoe_jax.methods import shared_slots
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.methods.mixture import POOL, Mixture
from hidecmoe_jax.methods.routed import FAMILY, Routed
from hidecmoe_jax.methods.stacked import Stacked


@dataclass(frozen=True)
class Edit:
    """What is to be done to the experts of a task.

    Attributes:
      kind: `retire` the experts of `task`, or `merge` them into those of task `into`.
      task, into: numbers of tasks, from 0.
      layers: decoder layers; None for all in which the task (for a merge: both) owns experts to be edited.
      mode, weights, density: as in `combine`. Two weights, of the expert merged into and of every one merged into it;
        empty for those with which copies of an expert give it back.
      seed: draws what DARE drops.
      expert: retire this one alone of the experts that the task owns in a layer of a pool, counted from 0 in the order
        of slots; None for all.
    """

    kind: Literal["retire", "merge"]
    task: int
    into: int | None = None
    layers: tuple[int, ...] | None = None
    mode: str = "svd"
    weights: tuple[float, ...] = ()
    density: float = 0.5
    seed: int = 0
    expert: int | None = None

    def __post_init__(self):
        if self.kind == "merge" and (self.into is None or self.into == self.task):
            raise ValueError("a merge needs two tasks")
        if self.mode not in combine.MODES:
            raise ValueError(f"unknown mode {self.mode!r}; {nearest(self.mode, combine.MODES)}")
        if len(self.weights) not in (0, 2):
            raise ValueError(f"give two weights or none, got {len(self.weights)}")
        if self.layers is not None and len(self.layers) == 0:
            raise ValueError("an empty list of layers edits nothing; leave layers out for all")
        if self.expert is not None and (self.kind != "retire" or self.expert < 0):
            raise ValueError(f"expert {self.expert}: one of a task's experts is retired by its number, from 0")


def narrowed(method: Method, learner: Learner, edit: Edit, since: int | None = None) -> Edit | None:
    """The edit in those of its layers in which a learner has something to edit; None where it has nothing.

    Seeds of a run may have grown experts in different layers, and one edit is for all of them.

    Args:
      since: as in `edited`.
    """
    if isinstance(method, Stacked):
        return narrowed(method.grown, learner, edit, since)
    if _family(method) not in learner.past:
        return edit
    if isinstance(method, Routed) and edit.kind == "retire":
        return edit if edit.task in method.learned(learner) else None
    bank, rows = _editable(method, learner, edit, since)
    there = set((rows + bank.first_layer).tolist())
    if edit.layers is None:
        return edit if there else None
    layers = tuple(layer for layer in edit.layers if layer in there)
    return replace(edit, layers=layers) if layers else None


def edited(method: Method, learner: Learner, edit: Edit, since: int | None = None) -> Learner:
    """The learner after an edit; every slot that is not named keeps its bytes.

    Args:
      since: how many tasks were learned when the edit was made; None for all that are there.

    Raises:
      ConfigError: the method cannot be edited so, or the task owns no expert in the layers.
    """
    match method, edit.kind:
        case Stacked(), _:
            return edited(method.grown, learner, edit, since)
        case Mixture(), "retire":
            return _retired(learner, edit, owned(method, learner, edit))
        case Mixture(), "merge":
            return _merged(learner, edit, owned(method, learner, edit))
        case Routed(growth="per_task"), "retire":
            return _without(method, learner, edit)
        case Routed(growth="per_task"), "merge":
            return _together(method, learner, edit, owned(method, learner, edit, since))
    raise ConfigError(
        f"{method.name} cannot {edit.kind} experts", where="method",
        why="that needs experts of one task or another: a pool with token routers, or an expert for every task",
    )  # fmt: skip


def even_weights(mode: str, count: int) -> tuple[float, ...]:
    """Weights with which `combine` makes of `count` copies of an expert that expert again."""
    rule = mode.removesuffix("_svd")
    if rule in ("ties", "dare_ties"):
        return (1.0,) * count
    return (1.0 / count,) * count if mode in combine.SVD_MODES else (1.0 / count**2,) * count


def _family(method: Method) -> str:
    return POOL if isinstance(method, Mixture) else FAMILY


def _editable(method: Method, learner: Learner, edit: Edit, since: int | None) -> tuple[Bank, np.ndarray]:
    """The bank, and its rows in which an edit finds the experts that it needs."""
    bank = learner.past[_family(method)]
    owner_LS, least = np.asarray(bank.owner_LS), 1 if edit.expert is None else edit.expert + 1
    needs = [(owner_LS == task).sum(axis=1) >= least for task in (edit.task, edit.into) if task is not None]
    rows = np.flatnonzero(np.all(needs, axis=0))
    if isinstance(method, Routed) and edit.kind == "merge":
        rows = rows[np.isin(rows + bank.first_layer, _apart(method, learner, since))]
    return bank, rows


def _apart(method: Routed, learner: Learner, since: int | None) -> tuple[int, ...]:
    """Decoder layers that kept tasks apart after the first `since` tasks; None for now."""
    bank, memory = learner.past[FAMILY], learner.memory
    if method.chooses and since is not None:
        memory = memory | {"worth": memory["worth"].at[since:].set(0.0)}
    return method.expanded(bank.layers, memory)


def owned(method: Method, learner: Learner, edit: Edit, since: int | None = None) -> np.ndarray:
    """Rows in which an edit finds the experts that it needs; of its layers only, if it names some.

    Raises:
      ConfigError: there is no such row, or a layer is named that is none.
    """
    bank, rows = _editable(method, learner, edit, since)
    try:
        asked = rows if edit.layers is None else rows_of(bank, edit.layers)
    except ValueError as error:
        raise ConfigError("no such layers", where="layers", why=str(error)) from error
    if len(rows) and set(asked) <= set(rows):
        return asked
    tasks = [task for task in (edit.into, edit.task) if task is not None]
    what = "both own" if len(tasks) > 1 else "it owns"
    why = [f"layers in which {what} experts: {_layers(bank, rows)}"]
    if edit.expert is not None:
        why = [f"layers in which it owns an expert number {edit.expert}, counted from 0: {_layers(bank, rows)}"]
    if isinstance(method, Routed) and edit.kind == "merge":
        apart = ", ".join(map(str, _apart(method, learner, since))) or "none"
        why = [f"layers that keep tasks apart: {apart}; the others are fused, a merge already", "among them " + why[0]]
        why += [
            f"number {task} lives in the slot of number {home} in layers {_layers(bank, away)}"
            for (task, home), away in shared_slots.shared(learner.memory).items()
            if task in tasks
        ]
    raise ConfigError(
        "there is no expert to edit", where=f"task {' and '.join(f'number {task}' for task in tasks)}",
        why="; ".join(why),
        remedy="give other tasks or --layers; `hidecmoe inspect RUN` shows who owns what" if len(rows) else
        "`hidecmoe inspect RUN` shows who owns what",
    )  # fmt: skip


def _layers(bank: Bank, rows: np.ndarray) -> str:
    return ", ".join(str(row + bank.first_layer) for row in rows) or "none"


def _retired(learner: Learner, edit: Edit, asked: np.ndarray) -> Learner:
    """Empties the slots of a task in a pool, or one of them, and hides them from every router."""
    bank = learner.past[POOL]
    mine_LS = (np.asarray(bank.owner_LS) == edit.task) & np.isin(np.arange(bank.layers), asked)[:, None]
    if edit.expert is not None:
        mine_LS &= np.cumsum(mine_LS, axis=1) == edit.expert + 1
    rows, slots = np.nonzero(mine_LS)
    memory = dict(learner.memory)
    memory["visible"] = memory["visible"].at[:, rows, slots].set(False)
    memory["routers"] = memory["routers"].at[:, rows, :, slots].set(0.0)
    return learner.replace(past=learner.past | {POOL: clear(bank, rows, slots)}, memory=memory)


def _merged(learner: Learner, edit: Edit, asked: np.ndarray) -> Learner:
    """Merges in every layer a task's experts into those of another task that are most like them."""
    bank, memory = learner.past[POOL], dict(learner.memory)
    owner_LS = np.asarray(bank.owner_LS)
    routers, visible = np.array(memory["routers"]), np.array(memory["visible"])
    for row in asked:
        for slot, others in _pairs(_row(bank, row), owner_LS[row], edit).items():
            bank = _joined(bank, row, (slot, *others), edit)
            _listen(routers[:, row], visible[:, row], (slot, *others))
    memory |= {"routers": jnp.asarray(routers), "visible": jnp.asarray(visible)}
    return learner.replace(past=learner.past | {POOL: bank}, memory=memory)


def _together(method: Routed, learner: Learner, edit: Edit, asked: np.ndarray) -> Learner:
    """Merges the experts of two tasks of a method that has one for every task, where tasks are kept apart."""
    bank = learner.past[FAMILY]
    slot_LN = shared_slots.own_slots(bank)
    for row in asked:
        bank = _joined(bank, row, (int(slot_LN[row, edit.into]), int(slot_LN[row, edit.task])), edit)
    memory = shared_slots.moved(learner.memory, asked, edit.task, edit.into, shape=slot_LN.shape)
    return learner.replace(past={FAMILY: method.fused_again(bank, memory)}, memory=memory)


def _row(bank: Bank, row: int) -> Bank:
    return surgery.cut(bank, bank.first_layer + int(row), bank.first_layer + int(row) + 1)


def _joined(bank: Bank, row: int, sources: tuple[int, ...], edit: Edit) -> Bank:
    """The bank with the experts of these slots of one row made one, in the first of them; the others are empty."""
    made = _combined(_row(bank, row), sources, edit)
    a, b = ({site: leaf[:, :, 0] for site, leaf in made.a.items()}, {s: v[:, 0] for s, v in made.b.items()})
    bank = write(bank, np.array([row]), sources[0], a_LDR=a, b_LRF=b, owner=edit.into)
    others = np.array(sources[1:])
    return clear(bank, np.full(len(others), row), others)


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
    if edit.layers is not None or edit.expert is not None:
        given = "layers" if edit.layers is not None else "expert"
        raise ConfigError(
            f"{method.name} retires whole tasks", where=given,
            why="a task would be located, and then half of its expert missing" if given == "layers" else
            "a task has one expert in every layer; only pools have several", remedy=f"leave --{given} out",
        )  # fmt: skip
    bank = learner.past[FAMILY]
    guests = [task for task, home in shared_slots.shared(learner.memory) if home == edit.task]
    if guests:
        raise ConfigError(
            "others are answered from the expert of this task", where=f"task number {edit.task}",
            why=f"merged into it: {', '.join(f'number {task}' for task in guests)}",
            remedy="take the merge back first (hidecmoe restore RUN), or retire the others first",
        )  # fmt: skip
    if edit.task not in method.learned(learner):
        owned(method, learner, edit)
    if (np.asarray(bank.owner_LS) == edit.task).any():
        bank = surgery.retire(bank, edit.task)
    memory = shared_slots.left(learner.memory, edit.task)
    return learner.replace(past={FAMILY: method.fused_again(bank, memory)}, memory=memory)
