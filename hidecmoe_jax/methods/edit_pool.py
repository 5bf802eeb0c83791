"""Edits of a pool of experts that token routers choose from (`edit` lists what they change)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.combine import closeness
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.slots import clear
from hidecmoe_jax.methods.edit import Edit, in_layers, merge_slots, one_row, requested_rows, rows_with_experts
from hidecmoe_jax.methods.gates.unknown import with_retired

if TYPE_CHECKING:
    from hidecmoe_jax.methods.base import Learner


def narrowed(learner: Learner, edit: Edit) -> Edit | None:
    """The edit in those of its layers in which the pool has experts for it; None where it has none."""
    bank = learner.past[POOL]
    rows = rows_with_experts(bank, edit)
    return in_layers(bank, rows, edit)


def edited(learner: Learner, edit: Edit) -> Learner:
    """The learner after an edit of its pool.

    Raises:
      ConfigError: as `requested_rows`.
    """
    bank = learner.past[POOL]
    possible_rows = rows_with_experts(bank, edit)
    rows = requested_rows(bank, possible_rows, edit)
    if edit.kind == "retire":
        return _retired(learner, edit, rows)
    return _merged(learner, edit, rows)


def _retired(learner: Learner, edit: Edit, rows: np.ndarray) -> Learner:
    """Empties the slots of a task, or one of them, and hides them from every router."""
    bank = learner.past[POOL]
    owner_LS = np.asarray(bank.owner_LS)
    all_rows = np.arange(bank.layers)
    in_rows_L1 = np.isin(all_rows, rows)[:, None]
    retired_LS = (owner_LS == edit.task) & in_rows_L1
    if edit.expert is not None:
        # At a task's slots the running count is the number of that expert in its layer, from 1.
        number_LS = np.cumsum(retired_LS, axis=1)
        retired_LS &= number_LS == edit.expert + 1
    layers, slots = np.nonzero(retired_LS)
    memory = learner.memory
    # All tasks' routers: a later task's may reach the slot as well.
    visible = memory.visible.at[:, layers, slots].set(False)
    routers = memory.routers.at[:, layers, :, slots].set(0.0)
    always = memory.always
    if always is not None:
        always = always.at[:, layers, slots].set(False)
    memory = memory.replace(visible=visible, routers=routers, always=always)
    # A task whose router reaches no expert any more is retired as a whole.
    if memory.gate and not np.asarray(visible[edit.task]).any():
        gate = with_retired(memory.gate, edit.task, len(visible))
        memory = memory.replace(gate=gate)
    emptied = clear(bank, layers, slots)
    past = learner.past | {POOL: emptied}
    return learner.replace(past=past, memory=memory)


def _merged(learner: Learner, edit: Edit, rows: np.ndarray) -> Learner:
    """Merges in every layer a task's experts into those of another task that are most like them."""
    bank = learner.past[POOL]
    memory = learner.memory
    owner_LS = np.asarray(bank.owner_LS)
    router_NLDS = np.array(memory.routers)
    visible_NLS = np.array(memory.visible)
    always_NLS = None if memory.always is None else np.array(memory.always)
    for row in rows:
        layer = one_row(bank, row)
        targets = _most_similar(layer, owner_LS[row], edit)
        # Basic slices are views: what is written to them is in both arrays.
        router_NDS = router_NLDS[:, row]
        visible_NS = visible_NLS[:, row]
        for target, merged_slots in targets.items():
            sources = (target, *merged_slots)
            bank = merge_slots(bank, row, sources, edit)
            always_NS = None if always_NLS is None else always_NLS[:, row]
            _merge_columns(router_NDS, visible_NS, sources, always_NS)
    memory = memory.replace(
        routers=jnp.asarray(router_NLDS),
        visible=jnp.asarray(visible_NLS),
        always=None if always_NLS is None else jnp.asarray(always_NLS),
    )
    past = learner.past | {POOL: bank}
    return learner.replace(past=past, memory=memory)


def _most_similar(layer: Bank, owner_S: np.ndarray, edit: Edit) -> dict[int, list[int]]:
    """For slots of `edit.into` in one layer, the slots of `edit.task` that are merged into them: those whose update has
    the largest cosine with theirs; of equals the first."""
    targets = np.flatnonzero(owner_S == edit.into).tolist()
    slots = np.flatnonzero(owner_S == edit.task).tolist()
    by_target: dict[int, list[int]] = {}
    for slot in slots:
        cosines = [closeness(layer, target, slot)[0] for target in targets]
        # An update that is zero has no cosine (NaN): it comes after every other.
        comparable = np.nan_to_num(cosines, nan=-2.0)
        nearest = int(np.argmax(comparable))
        merged_slots = by_target.setdefault(targets[nearest], [])
        merged_slots.append(slot)
    return by_target


def _merge_columns(
    router_NDS: np.ndarray, visible_NS: np.ndarray, sources: tuple[int, ...], always_NS: np.ndarray | None
) -> None:
    """One layer's routers and masks after a merge into the first of `sources`, in place. What one of them was to a task
    that is on for its every token, the merged expert is."""
    slots = list(sources)
    merged_slot = slots[0]
    reaches_any_N = visible_NS[:, slots].any(axis=1)
    for task in np.flatnonzero(reaches_any_N):
        visible = [slot for slot in slots if visible_NS[task, slot]]
        router_DS = router_NDS[task]
        # Read before the columns are cleared.
        column_D = router_DS[:, visible].mean(axis=1)
        router_DS[:, slots] = 0.0
        visible_NS[task, slots] = False
        router_DS[:, merged_slot] = column_D
        visible_NS[task, merged_slot] = True
        if always_NS is not None:
            always_NS[task, merged_slot] = always_NS[task, slots].any()
            always_NS[task, slots[1:]] = False
            if always_NS[task, merged_slot]:
                router_DS[:, merged_slot] = 0.0
