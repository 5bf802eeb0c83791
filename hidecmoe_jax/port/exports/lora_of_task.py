"""One task of a run on its own: as one LoRA, or merged into the base.

A run answers an input of a known task with the constant experts (HiDe's fused layers, or an expert that all tasks
share) and, in the expanded layers, with that task's own. For one task this is a linear map added to every kernel, and
so one LoRA: slots that speak together stand side by side in its rank, which is exact for any sum of products, and a
fusion by `factor_sum` is one slot already. An expert that every token chooses for itself is no such map, and is refused
by name.
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
    """The run's method, where its experts are LoRA on linears and constant for a task.

    Args:
      form: what was asked for, as the user wrote it.

    Raises:
      ConfigError: the method routes tokens, or has no experts at all; says what to use instead.
    """
    method = run.config.method
    if not isinstance(method, AsLora):
        raise ConfigError(
            f"the experts of {method.name!r} cannot be written as {form}", where=f"method: {type(method).__name__}",
            why=f"{method.describe_experts()}; this form holds one LoRA on linears, the same for every token",
            remedy="use --to hub, which keeps experts and routers; answer with `hidecmoe ask` or `hidecmoe eval`",
        )  # fmt: skip
    if method.lora_bank(run.learner) is None or not method.learned(run.learner):
        raise ConfigError(
            f"there is no expert to write as {form}", where=f"method {method.name!r}",
            why="nothing was learned: it answers with the base model alone", remedy="use --to hf-base",
        )  # fmt: skip
    return method


def names_of(run: LoadedRun, wanted: tuple[str, ...] = ()) -> dict[str, int]:
    """Tasks that have an expert to be written, by name, with their numbers; `wanted` chooses among them.

    One expert that all tasks share has one name: the run's method.

    Raises:
      ConfigError: no such task.
    """
    method = require_linear(run, "an adapter")
    if not method.traits.keeps_old_experts:
        known = {method.name: 0}
    else:
        known = {run.tasks[task]: task for task in method.learned(run.learner)}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError("no such task in the run", where=f"--task {unknown[0]}", why=nearest(unknown[0], known))
    return {name: known[name] for name in wanted} if wanted else known


def lora_of(bank: Bank, gain_LS: np.ndarray) -> LoraWeights:
    """The slots of a bank that speak, side by side in the rank: sum_s gain_s a_s b_s = [a_s ...] [gain_s b_s; ...].

    A layer with fewer of them than another is filled up with zeros.
    """
    owner_LS = np.asarray(bank.owner_LS)
    heard = [np.flatnonzero((gain != 0) & (owner != EMPTY)) for gain, owner in zip(gain_LS, owner_LS, strict=True)]
    rank = bank.rank * max(1, *(len(slots) for slots in heard))
    a: dict[str, list[np.ndarray]] = {}
    b: dict[str, list[np.ndarray]] = {}
    for site in bank.sites:
        a_LDSR, b_LSRF = np.asarray(bank.a[site], np.float32), np.asarray(bank.b[site], np.float32)
        a[site], b[site] = [], []
        for layer, slots in enumerate(heard):
            a_DR, b_RF = np.zeros((a_LDSR.shape[1], rank), np.float32), np.zeros((rank, b_LSRF.shape[3]), np.float32)
            wide = bank.rank * len(slots)
            a_DR[:, :wide] = a_LDSR[layer][:, slots].reshape(len(a_DR), wide)
            loud = gain_LS[layer, slots][:, None, None].astype(np.float32)
            b_RF[:wide] = (b_LSRF[layer, slots] * loud).reshape(wide, -1)
            a[site].append(a_DR)
            b[site].append(b_RF)
    return LoraWeights(a, b, bank.scale)


def task_lora(run: LoadedRun, task: int) -> LoraWeights:
    """Everything that answers an input of `task`, beyond the base: one LoRA, and the projector where it was tuned."""
    method = run.config.method
    lora = lora_of(method.lora_bank(run.learner), method.lora_gains(run.learner, task))
    tuned = {path: np.asarray(leaf, np.float32) for path, leaf in run.learner.shared.items()}
    return LoraWeights(lora.a, lora.b, lora.scale, tuned)


def merged(run: LoadedRun, task: int) -> Model:
    """The base with everything of `task` folded in, in the base's dtypes."""
    method = run.config.method
    model = with_leaves(run.model, run.learner.shared)
    return with_experts_folded(model, method.lora_bank(run.learner), method.lora_gains(run.learner, task))
