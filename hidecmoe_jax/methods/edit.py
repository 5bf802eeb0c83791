"""Edits of learned experts: a task's experts are retired, or merged into those of another task.

An edit is a small description; `edited` is a pure function from a learner to a learner, so the archive of a run is
never touched and an edit is undone by leaving it out. Merge modes carry the names that PEFT gives them
(`experts.combine`). What an edit changes:

* retire, in a pool (`edit_pool`): the task's slots become EMPTY, and no router reaches them. A task whose router
  reaches no slot at all is not learned any more.
* merge, in a pool: in each layer every expert goes into the most similar expert of the other task. A router that
  reached any of the sources reaches the merged one; its column is the mean of the columns of those that it reached.
* retire, one expert per task (`edit_tasks`): the whole task. Its slot becomes EMPTY, fusions are made anew, and the
  gate masks the task.
* merge, one expert per task: in layers that keep one expert per task the merged expert takes the slot of `into`, the
  other slot becomes EMPTY, and both tasks are served from the former (`shared_slots`). Fused layers stay as they are.
* always: what the gate stores of a task stays in the memory, and a task's share of a merged expert stays in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import numpy as np

from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.experts import combine, surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.slots import clear, rows_of, write
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.methods.capabilities import Editable


@dataclass(frozen=True)
class Edit:
    """One change to the experts of a task.

    Attributes:
      kind: `retire` the experts of `task`, or `merge` them into those of task `into`.
      task, into: numbers of tasks, from 0.
      layers: decoder layers; None for all in which the task (for a merge: both) owns experts to be edited.
      mode, weights, density: as in `combine`. Two weights, of the expert merged into and of every one merged into it;
        empty for `even_weights`.
      seed: draws the numbers that DARE drops.
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
        if self.kind == "merge" and self.into in (None, self.task):
            raise ValueError("a merge needs two tasks")
        if self.mode not in combine.MODES:
            raise ValueError(f"unknown mode {self.mode!r}; {nearest(self.mode, combine.MODES)}")
        if len(self.weights) not in (0, 2):
            raise ValueError(f"give two weights or none, got {len(self.weights)}")
        if self.layers is not None and len(self.layers) == 0:
            raise ValueError("an empty list of layers edits nothing; leave layers out for all")
        if self.expert is not None and (self.kind != "retire" or self.expert < 0):
            raise ValueError(f"expert {self.expert}: one of a task's experts is retired by its number, from 0")

    @property
    def tasks(self) -> tuple[int, ...]:
        """The tasks whose experts it needs: the one merged into first."""
        if self.into is None:
            return (self.task,)
        return (self.into, self.task)


def narrowed(method: Method, learner: Learner, edit: Edit, since: int | None = None) -> Edit | None:
    """The edit in those of its layers in which a learner has something to edit; None where it has nothing.

    Seeds of a run may have grown experts in different layers, and one edit is for all of them.

    Args:
      since: as in `edited`.
    """
    if not isinstance(method, Editable):
        return edit  # unchanged, so that `edited` refuses it with its own error
    return method.narrow_edit(learner, edit, since)


def edited(method: Method, learner: Learner, edit: Edit, since: int | None = None) -> Learner:
    """The learner after an edit; every slot that is not named keeps its bytes.

    Args:
      since: how many tasks were learned when the edit was made; None for all that the learner has.

    Raises:
      ConfigError: the method cannot be edited so, or the task owns no expert in the layers.
    """
    if not isinstance(method, Editable):
        raise not_editable(method, edit)
    return method.apply_edit(learner, edit, since)


def not_editable(method: Method, edit: Edit) -> ConfigError:
    """The error for a method whose experts belong to no task."""
    return ConfigError(
        f"{method.name} cannot {edit.kind} experts", where="method",
        why="that needs experts of one task or another: a pool with token routers, or an expert for every task",
        remedy="edit a run of pocket/hide, pocket/cmoe or another method that keeps tasks apart",
    )  # fmt: skip


def even_weights(mode: str, count: int) -> tuple[float, ...]:
    """Weights with which `combine` merges `count` copies of an expert into that same expert."""
    rule = mode.removesuffix("_svd")
    if rule in ("ties", "dare_ties"):
        return (1.0,) * count  # these rules take a mean
    if mode in combine.SVD_MODES:
        return (1.0 / count,) * count
    # Factor modes weigh both factors by the root: `count` copies of 1 / count add up to 1 in each.
    return (1.0 / count**2,) * count


def rows_with_experts(bank: Bank, edit: Edit) -> np.ndarray:
    """Rows of the bank in which every task of the edit owns as many experts as the edit needs."""
    owner_LS = np.asarray(bank.owner_LS)
    # Experts are numbered from 0.
    needed = 1 if edit.expert is None else edit.expert + 1
    owns_enough = []
    for task in edit.tasks:
        experts_L = (owner_LS == task).sum(axis=1)
        owns_enough.append(experts_L >= needed)
    all_own_enough_L = np.all(owns_enough, axis=0)
    return np.flatnonzero(all_own_enough_L)


def in_layers(bank: Bank, rows: np.ndarray, edit: Edit) -> Edit | None:
    """The edit restricted to those of its layers that are among `rows`; None where none is."""
    editable = {int(row) + bank.first_layer for row in rows}
    if edit.layers is None:
        return edit if editable else None
    layers = tuple(layer for layer in edit.layers if layer in editable)
    return replace(edit, layers=layers) if layers else None


def requested_rows(bank: Bank, rows: np.ndarray, edit: Edit, *, reasons: tuple[str, ...] = ()) -> np.ndarray:
    """Rows of the layers that the edit names, or all of `rows` where it names none.

    Args:
      rows: rows in which it can be made.
      reasons: further causes of there being no more of them, for the error.

    Raises:
      ConfigError: it can be made in no row, or a layer is named in which it cannot be made.
    """
    requested = rows
    if edit.layers is not None:
        try:
            requested = rows_of(bank, edit.layers)
        except ValueError as error:
            raise ConfigError("no such layers", where="layers", why=str(error)) from error
    is_possible = set(requested) <= set(rows)
    if len(rows) and is_possible:
        return requested
    owns = "both own" if len(edit.tasks) > 1 else "it owns"
    experts = f"{owns} experts"
    if edit.expert is not None:
        experts = f"it owns an expert number {edit.expert}, counted from 0"
    causes = [f"layers in which {experts}: {layer_list(bank, rows)}"]
    if reasons:
        # The first reason, then the layers that are left, then the causes of there being no more.
        first, *further = reasons
        causes = [first, f"among them {causes[0]}", *further]
    show = "`hidecmoe inspect RUN` shows who owns what"
    numbers = [f"number {task}" for task in edit.tasks]
    raise ConfigError(
        "there is no expert to edit",
        where=f"task {' and '.join(numbers)}",
        why="; ".join(causes),
        remedy=f"give other tasks or --layers; {show}" if len(rows) else show,
    )


def layer_list(bank: Bank, rows: np.ndarray) -> str:
    """The decoder layers of some rows of a bank, for messages."""
    layers = [str(row + bank.first_layer) for row in rows]
    return ", ".join(layers) or "none"


def one_row(bank: Bank, row: int) -> Bank:
    """One row of a bank as a bank of one layer."""
    layer = bank.first_layer + int(row)
    return surgery.cut(bank, layer, layer + 1)


def merge_slots(bank: Bank, row: int, sources: tuple[int, ...], edit: Edit) -> Bank:
    """The bank with the experts of these slots of one row merged into the first of them; the others become EMPTY."""
    target, *others = sources
    layer = one_row(bank, row)
    merged = _combined(layer, sources, edit)
    # The merged expert is in the only slot of its bank.
    a_LDR = {site: a_LD1R[:, :, 0] for site, a_LD1R in merged.a.items()}
    b_LRF = {site: b_L1RF[:, 0] for site, b_L1RF in merged.b.items()}
    rows = np.array([row])
    bank = write(bank, rows, target, a_LDR=a_LDR, b_LRF=b_LRF, owner=edit.into)
    emptied = np.array(others)
    rows_of_emptied = np.full(len(emptied), row)
    return clear(bank, rows_of_emptied, emptied)


def _combined(layer: Bank, sources: tuple[int, ...], edit: Edit) -> Bank:
    """The experts in these slots of a bank of one layer, merged into a bank of one slot.

    Raises:
      ConfigError: as `combine`.
    """
    weights = even_weights(edit.mode, len(sources))
    if edit.weights:
        into, other = edit.weights
        merged = len(sources) - 1  # every source but the first, which is merged into
        weights = (into, *(other,) * merged)
    key = jax.random.key(edit.seed)
    try:
        return combine.combine(layer, sources, mode=edit.mode, weights=weights, density=edit.density, key=key)
    except ValueError as error:
        raise ConfigError("these experts cannot be merged so", where="merge", why=str(error)) from error
