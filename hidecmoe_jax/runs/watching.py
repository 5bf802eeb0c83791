"""Monitoring of a training stage: progress on the terminal, metrics, checkpoints, and stopping after a signal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.runs.progress import Progress
from hidecmoe_jax.runs.scores import Curve
from hidecmoe_jax.runs.status import Status, Work, new_bar, say, waiting
from hidecmoe_jax.storage.signals import Stop
from hidecmoe_jax.train.optim import TrainConfig

FLUSH_EVERY = 20  # steps whose metrics a crash may lose; resuming drops lines after the checkpoint anyway


@dataclass
class StageMonitor:
    """The `train.stage.StageObserver` of a run, for one stage of one lesson.

    Attributes:
      at: number of the lesson and place of the stage in it; checkpoints and metrics are filed under it.
      data: what the lesson is learned from; a checkpoint of other data is ignored.
      readable: the latest step whose state was asked for (`saves`).
      waited: seconds waited for batches, in the whole run up to the last step and in the steps that were timed.
    """

    progress: Progress
    curve: Curve
    stop: Stop
    tune: TrainConfig
    name: str
    at: tuple[int, int]
    data: list[list[str]]
    on_corrupt: str = "refuse"
    status: Status = field(default_factory=Status)
    pace: Work = field(default_factory=Work)
    shown: tqdm | None = None
    since: float = 0.0
    readable: int | None = None
    waited: tuple[float, float] = (0.0, 0.0)

    def resume(self, stage: Stage) -> tuple[int, dict[str, np.ndarray]] | None:
        """The newest checkpoint of this very stage and data, if any; metrics after it are dropped."""
        checkpoint = self.progress.latest(on_corrupt=self.on_corrupt)
        if checkpoint is None:
            checkpoint = (0, {}, {})
        step, state, facts = checkpoint
        same_stage = tuple(facts.get("at", ())) == self.at
        same_data = facts.get("data") == self.data
        usable = same_stage and same_data
        first_step = step + 1 if usable else 0
        # Lines after the checkpoint are written again when their steps are.
        self.curve.rewind((*self.at, first_step))
        if same_stage and not usable:
            self.warn(f"{self.name}: the checkpoint within stage {stage.kind} is of other data; left out")
        if not usable:
            return None
        say(f"task {self.name}: going on after step {step} of stage {stage.kind}")
        self.status.skip_steps(first_step)
        return first_step, state

    def saves(self, step: int, steps: int) -> bool:
        """True for the steps after which a checkpoint is due, and for every step once the process was signalled."""
        due = (step + 1) % self.tune.save_every == 0
        if due or self.stop.requested:
            self.readable = step
        return self.readable == step

    def step(self, stage: Stage, step: int, steps: int, facts: dict[str, Any], state: Callable[[], dict]) -> None:
        """Shows and logs a step; saves when it is time or the process was signalled.

        Raises:
          PreemptedError: after a signal, once the step is saved.
        """
        now = time.monotonic()
        seconds = now - self.since if self.since else 0.0
        # The first step of a process has no time of its own: it contains compilation.
        timed = seconds if self.since else None
        self.since = now
        self.pace.add(1, timed)
        waited = self._waited(timed)
        self.status.step(timed)
        self._show(stage, step, steps, facts["loss"])
        line = {"at": [*self.at, step], "task": self.name, "stage": stage.kind, "step": step}
        line |= facts
        line["seconds"] = round(seconds, 4)
        line["waited"] = {"seconds": round(waited, 4)}
        self.curve.add(line)
        done = step + 1
        last = done == steps
        # A signal that came after `saves` was asked stops at the next step: the state of this one is overwritten.
        stopping = self.stop.requested and (last or self.readable == step)
        is_multiple = done % self.tune.save_every == 0
        # After the last step the stage is over; what it trained is saved between the stages or committed.
        due = is_multiple and not last
        many_pending = len(self.curve.pending) >= FLUSH_EVERY
        # Metrics are on disk before the checkpoint that they lead up to, so that resuming never leaves a gap.
        if due or last or stopping or many_pending:
            self.curve.flush()
        self.stop.saving = stopping
        if due or stopping:
            about = {"at": list(self.at), "data": self.data}
            self.progress.save(step, state(), meta=about)
        if self.shown is not None and (last or stopping):
            self.shown.close()
        if stopping:
            self.stop.leave(f"task {self.name}, stage {stage.kind}, step {step}")

    def _waited(self, timed: float | None) -> float:
        """Seconds waited for a batch since the last step; the first step of a process waits for the first batch."""
        total, of_timed = self.waited
        waited = self.status.waited.seconds - total if timed is not None else 0.0
        self.waited = (self.status.waited.seconds, of_timed + waited)
        return waited

    def _show(self, stage: Stage, step: int, steps: int, loss: float | None) -> None:
        """Moves the progress bar on by one step, or prints a line if one is due."""
        numbers = "no loss" if loss is None else f"loss {loss:.3f}"
        if self.pace.seconds:
            steps_a_second = self.pace.timed / self.pace.seconds
            samples_a_second = steps_a_second * self.tune.batch * self.tune.accumulate
            numbers += f", {samples_a_second:.3g} samples/s{waiting(self.waited[1], self.pace.seconds)}"
        if not self.status.on_terminal:
            if self.status.is_due():
                self.status.line(f"{stage.kind} step {step + 1} of {steps}, {numbers}")
            return
        if self.shown is None:
            label = self.status.label(stage.kind)
            self.shown = new_bar(label, total=steps, initial=step)
        run = self.status.run_left()
        if run:
            numbers += f", {run}"
        self.shown.set_postfix_str(numbers, refresh=False)
        self.shown.update(1)

    def warn(self, text: str) -> None:
        """A line above the progress bar."""
        say(f"warning: {text}")
