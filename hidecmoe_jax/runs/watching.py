"""What the outside sees of a training stage: progress bar with ETA, metrics, checkpoints, and a polite stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.runs.progress import Progress
from hidecmoe_jax.runs.scores import Curve
from hidecmoe_jax.runs.session import bar, say
from hidecmoe_jax.storage.signals import Stop
from hidecmoe_jax.train.optim import TrainConfig

FLUSH_EVERY = 20  # steps whose metrics a crash may lose; resuming takes lines after the checkpoint back anyway


@dataclass
class StageMonitor:
    """The loop's side of `train.stage.StageObserver`, for one stage of one lesson.

    Attributes:
      at: number of the lesson and place of the stage in it; checkpoints and metrics are filed under it.
      data: what the lesson is learned from; a checkpoint of other data is not gone on from.
    """

    progress: Progress
    curve: Curve
    stop: Stop
    tune: TrainConfig
    name: str
    at: tuple[int, int]
    data: list[list[str]]
    on_corrupt: str = "refuse"
    shown: tqdm | None = None
    since: float = 0.0

    def resume(self, stage: Stage) -> tuple[int, dict[str, np.ndarray]] | None:
        """The newest checkpoint of this very stage and data, if any; metrics after it are taken back."""
        found = self.progress.latest(on_corrupt=self.on_corrupt)
        step, state, facts = found if found is not None else (0, {}, {})
        here = tuple(facts.get("at", ())) == self.at
        mine = here and facts.get("data") == self.data
        self.curve.rewind((*self.at, step + 1 if mine else 0))
        if here and not mine:
            self.warn(f"{self.name}: the checkpoint within stage {stage.kind} is of other data; left out")
        if not mine:
            return None
        say(f"task {self.name}: going on after step {step} of stage {stage.kind}")
        return step + 1, state

    def step(self, stage: Stage, step: int, steps: int, facts: dict[str, Any], state: Callable[[], dict]) -> None:
        """Shows, logs, and saves when it is time or the process was asked to stop.

        Raises:
          PreemptedError: after a signal, once the step is saved.
        """
        self._show(stage, step, steps, facts["loss"])
        now = time.monotonic()
        took, self.since = (now - self.since if self.since else 0.0), now
        line = {"at": [*self.at, step], "task": self.name, "stage": stage.kind, "step": step}
        self.curve.add(line | facts | {"seconds": round(took, 4)})
        last = step + 1 == steps
        if len(self.curve.pending) >= FLUSH_EVERY:
            self.curve.flush()
        if ((step + 1) % self.tune.save_every == 0 and not last) or self.stop.requested:
            self.curve.flush()
            self.progress.save(step, state(), meta={"at": list(self.at), "data": self.data})
        if last or self.stop.requested:
            self.curve.flush()
            self.shown.close()
        if self.stop.requested:
            self.stop.leave(f"task {self.name}, stage {stage.kind}, step {step}")

    def _show(self, stage: Stage, step: int, steps: int, loss: float) -> None:
        if self.shown is None:
            self.shown = bar(f"{self.name}: {stage.kind}", initial=step)(range(steps))
        self.shown.update(1)
        rate = (self.shown.format_dict["rate"] or 0.0) * self.tune.batch * self.tune.accumulate
        self.shown.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} samples/s", refresh=False)

    def warn(self, text: str) -> None:
        """A line above the progress bar."""
        say(f"warning: {text}")
