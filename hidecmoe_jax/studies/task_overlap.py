"""Overlapping tasks of a run: tasks whose inputs the gate confuses, and tasks whose experts do nearly the same.

Confusion is the share of held-out inputs of two tasks that score nearer to the other one. It needs no threshold, so it
means the same for every gate: 50 % for tasks that cannot be told apart, 0 for tasks that are never confused. Experts
are compared by the cosine of their updates, in layers where both tasks own some.
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
from hidecmoe_jax.runs.finished import RunWithData, open_with_data
from hidecmoe_jax.runs.writing import writes_run
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.studies.edit_trial import held_out


@writes_run
def overlap(
    run: str | Path,
    *,
    count: int | None = None,
    mixed: float = 25.0,
    alike: float = 0.9,
) -> list[dict[str, Any]]:
    """Writes `overlap.json` into the run folder and returns its pairs, the most confused first.

    Args:
      count: held-out inputs of every task; None for all.
      mixed, alike: percent of confused inputs, and cosine of experts, from which on a command is suggested.

    Returns:
      For every pair `tasks`, `mixed` (percent of confused inputs, None where the gate needs the task's name), `cosine`
      (of the most similar experts, the mean over the layers in which both own some; None where there is none), `near`
      (either limit is reached), `suggestion` (a command or None).

    Raises:
      ConfigError: the run has fewer than two tasks with experts of their own.
    """
    finished = open_with_data(run)
    method = finished.config.method
    archive = finished.ledger().archive()
    has_experts = isinstance(method, Editable) and method.traits.keeps_old_experts
    if len(archive) < 2 or not has_experts:
        raise ConfigError(
            "there are no two tasks to compare", where=str(run),
            why=f"{method.name} has learned {len(archive)} lessons", remedy="give a run with experts for every task",
        )  # fmt: skip
    learner = finished.learner(archive)
    learned = method.learned(learner)
    confused = {}
    # A gate that is given the task's name confuses nothing.
    if not method.traits.needs_task_name:
        confused = _confused(finished, learner, learned, count)
    pairs = []
    for i, j in combinations(learned, 2):
        share = confused.get((i, j))
        cosine = _closest(learner, i, j)
        near = _reaches(share, mixed) or _reaches(cosine, alike)
        suggestion = None
        if near:
            suggestion = _suggestion(finished, learner, i, j, own_experts=cosine is not None)
        names = [finished.tasks[i], finished.tasks[j]]
        pair = {"tasks": names, "mixed": share, "cosine": cosine, "near": near, "suggestion": suggestion}
        pairs.append(pair)
    pairs.sort(key=_descending)
    write_json(finished.folder.study("overlap"), {"mixed": mixed, "alike": alike, "pairs": pairs})
    return pairs


def _descending(pair: dict[str, Any]) -> tuple[float, float]:
    """Sort key: the most confused pair first, of equally confused ones the one with the most similar experts."""
    mixed = pair["mixed"] or 0.0
    cosine = pair["cosine"] or 0.0
    return -mixed, -cosine


def _reaches(value: float | None, limit: float) -> bool:
    return value is not None and value >= limit


def _suggestion(run: RunWithData, learner: Learner, i: int, j: int, *, own_experts: bool) -> str | None:
    """The command to try for two tasks that are near: merge where possible, otherwise retire the second."""
    folder = run.folder.path
    method = run.config.method
    first = run.tasks[i]
    second = run.tasks[j]
    edit = Edit("merge", j, into=i)
    if narrowed(method, learner, edit) is not None:
        return f"hidecmoe merge {folder} {first} {second}"
    # A task that was merged before has no expert of its own to retire.
    merged = {task for task, _ in method.redirects(learner)}
    if own_experts and merged.isdisjoint((i, j)):
        return f"hidecmoe retire {folder} {second}"
    return None


def _confused(
    run: RunWithData,
    learner: Learner,
    learned: tuple[int, ...],
    count: int | None,
) -> dict[tuple[int, int], float]:
    """`mixed_up` of the held-out inputs of all learned tasks."""
    method = run.config.method
    memory = method.gate_memory(learner)
    slots = run.config.slots_for(len(run.tasks))
    learned_tasks = jnp.asarray(learned)
    learned_N = jnp.isin(jnp.arange(slots), learned_tasks)
    scores_of = jax.jit(method.gate.scores)
    scores = {}
    for task in learned:
        records, label = held_out(run.session.stream.tasks[task], count)
        inputs = run.session.engine.inputs(records, label)
        scores_MN = scores_of(memory, inputs.frozen(), learned_N)
        scores[task] = np.asarray(scores_MN)
    return mixed_up(scores)


def mixed_up(scores: dict[int, np.ndarray]) -> dict[tuple[int, int], float]:
    """Percent of the inputs of every two tasks that score nearer to the other one; equally near counts half.

    Args:
      scores: scores [M, N] of every task's own inputs, by task.
    """
    shares = {}
    for i, j in combinations(scores, 2):
        scores_i = scores[i]
        scores_j = scores[j]
        lead_i = scores_i[:, j] - scores_i[:, i]
        lead_j = scores_j[:, i] - scores_j[:, j]
        # The sign is 1 for nearer to the other task, 0 for equally near, -1 for nearer to its own.
        leads = np.concatenate([lead_i, lead_j])
        signs = np.sign(leads)
        doubled_share = float(1.0 + signs.mean())
        percent = 50.0 * doubled_share
        shares[i, j] = round(percent, 2)
    return shares


def _closest(learner: Learner, i: int, j: int) -> float | None:
    """Cosine of the most similar experts of two tasks over all banks; None where they own none in a common layer."""
    cosines = []
    for bank in learner.past.values():
        cosine = _closest_in_bank(bank, i, j)
        if cosine is not None:
            cosines.append(cosine)
    return max(cosines, default=None)


def _closest_in_bank(bank: Bank, i: int, j: int) -> float | None:
    """Cosine of the most similar experts of two tasks, the mean over layers in which both own some."""
    owner_LS = np.asarray(bank.owner_LS)
    is_of_i_LS = owner_LS == i
    is_of_j_LS = owner_LS == j
    best_L = np.full(bank.layers, -np.inf)
    slots_i = np.flatnonzero(is_of_i_LS.any(axis=0))
    slots_j = np.flatnonzero(is_of_j_LS.any(axis=0))
    for slot_i in slots_i:
        for slot_j in slots_j:
            # A slot may have another owner in each layer.
            both_L = is_of_i_LS[:, slot_i] & is_of_j_LS[:, slot_j]
            cosine_L = closeness(bank, int(slot_i), int(slot_j))
            cosine_L = np.nan_to_num(cosine_L, nan=-np.inf)
            larger_L = np.maximum(best_L, cosine_L)
            best_L = np.where(both_L, larger_L, best_L)
    compared_L = np.isfinite(best_L)
    if not compared_L.any():
        return None
    mean = float(best_L[compared_L].mean())
    return round(mean, 4)
