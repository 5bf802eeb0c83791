"""The answer to one task as a single LoRA, or as the base with everything of that task merged into it.

An input of a known task is answered with the constant experts (HiDe's fused layers, or an expert that all tasks share)
and, in the expanded layers, with that task's own. For one task this is a linear map added to every kernel, and so one
LoRA: active slots are concatenated in its rank, which is exact for any sum of products, and a fusion by `factor_sum` is
a single slot already. An expert that every token chooses for itself is no such map, and is refused by name.
"""

from __future__ import annotations

import numpy as np

from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.methods.base import with_experts_folded, with_leaves
from hidecmoe_jax.methods.capabilities import AsLora
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.port.adapters.peft import LoraWeights
from hidecmoe_jax.runs.finished import LoadedRun


def require_linear(run: LoadedRun, form: str) -> AsLora:
    """The run's method, checked to have LoRA experts on linears that are the same for every token of a task.

    Args:
      form: the requested form, for the error.

    Raises:
      ConfigError: the method routes tokens, or has no experts; names the form to use instead.
    """
    method = run.config.method
    if not isinstance(method, AsLora):
        raise ConfigError(
            f"the experts of {method.name!r} cannot be written as {form}",
            where=f"method {method.name!r}",
            why=f"{method.describe_experts()}; this form holds one LoRA on linears, the same for every token",
            remedy="use --to hub, which keeps experts and routers; answer with `hidecmoe ask` or `hidecmoe eval`",
        )
    has_bank = method.lora_bank(run.learner) is not None
    if not has_bank or not method.learned(run.learner):
        raise ConfigError(
            f"there is no expert to write as {form}",
            where=f"method {method.name!r}",
            why="nothing was learned: it answers with the base model alone",
            remedy="use --to hf-base",
        )
    return method


def names_of(run: LoadedRun, selected: tuple[str, ...] = ()) -> dict[str, int]:
    """Name -> number of the tasks that have an expert to be written; all of them, or those of `selected`.

    One expert that all tasks share has one name: the run's method.

    Raises:
      ConfigError: no such task.
    """
    method = require_linear(run, "an adapter")
    if method.traits.keeps_old_experts:
        known = {}
        for task in method.learned(run.learner):
            known[run.tasks[task]] = task
    else:
        known = {method.name: 0}
    for name in selected:
        if name not in known:
            raise ConfigError("no such task in the run", where=f"--task {name}", remedy=nearest(name, known))
    if not selected:
        return known
    return {name: known[name] for name in selected}


def lora_of(bank: Bank, gain_LS: np.ndarray) -> LoraWeights:
    """The active slots of a bank, concatenated in the rank: sum_s gain_s a_s b_s = [a_s ...] [gain_s b_s; ...].

    Args:
      gain_LS: weight of every slot; a slot is active if it has an owner and its gain is not zero. A layer with fewer
        active slots than another is padded with zeros.
    """
    gain_LS = np.asarray(gain_LS)
    owned_LS = np.asarray(bank.owner_LS) != EMPTY
    active_LS = (gain_LS != 0) & owned_LS
    # Every layer of a LoRA has the same rank, so the layer with most active slots decides.
    most_active = int(active_LS.sum(axis=1).max())
    rank = bank.rank * max(1, most_active)
    a: dict[str, list[np.ndarray]] = {}
    b: dict[str, list[np.ndarray]] = {}
    for site in bank.sites:
        a_LDSR = np.asarray(bank.a[site], np.float32)
        b_LSRF = np.asarray(bank.b[site], np.float32)
        a[site] = []
        b[site] = []
        for layer, active_S in enumerate(active_LS):
            # The gain goes into b, because a LoRA has one scale for all its slots.
            gain_S = gain_LS[layer, active_S].astype(np.float32)
            weighted_SRF = b_LSRF[layer, active_S] * gain_S[:, None, None]
            active_DSR = a_LDSR[layer][:, active_S]
            a_DR, b_RF = _side_by_side(active_DSR, weighted_SRF, rank)
            a[site].append(a_DR)
            b[site].append(b_RF)
    return LoraWeights(a, b, bank.scale)


def _side_by_side(a_DSR: np.ndarray, b_SRF: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots concatenated in the rank and padded with zeros: a [D, rank], b [rank, F]."""
    width, slots, slot_rank = a_DSR.shape
    out = b_SRF.shape[2]
    used = slots * slot_rank
    a_DR = np.zeros((width, rank), np.float32)
    b_RF = np.zeros((rank, out), np.float32)
    a_DR[:, :used] = a_DSR.reshape(width, used)
    b_RF[:used] = b_SRF.reshape(used, -1)
    return a_DR, b_RF


def task_lora(run: LoadedRun, task: int) -> LoraWeights:
    """The whole difference to the base for inputs of `task`: one LoRA, and the projector if it was tuned."""
    method = run.config.method
    bank = method.lora_bank(run.learner)
    gain_LS = method.lora_gains(run.learner, task)
    lora = lora_of(bank, gain_LS)
    tuned = {}
    for path, leaf in run.learner.shared.items():
        tuned[path] = np.asarray(leaf, np.float32)
    return LoraWeights(lora.a, lora.b, lora.scale, tuned)


def merged(run: LoadedRun, task: int) -> Model:
    """The base with everything of `task` folded in, in the base's dtypes."""
    method = run.config.method
    model = with_leaves(run.model, run.learner.shared)
    bank = method.lora_bank(run.learner)
    gain_LS = method.lora_gains(run.learner, task)
    return with_experts_folded(model, bank, gain_LS)
