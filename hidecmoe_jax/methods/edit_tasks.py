"""Edits of a method with one expert per task (`edit` lists what they change)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.methods import shared_slots
from hidecmoe_jax.methods.edit import (
    Edit,
    in_layers,
    layer_list,
    merge_slots,
    not_editable,
    requested_rows,
    rows_with_experts,
)
from hidecmoe_jax.methods.gates.unknown import with_retired

if TYPE_CHECKING:
    from hidecmoe_jax.methods.base import Learner
    from hidecmoe_jax.methods.routed import Routed


def narrowed(method: Routed, learner: Learner, edit: Edit, since: int | None) -> Edit | None:
    """The edit in those of its layers in which there is something to edit; None where there is nothing.

    A task is retired whole, so the layers of a retirement are not looked at.
    """
    bank = method.lora_bank(learner)
    if bank is None:
        return edit
    if edit.kind == "retire":
        is_learned = edit.task in method.learned(learner)
        return edit if is_learned else None
    rows = _mergeable_rows(method, learner, bank, edit, since)
    return in_layers(bank, rows, edit)


def edited(method: Routed, learner: Learner, edit: Edit, since: int | None) -> Learner:
    """The learner after an edit.

    Args:
      since: how many tasks were learned when the edit was made; None for all that the learner has.

    Raises:
      ConfigError: all tasks share one expert, or the edit cannot be made.
    """
    if not method.gated:
        raise not_editable(method, edit)
    if edit.kind == "retire":
        return _retired(method, learner, edit)
    return _merged(method, learner, edit, since)


def _separate_layers(method: Routed, learner: Learner, bank: Bank, since: int | None) -> tuple[int, ...]:
    """Decoder layers that kept one expert per task after the first `since` tasks; None for now."""
    memory = learner.memory
    if method.chooses and since is not None:
        # Layers are chosen from the mean over tasks: later tasks had not contributed yet.
        worth_then_NL = memory.worth.at[since:].set(0.0)
        memory = memory.replace(worth=worth_then_NL)
    return method.expanded(bank.layers, memory)


def _mergeable_rows(method: Routed, learner: Learner, bank: Bank, edit: Edit, since: int | None) -> np.ndarray:
    """Rows in which both tasks own an expert and are kept apart."""
    rows = rows_with_experts(bank, edit)
    separate = _separate_layers(method, learner, bank, since)
    is_separate_R = np.isin(rows + bank.first_layer, separate)
    return rows[is_separate_R]


def _merged(method: Routed, learner: Learner, edit: Edit, since: int | None) -> Learner:
    """Merges the experts of two tasks in the layers that keep tasks apart."""
    bank = method.lora_bank(learner)
    memory = learner.memory
    rows = _mergeable_rows(method, learner, bank, edit, since)
    separate_layers = _separate_layers(method, learner, bank, since)
    separate = ", ".join(map(str, separate_layers)) or "none"
    reasons = [f"layers that keep tasks apart: {separate}; the others are fused, a merge already"]
    redirects = shared_slots.redirected(memory.home)
    for (task, home), shared_rows in redirects.items():
        if task in edit.tasks:
            layers = layer_list(bank, shared_rows)
            reasons.append(f"number {task} is served from the slot of number {home} in layers {layers}")
    slot_LN = shared_slots.own_slots(bank)
    requested = requested_rows(bank, rows, edit, reasons=tuple(reasons))
    for row in requested:
        target_slot = int(slot_LN[row, edit.into])
        merged_slot = int(slot_LN[row, edit.task])
        # The first source is the slot that the merged expert takes.
        bank = merge_slots(bank, row, (target_slot, merged_slot), edit)
    home_LN = shared_slots.redirect(memory.home, requested, edit.task, edit.into, shape=slot_LN.shape)
    memory = memory.replace(home=home_LN)
    return method.with_bank(learner, bank, memory)


def _retired(method: Routed, learner: Learner, edit: Edit) -> Learner:
    """Retires a whole task."""
    _require_whole_task(method, learner, edit)
    bank = method.lora_bank(learner)
    if edit.task not in method.learned(learner):
        rows = rows_with_experts(bank, edit)
        requested_rows(bank, rows, edit)  # raises: the task owns nothing
    is_owned_LS = np.asarray(bank.owner_LS) == edit.task
    # A task that was merged in every layer owns nothing; only its redirects go.
    if is_owned_LS.any():
        bank = surgery.retire(bank, edit.task)
    memory = learner.memory
    home_LN = shared_slots.clear_redirects(memory.home, edit.task)
    memory = memory.replace(home=home_LN)
    if memory.gate:
        # One slot more than tasks: slot 0 holds the fusion.
        gate = with_retired(memory.gate, edit.task, bank.slots - 1)
        memory = memory.replace(gate=gate)
    return method.with_bank(learner, bank, memory)


def _require_whole_task(method: Routed, learner: Learner, edit: Edit) -> None:
    """Refuses to retire a part of a task, and a task whose expert serves others."""
    if edit.layers is not None or edit.expert is not None:
        field = "layers" if edit.layers is not None else "expert"
        why = "a task has one expert in every layer; only pools have several"
        if field == "layers":
            why = "inputs would be routed to a task that lacks a part of its expert"
        raise ConfigError(f"{method.name} retires whole tasks", where=field, why=why, remedy=f"leave --{field} out")
    redirects = shared_slots.redirected(learner.memory.home)
    guests = [f"number {task}" for task, home in redirects if home == edit.task]
    if guests:
        raise ConfigError(
            "other tasks are served from the expert of this task", where=f"task number {edit.task}",
            why=f"merged into it: {', '.join(guests)}",
            remedy="take the merge back first (hidecmoe restore RUN), or retire the others first",
        )  # fmt: skip
