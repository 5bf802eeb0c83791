"""Which experts of a lesson came to nothing: their update is zero after training, or no token chose them (TR7).

Who was chosen is read from the training curve, so it costs nothing, and a lesson that was interrupted tells the same as
one that was not. Only the second half of the steps counts: whom a young router tries out says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hidecmoe_jax.experts.bank import EMPTY
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.usage import dead, loudness
from hidecmoe_jax.methods.base import Learner, Method


def experts_of(method: Method, learner: Learner, number: int, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The experts that lesson `number` has just planted, as facts for the ledger.

    Args:
      learner: after the lesson.
      lines: the training curve; lines of other lessons are passed over.

    Returns:
      By family of experts: `norm` of the update and, where tokens choose, the number that `chose` each expert, by layer
      and expert (None where a layer has none), and `dead` as [layer, expert, why].
    """
    trained = [stage.kind for stage in method.stages(number) if stage.trains]
    own = [line for line in lines if line["at"][0] == number and line["stage"] == trained[-1]] if trained else []
    loads = [line["load"] for line in own[len(own) // 2 :] if "load" in line]
    found = {}
    for family, bank in learner.past.items():
        owner_LS = np.asarray(bank.owner_LS)
        mine_LS = owner_LS == number if method.traits.keeps_old_experts else owner_LS != EMPTY
        slots = np.flatnonzero(mine_LS.any(axis=0))
        if not len(slots):
            continue
        mine_LE = mine_LS[:, slots]
        norm_LE = np.where(mine_LE, loudness(bank)[:, slots], np.nan)
        # Experts that train stand behind all places for old ones; what one method trains is the bank itself.
        start = bank.slots if method.traits.keeps_old_experts else 0
        chosen = loads and family == (POOL if POOL in learner.past else family)  # beside a pool nothing else is chosen
        chose_LE = np.asarray(loads, np.int64)[:, :, start : start + len(slots)].sum(axis=0) if chosen else None
        idle = [[layer + bank.first_layer, expert, why] for layer, expert, why in dead(norm_LE, chose_LE)]
        found[family] = {"norm": _told(norm_LE.round(6), mine_LE), "dead": idle}
        if chose_LE is not None:
            found[family]["chose"] = _told(chose_LE, mine_LE)
    return found


def sentence(experts: dict[str, Any]) -> str:
    """The dead experts among the facts of a lesson in words; empty where all are alive."""
    idle = [one for family in experts.values() for one in family["dead"]]
    shown = ", ".join(f"layer {layer} expert {expert} ({why})" for layer, expert, why in idle[:8])
    return f"{len(idle)} dead experts: {shown}{', ...' if len(idle) > 8 else ''}" if idle else ""


def _told(values_LE: np.ndarray, there_LE: np.ndarray) -> list[list[float | int | None]]:
    rows = zip(values_LE.tolist(), there_LE, strict=True)
    return [[value if there else None for value, there in zip(*row, strict=True)] for row in rows]
