"""The loop over the steps of one stage.

Batches, rates and random keys are pure functions of the step number, so a stage goes on from a checkpoint as if it
had never stopped. The loop saves through a callback and reads or writes no folder itself. Metrics of a step are read
after the next one has been dispatched, and a thread makes the batches ahead, so the device never waits for the host. A
step overwrites the state before it, which is copied where the observer will save it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.errors import NumericsError
from hidecmoe_jax.core.layout import replicate
from hidecmoe_jax.core.processes import to_host
from hidecmoe_jax.data.ahead import Waited, ahead, to_devices
from hidecmoe_jax.data.features import Features
from hidecmoe_jax.data.loader import Plan, collate
from hidecmoe_jax.data.prompts import Encoded
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.experts.usage import Load, evenness
from hidecmoe_jax.methods.base import Learner, with_trainable
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Batch, Model
from hidecmoe_jax.train.optim import TrainConfig, shape_of_rate
from hidecmoe_jax.train.packed import packed, packer_of
from hidecmoe_jax.train.step import Metrics, begin, copied, from_checkpoint, take_step, to_checkpoint

# Steps in a row without any gradient after which the user is warned, and after which training stops.
STILL_WARN = 10
STILL_STOP = 50
# A router has collapsed if `evenness` gives a share above, or an entropy below, for so many steps in a row.
SHARE_ALARM = 0.9
ENTROPY_ALARM = 0.1
COLLAPSED = 10


@dataclass(frozen=True)
class Streak:
    """Steps in a row without a gradient, and steps in a row with a collapsed router."""

    still: int = 0
    collapsed: int = 0


@dataclass(frozen=True)
class StageData:
    """Training data of a stage.

    Attributes:
      records, encoded, features: the records, their token ids and labels, and their tower features, in one order.
      shape: (length, answers) of a batch: positions of a sequence, and of its answer tokens.
      pad: id of the padding token.
      vocabulary: size of the token table.
      lengths: padded lengths of a step, ascending; empty for that of `shape` alone.
      waited: counts the time that training waits for batches.
    """

    records: tuple[Record, ...]
    encoded: Sequence[Encoded]
    features: Features
    shape: tuple[int, int]
    pad: int
    vocabulary: int
    lengths: tuple[int, ...] = ()
    waited: Waited = field(default_factory=Waited, compare=False, repr=False)

    def only(self, rows: np.ndarray | None) -> StageData:
        """Some of the records, in batches of the same shape; None for all."""
        if rows is None:
            return self
        records = tuple(self.records[row] for row in rows)
        encoded = tuple(self.encoded[row] for row in rows)
        features = self.features.only(np.asarray(rows))
        return replace(self, records=records, encoded=encoded, features=features)

    def length_for(self, rows: np.ndarray) -> int:
        """The shortest of `lengths` that holds every record of `rows`, any shape; -1 needs none."""
        longest = max((len(self.encoded[row].tokens) for row in rows.ravel() if row >= 0), default=0)
        return next((length for length in self.lengths if length >= longest), self.shape[0])

    def batch(self, rows: np.ndarray, *, length: int | None = None) -> Batch:
        """Records `rows` [B] as a batch; -1 gives a row that counts for nothing.

        Args:
          length: padded length, by default that of `shape`.
        """
        encoded = [self.encoded[row] if row >= 0 else None for row in rows]
        longest, answers = self.shape
        return collate(
            encoded,
            length=length or longest,
            answers=answers,
            pad=self.pad,
            vocab=self.vocabulary,
            patches_BIPD=self.features.patches(rows),
        )


class StageObserver(Protocol):
    """Callbacks of the training loop: resuming, saving, metrics, warnings."""

    def resume(self, stage: Stage) -> tuple[int, dict[str, np.ndarray]] | None:
        """Step and flat state to go on from, if any."""

    def saves(self, step: int, steps: int) -> bool:
        """Whether `state` will be called for this step; asked before the next one overwrites its state. That of the
        last step can always be read."""

    def step(self, stage: Stage, step: int, steps: int, facts: dict[str, Any], state: Callable[[], dict]) -> None:
        """Called after every step; `state()` gives the flat state to save. May raise to stop.

        `facts` are loss, gradient, update, norm and tokens, and where tokens choose experts their `load` by layer and
        slot (-1: not to be chosen) with the `share` and the `entropy` of its most uneven layer. A step that was left
        out has `skipped`, bad steps in a row up to it, and None for what is not finite.
        """

    def warn(self, text: str) -> None:
        """Shows the user a warning."""


def _check(metrics: Metrics, where: str, ids: Callable[[], list[str]], skip: int) -> dict[str, Any]:
    """A step's metrics as plain values; of a step that was left out those are None that are not finite.

    Args:
      skip: bad steps in a row that may be left out.

    Raises:
      NumericsError: names what is not finite, or that too many steps in a row were left out.
    """
    facts: dict[str, Any] = {name: float(getattr(metrics, name)) for name in ("loss", "gradient", "update", "norm")}
    facts["tokens"] = int(metrics.tokens)
    bad = [name for name, value in facts.items() if not np.isfinite(value)]
    skipped = 0 if metrics.skipped is None else int(metrics.skipped)
    if skipped > skip:
        raise NumericsError(
            f"{skipped} steps in a row were bad", where=where,
            why=f"{facts}; records of the last one {', '.join(ids()[:16])}; tune.skip leaves out {skip} in a row",
            remedy="lower --set tune.rate, or look at these records; --resume goes on from the last good checkpoint",
        )  # fmt: skip
    if skipped:
        return facts | dict.fromkeys(bad) | {"skipped": skipped}
    if bad:
        raise NumericsError(
            f"training met a {bad[0]} that is not finite",
            where=where,
            why=f"{facts}; records {', '.join(ids()[:16])}",
            remedy="lower --set tune.rate, or look at these records; --resume goes on from the last good checkpoint",
        )
    return facts


def run_stage(
    model: Model,
    learner: Learner,
    stage: Stage,
    data: StageData,
    *,
    tune: TrainConfig,
    key: jax.Array,
    seed: int,
    observer: StageObserver,
    task: str,
) -> Learner:
    """Trains what is live in `learner` and returns it trained.

    Raises:
      NumericsError: loss, gradient, update or parameters not finite, or no gradient for 50 steps.
    """
    step_records = tune.batch * tune.accumulate
    plan = Plan(len(data.encoded), step_records, tune.epochs, seed)
    state = begin(learner, tune)
    start = 0
    resumed = observer.resume(stage)
    if resumed is not None:
        start, flat = resumed
        state = from_checkpoint(state, flat)
    # Leaves that train now are left out of `shared`, so the first task and later ones have one tree and one program.
    shared = {path: leaf for path, leaf in learner.shared.items() if path not in learner.tuned}
    context = learner.replace(shared=shared)
    if not stage.uses_past:
        context = context.replace(past={}, memory=None)
    layout = model.layout
    state = replicate(layout, state)
    context = replicate(layout, context)
    # Settings that the compiled step does not depend on are set to constants, so that they compile nothing anew.
    leaves_out = min(tune.skip, 1)
    traced = replace(
        tune, epochs=1, rate=0.0, projector_rate=0.0, save_every=1, lengths=1, pack=0, skip=leaves_out
    )  # fmt: skip
    streak = Streak()
    pending = None

    packer = packer_of(data, stage, tune, layout)

    def material(step: int) -> tuple[Batch, list[str]]:
        rows = plan.indices(step)
        ids = [data.encoded[row].id for row in rows if row >= 0]
        if packer is None:
            batches = _stacked(data, rows.reshape(tune.accumulate, tune.batch))
        else:
            batches = packed(data, rows, packer)
        return to_devices(layout, batches, axis=1), ids

    steps = range(start, plan.steps)
    # Closed here whatever ends the loop, so that the thread does not outlive the stage.
    with closing(ahead(material, steps, depth=data.features.depth, waited=data.waited)) as batches_ahead:
        for step, (batches, ids) in zip(steps, batches_ahead, strict=True):
            rates = _rates(tune, step, plan.steps)
            step_key = jax.random.fold_in(key, step)
            state, metrics = take_step(
                state, model, context, batches, rates, step_key, stage=stage.compiled_as, tune=traced
            )
            # The previous step is reported only now, so that the device works on this one meanwhile.
            streak = _report(pending, observer, stage, plan.steps, task, streak, tune.skip)
            # The next step overwrites this state; the last one stays.
            is_last = step + 1 == plan.steps
            saved = copied(state) if observer.saves(step, plan.steps) and not is_last else state
            pending = (step, metrics, saved, ids)
        _report(pending, observer, stage, plan.steps, task, streak, tune.skip)
    return with_trainable(learner, state.leaves)


def _rates(tune: TrainConfig, step: int, steps: int) -> dict[str, jax.Array]:
    """Learning rates of a step by group of leaves, float32 []."""
    factor = shape_of_rate(step, steps, tune.warmup)
    rate = jnp.float32(tune.rate * factor)
    projector_rate = jnp.float32(tune.projector_rate * factor)
    return {"experts": rate, "routers": rate, "shared": projector_rate}


def _stacked(data: StageData, rows: np.ndarray) -> Batch:
    """Micro-batches of the records `rows`, int [micro-batch, B], stacked on a leading axis."""
    # One length for all, so that they can be stacked.
    length = data.length_for(rows)
    micro_batches = [data.batch(micro_rows, length=length) for micro_rows in rows]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *micro_batches)


def tuned_for(stage: Stage, tune: TrainConfig, count: int) -> TrainConfig:
    """The optimiser settings of a stage over `count` records, with those that it overrides."""
    if stage.rate is not None:
        tune = replace(tune, rate=stage.rate)
    if stage.accumulate is not None:
        tune = replace(tune, accumulate=stage.accumulate)
    if not stage.steps:
        return tune
    one_pass = Plan(count, tune.batch * tune.accumulate, 1, 0)
    passes = math.ceil(stage.steps / one_pass.epoch_steps)
    return replace(tune, epochs=passes)


_usage = partial(jax.jit, static_argnames=("stage",))(
    lambda stage, model, learner, batch: stage.usage(model, learner, batch)
)


def count_usage(model: Model, learner: Learner, stage: Stage, data: StageData, batch: int) -> Any:
    """Sums over all records of what the stage counts; integers are added on the host and cannot overflow."""

    def rows_from(start: int) -> Batch:
        rows = np.arange(start, start + batch, dtype=np.int32)
        # The last batch is filled up with -1: all batches have one shape.
        rows = np.where(rows < len(data.encoded), rows, -1)
        return to_devices(model.layout, data.batch(rows))

    total = None
    starts = range(0, len(data.encoded), batch)
    with closing(ahead(rows_from, starts, depth=data.features.depth)) as batches:
        for on_device in batches:
            counted = _usage(stage, model, learner, on_device)
            counts = jax.tree.map(_widened, to_host(counted))
            total = counts if total is None else jax.tree.map(np.add, total, counts)
    return total


def _widened(leaf: np.ndarray) -> np.ndarray:
    """Integers as int64, floats as float64."""
    dtype = np.int64 if leaf.dtype == np.int32 else np.float64
    return leaf.astype(dtype)


def _loads(load: Load | None) -> dict[str, Any]:
    """A step's load as plain values; empty where no token chooses."""
    if load is None:
        return {}
    share, entropy = evenness(load) or (None, None)
    count_LS = np.asarray(load.count_LS)
    return {"load": count_LS.tolist(), "share": share, "entropy": entropy}


def _collapsed(facts: dict[str, Any]) -> bool:
    """Whether nearly all tokens of some layer go to the same experts."""
    if facts.get("share") is None:
        return False
    return facts["share"] > SHARE_ALARM or facts["entropy"] < ENTROPY_ALARM


def _report(
    pending, observer: StageObserver, stage: Stage, steps: int, task: str, streak: Streak, skip: int = 0
) -> Streak:
    """Reads a finished step's metrics, reports them, and counts steps in a row without a gradient and with a collapsed
    router.

    Raises:
      NumericsError: a metric is not finite, or the gradient has been zero for too many steps.
    """
    if pending is None:
        return streak
    step, metrics, state, ids = pending
    where = f"task {task}, stage {stage.kind}"
    facts = _check(metrics, f"{where}, step {step} of {steps}", lambda: ids, skip)
    if "skipped" in facts:
        observer.warn(f"{where}, step {step}: left out, its loss is {facts['loss']}; records {', '.join(ids[:4])}")
    facts |= {} if "skipped" in facts else _loads(metrics.load)
    has_no_gradient = facts["gradient"] == 0.0 or facts["tokens"] == 0
    # A probe has no gradient where no earlier expert is left to compare it with, and that is no failure.
    learns_nothing = stage.subset_name == "all" and has_no_gradient
    still = streak.still + 1 if learns_nothing else 0
    collapsed = streak.collapsed + 1 if _collapsed(facts) else 0
    if collapsed == COLLAPSED:
        observer.warn(
            f"{where}: for {collapsed} steps a router has sent nearly everything to the same experts "
            f"(share {facts['share']:.3f}, entropy {facts['entropy']:.3f}, in the most uneven layer)"
        )
    if still == STILL_WARN:
        observer.warn(f"task {task}: no gradient for {still} steps (loss {facts['loss']:.4f})")
    if still >= STILL_STOP:
        raise NumericsError(
            "nothing is being learned",
            where=f"{where}, step {step}",
            why=f"the gradient has been exactly 0 for {still} steps, loss {facts['loss']}",
            remedy="check that answers are not empty and that the experts' sites are among those of the model",
        )
    observer.step(stage, step, steps, facts, lambda: to_checkpoint(state))
    return Streak(still, collapsed)
