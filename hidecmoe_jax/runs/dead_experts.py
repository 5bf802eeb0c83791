"""Dead experts of a lesson: their update is zero after training, or no token chose them.

Which experts were chosen is read from the training curve, so it costs nothing, and an interrupted lesson gives the same
result as one that was not. Only the second half of the steps counts: an untrained router tries experts at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hidecmoe_jax.experts.bank import EMPTY
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.usage import dead_experts, update_norms
from hidecmoe_jax.methods.base import Learner, Method

SHOWN = 8  # dead experts that a message names


def experts_of(method: Method, learner: Learner, number: int, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The experts that lesson `number` has just added, as facts for the ledger.

    Args:
      learner: after the lesson.
      lines: the training curve; lines of other lessons are passed over.

    Returns:
      By family of experts: `norm` of the update and, where tokens choose, the number that `chose` each expert, by layer
      and expert (None where a layer has none), and `dead` as [layer, expert, why].
    """
    counts = _late_loads(method, number, lines)
    isolated = method.traits.keeps_old_experts
    # Beside a pool only its own experts are chosen by tokens.
    routed_families = {POOL} if POOL in learner.past else set(learner.past)
    facts = {}
    for family, bank in learner.past.items():
        owner_LS = np.asarray(bank.owner_LS)
        mine_LS = owner_LS == number if isolated else owner_LS != EMPTY
        slots = np.flatnonzero(mine_LS.any(axis=0))
        if not len(slots):
            continue
        mine_LE = mine_LS[:, slots]
        norms_LE = update_norms(bank)[:, slots]
        # NaN where the layer lacks the expert: what is not there is not dead.
        norm_LE = np.where(mine_LE, norms_LE, np.nan)
        chose_LE = None
        if counts and family in routed_families:
            # Experts in training are counted behind all slots of old ones; what one method trains is the bank itself.
            start = bank.slots if isolated else 0
            end = start + len(slots)
            counts_NLS = np.asarray(counts, np.int64)
            chose_LE = counts_NLS[:, :, start:end].sum(axis=0)
        idle = []
        for row, expert, why in dead_experts(norm_LE, chose_LE):
            layer = row + bank.first_layer
            idle.append([layer, expert, why])
        norms = _table(norm_LE.round(6), mine_LE)
        facts[family] = {"norm": norms, "dead": idle}
        if chose_LE is not None:
            facts[family]["chose"] = _table(chose_LE, mine_LE)
    return facts


def _late_loads(method: Method, number: int, lines: Sequence[dict[str, Any]]) -> list[Any]:
    """Token counts by layer and slot of the second half of a lesson's last training stage."""
    # A probe trains on a part of the records, before the lesson's own experts or after them.
    trained = [stage.kind for stage in method.stages(number) if stage.trains and stage.subset_name == "all"]
    if not trained:
        return []
    last_kind = trained[-1]
    steps = []
    for line in lines:
        lesson = line["at"][0]
        if lesson == number and line["stage"] == last_kind:
            steps.append(line)
    late = steps[len(steps) // 2 :]
    return [line["load"] for line in late if "load" in line]


def sentence(experts: dict[str, Any]) -> str:
    """The dead experts among the facts of a lesson in words; empty where there are none."""
    idle = []
    for family in experts.values():
        idle += family["dead"]
    if not idle:
        return ""
    shown = []
    for layer, expert, why in idle[:SHOWN]:
        shown.append(f"layer {layer} expert {expert} ({why})")
    if len(idle) > SHOWN:
        shown.append("...")
    named = ", ".join(shown)
    return f"{len(idle)} dead experts: {named}"


def _table(values_LE: np.ndarray, present_LE: np.ndarray) -> list[list[float | int | None]]:
    """Values as plain numbers, None where a layer lacks the expert."""
    objects_LE = values_LE.astype(object)
    return np.where(present_LE, objects_LE, None).tolist()


def cut_sentence(facts: Mapping[str, Any]) -> str:
    """The routing texts of a lesson that were longer than the text tower reads; empty where none was."""
    cut = facts.get("routing_texts_cut")
    return f"{cut} of {facts['samples']} routing texts were cut at the end of what the text tower reads" if cut else ""
