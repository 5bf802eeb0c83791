"""The loop over the steps of one stage.

Batches, rates and random keys are pure functions of the step number, so a stage goes on from a checkpoint as if it
had never stopped. The loop saves through a callback and knows nothing of folders. Metrics of a step are read after
the next one has been dispatched, so the device never waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import NumericsError
from hidecmoe_jax.data.features import Features
from hidecmoe_jax.data.loader import Plan, collate
from hidecmoe_jax.data.prompts import Encoded
from hidecmoe_jax.methods.learner import Learner, Method, Stage, with_trainable
from hidecmoe_jax.models.llava import Batch, Model, Prompt
from hidecmoe_jax.train.optim import Tune, shape_of_rate
from hidecmoe_jax.train.step import Metrics, begin, take_step

STILL_WARN, STILL_STOP = 10, 50  # steps without any gradient (TR4)


@dataclass(frozen=True)
class Material:
    """What a stage reads: encoded records, tower features, the (length, answers) of a batch, padding, vocabulary."""

    encoded: Sequence[Encoded]
    features: Features
    shape: tuple[int, int]
    pad: int
    vocabulary: int


class Watch(Protocol):
    """What the loop tells the outside."""

    def resume(self, stage: Stage) -> tuple[int, dict[str, np.ndarray]] | None:
        """Step and flat state to go on from, if any."""

    def step(self, stage: Stage, step: int, steps: int, facts: dict[str, float], state: Callable[[], dict]) -> None:
        """Called after every step; `state()` gives the flat state to save. May raise to stop."""

    def warn(self, text: str) -> None:
        """Something a user should read."""


def _batches(material: Material, rows: np.ndarray) -> Batch:
    """Micro-batches [K, B, ...] of record numbers `rows` [K, B]."""
    stacked, (length, answers) = [], material.shape
    for part in rows:
        encoded = [material.encoded[row] if row >= 0 else None for row in part]
        arrays = collate(encoded, length=length, answers=answers, pad=material.pad, vocab=material.vocabulary)
        prompt = Prompt(arrays["tokens_BT"], arrays["mask_BT"], material.features.patches(part))
        stacked.append(Batch(prompt, arrays["where_BA"], arrays["answer_BA"], arrays["answer_mask_BA"]))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *stacked)


def _check(metrics: Metrics, where: str, ids: Callable[[], list[str]]) -> dict[str, float]:
    facts = {name: float(getattr(metrics, name)) for name in ("loss", "gradient", "update", "norm")}
    facts["tokens"] = int(metrics.tokens)
    bad = [name for name, value in facts.items() if not np.isfinite(value)]
    if bad:
        raise NumericsError(
            f"training met a {bad[0]} that is not finite",
            where=where,
            why=f"{facts}; records {', '.join(ids()[:16])}",
            remedy="lower --set tune.rate, or look at these records; --resume goes on from the last good checkpoint",
        )
    return facts


def run_stage(
    method: Method,
    model: Model,
    learner: Learner,
    stage: Stage,
    material: Material,
    *,
    tune: Tune,
    key: jax.Array,
    seed: int,
    watch: Watch,
    task: str,
) -> Learner:
    """Trains what is live in `learner` and returns it trained.

    Raises:
      NumericsError: loss, gradient, update or parameters not finite (TR1), or no gradient for 50 steps (TR4).
    """
    plan = Plan(len(material.encoded), tune.batch * tune.accumulate, tune.epochs, seed)
    state, start = begin(learner, tune), 0
    found = watch.resume(stage)
    if found is not None:
        start, flat = found
        state = jax.tree.map(jnp.asarray, trees.restore_into(state, flat))
    # What trains along replaces what was tuned before, so the first task and later ones share one program.
    heard = learner.replace(shared={path: leaf for path, leaf in learner.shared.items() if path not in learner.tuned})
    heard = heard if stage.hears_past else heard.replace(past={}, memory={})
    still, pending = 0, None
    traced = replace(tune, epochs=1, rate=0.0, projector_rate=0.0, save_every=1)  # what the compiled step may depend on
    for step in range(start, plan.steps):
        rows = plan.indices(step).reshape(tune.accumulate, tune.batch)
        factor = shape_of_rate(step, plan.steps, tune.warmup)
        rates = {"experts": jnp.float32(tune.rate * factor), "shared": jnp.float32(tune.projector_rate * factor)}
        batches = _batches(material, rows)
        state, metrics = take_step(
            state, model, heard, batches, rates, jax.random.fold_in(key, step), method=method, stage=stage, tune=traced
        )
        still = _report(pending, watch, stage, plan.steps, task, still)
        pending = (step, metrics, state, [material.encoded[row].id for row in rows.ravel() if row >= 0])
    _report(pending, watch, stage, plan.steps, task, still)
    return with_trainable(learner, state.leaves)


def _report(pending, watch: Watch, stage: Stage, steps: int, task: str, still: int) -> int:
    """Reads a finished step's metrics, hands them on, and counts steps in which nothing can have been learned."""
    if pending is None:
        return still
    step, metrics, state, ids = pending
    facts = _check(metrics, f"task {task}, stage {stage.kind}, step {step} of {steps}", lambda: ids)
    still = still + 1 if facts["gradient"] == 0.0 or facts["tokens"] == 0 else 0
    if still == STILL_WARN:
        watch.warn(f"task {task}: no gradient for {still} steps (loss {facts['loss']:.4f})")
    if still >= STILL_STOP:
        raise NumericsError(
            "nothing is being learned",
            where=f"task {task}, stage {stage.kind}, step {step}",
            why=f"the gradient has been exactly 0 for {still} steps, loss {facts['loss']}",
            remedy="check that answers are not empty and that the experts' sites are among those of the model",
        )
    watch.step(stage, step, steps, facts, lambda: trees.flatten(state))
    return still
