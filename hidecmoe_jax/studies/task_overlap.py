"""Which tasks of a run overlap: inputs that the gate mixes up, and experts that do nearly the same (RT8).

The share of inputs mixed up needs no prototypes, so it means the same for every gate: of held-out inputs of two tasks,
those that score nearer to the other one. Prototypes that are almost equal give 50 %, tasks that are never confused 0.
Experts are compared by the cosine of their updates, in layers where both tasks own some.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.combine import closeness
from hidecmoe_jax.methods.base import Learner
from hidecmoe_jax.methods.capabilities import Editable
from hidecmoe_jax.methods.edit import Edit, narrowed
from hidecmoe_jax.runs.finished import open_with_data
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.studies.edit_trial import held_out


def overlap(
    run: str | Path, *, count: int | None = None, mixed: float = 25.0, alike: float = 0.9
) -> list[dict[str, Any]]:
    """Writes `overlap.json` into the run folder and returns its pairs, the most mixed up first.

    Args:
      count: held-out inputs of every task; None for all.
      mixed, alike: percent of inputs mixed up, and cosine of experts, from which on a command is suggested.

    Returns:
      For every pair `tasks`, `mixed` (percent, None where the gate must be told the task), `cosine` (of the most alike
      experts, the mean over the layers in which both own some; None where there is none), `suggestion` (a command or
      None).

    Raises:
      ConfigError: the run has fewer than two tasks with experts of their own.
    """
    finished = open_with_data(run)
    folder, session, method = finished.folder.path, finished.session, finished.config.method
    kept = finished.ledger().archive()
    if len(kept) < 2 or not isinstance(method, Editable) or not method.traits.keeps_old_experts:
        raise ConfigError(
            "there are no two tasks to compare", where=str(folder),
            why=f"{method.name} has learned {len(kept)} lessons", remedy="give a run with experts for every task",
        )  # fmt: skip
    learner = finished.learner(kept)
    learned, merged = method.learned(learner), {task for task, _ in method.redirects(learner)}
    room = finished.config.slots_for(len(finished.tasks))
    told = None if method.traits.needs_task_name else _mixed(session, learner, learned, room, count=count)
    pairs = []
    for one, other in combinations(learned, 2):
        names = [session.stream.tasks[task].name for task in (one, other)]
        closest = [_alike(bank, one, other) for bank in learner.past.values()]
        cosine = max((found for found in closest if found is not None), default=None)
        share = None if told is None else told[one, other]
        near = (share is not None and share >= mixed) or (cosine is not None and cosine >= alike)
        command = None
        if near and narrowed(method, learner, Edit("merge", other, into=one)) is not None:
            command = f"hidecmoe merge {folder} {' '.join(names)}"
        elif near and cosine is not None and not merged & {one, other}:
            command = f"hidecmoe retire {folder} {names[1]}"
        pairs.append({"tasks": names, "mixed": share, "cosine": cosine, "near": near, "suggestion": command})
    pairs.sort(key=lambda pair: (-(pair["mixed"] or 0.0), -(pair["cosine"] or 0.0)))
    write_json(finished.folder.study("overlap"), {"mixed": mixed, "alike": alike, "pairs": pairs})
    return pairs


def _mixed(
    session: Session, learner: Learner, learned: tuple[int, ...], room: int, *, count: int | None
) -> dict[tuple[int, int], float]:
    """`mixed_up` of the held-out inputs of all learned tasks."""
    method, memory, tables = session.config.method, session.config.method.gate_memory(learner), {}
    learned_N = jnp.isin(jnp.arange(room), jnp.asarray(learned))
    for task in learned:
        seen = session.engine.inputs(*held_out(session.stream.tasks[task], count)).frozen()
        tables[task] = np.asarray(jax.jit(method.gate.scores)(memory, seen, learned_N))
    return mixed_up(tables)


def mixed_up(tables: dict[int, np.ndarray]) -> dict[tuple[int, int], float]:
    """Percent of the inputs of every two tasks that score nearer to the other one; equally near counts half.

    Args:
      tables: scores [M, N] of every task's own inputs, by task.
    """
    found = {}
    for one, other in combinations(tables, 2):
        ahead = [tables[task][:, rival] - tables[task][:, task] for task, rival in ((one, other), (other, one))]
        found[one, other] = round(50.0 * float(1.0 + np.sign(np.concatenate(ahead)).mean()), 2)
    return found


def _alike(bank: Bank, one: int, other: int) -> float | None:
    """Cosine of the most alike experts of two tasks, the mean over layers in which both own some."""
    owner_LS = np.asarray(bank.owner_LS)
    best_L = np.full(bank.layers, -np.inf)
    for mine in np.flatnonzero((owner_LS == one).any(axis=0)):
        for theirs in np.flatnonzero((owner_LS == other).any(axis=0)):
            both_L = (owner_LS[:, mine] == one) & (owner_LS[:, theirs] == other)
            cosine_L = np.nan_to_num(closeness(bank, int(mine), int(theirs)), nan=-np.inf)
            best_L = np.where(both_L, np.maximum(best_L, cosine_L), best_L)
    there = np.isfinite(best_L)
    return round(float(best_L[there].mean()), 4) if there.any() else None
