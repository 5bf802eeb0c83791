"""What a stream costs: steps, bytes that devices exchange, seconds, money, and processors that decode pictures.

Times are formulas, nothing here was run: a step takes as long as its operations at the assumed part of the peak rate,
or as long as its exchange of weights and gradients, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hidecmoe_jax.data.loader import Plan as Order
from hidecmoe_jax.models import flops
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.studies.planning.machines import Machine
from hidecmoe_jax.train.optim import TrainConfig
from hidecmoe_jax.train.stage import tuned_for

PICTURES_A_CORE = 64.0
"""JPEG pictures that one processor core decodes and scales to 336 pixels in a second (measured with Pillow)."""


@dataclass(frozen=True)
class Workload:
    """Sizes of the data, which a config does not hold.

    Attributes:
      tasks: how many are learned; `records` of each for training, `questions` for evaluation.
      tokens: positions of a training sequence, image tokens included; `answers` of them are answer tokens.
      pictures: of one record.
    """

    tasks: int
    records: int
    questions: int
    tokens: int
    answers: int
    pictures: int = 1

    @property
    def prompt(self) -> int:
        """Positions of a question without its answer."""
        return self.tokens - self.answers


@dataclass(frozen=True)
class Traffic:
    """Bytes of one optimiser step that a device receives of gathered weights, and that it sums with the others."""

    gathered: int
    reduced: int

    def seconds(self, machine: Machine) -> float:
        """Time on the links alone; a sum moves every byte twice."""
        moved = self.gathered + 2 * self.reduced
        return moved / machine.link if machine.link else 0.0


def with_epochs(config: RunConfig, tasks: Sequence[int]) -> RunConfig:
    """The config of a lesson: with the epochs of its task, where the stream sets them for it."""
    specs = config.stream.tasks
    if len(tasks) != 1 or tasks[0] >= len(specs) or specs[tasks[0]].epochs is None:
        return config
    return replace(config, tune=replace(config.tune, epochs=specs[tasks[0]].epochs))


def training_steps(config: RunConfig, work: Workload, lesson: int) -> dict[str, tuple[int, int]]:
    """(steps, records a step) of every training stage of a lesson, by the stage's kind."""
    steps = {}
    for stage in config.method.stages(lesson):
        if not stage.trains:
            continue
        rows = stage.subset(work.records, 0)
        count = work.records if rows is None else len(rows)
        tune = tuned_for(stage, config.tune, count)
        size = tune.batch * tune.accumulate
        steps[stage.kind] = (Order(count, size, tune.epochs, 0).steps, size)
    return steps


def evaluated_tasks(config: RunConfig, tasks: int) -> int:
    """How many times a task's questions are answered over the whole stream of one seed, variants left out."""
    judging = config.evaluate
    total = tasks  # the last row
    for learned in range(1, tasks):
        by_rule = {"seen": min(learned + 1, tasks), "own": 1, "none": 0}
        total += by_rule[judging.between]
    if judging.zero_shot:
        total += tasks
    named = {"none": 0, "last": tasks, "all": tasks * (tasks + 1) // 2}
    return total + named[judging.named]


def picture_flops(base: LlavaConfig, *, pooled: bool) -> int:
    """Operations of the vision tower for one picture."""
    layers = base.vision.layers
    if not pooled:
        layers = base.feature_layer % (layers + 1)
    return flops.vision(base.vision, layers, pooled=pooled)


def rate(machine: Machine) -> float:
    """Operations a second that one device is assumed to sustain."""
    return machine.peak * machine.sustained


def answer_seconds(
    base: LlavaConfig, machine: Machine, work: Workload, *, batch: int, weights: int, cache: int, written: int
) -> float:
    """Time of one batch of questions on one device: the prompts' operations, then the weights read for every token.

    Args:
      weights, cache: bytes that a token reads.
      written: tokens of an answer.
    """
    prompt = flops.forward(base, work.prompt, pictures=work.pictures)
    reading = (written - 1) * (weights + cache) / machine.bandwidth
    return batch * prompt / rate(machine) + reading


def decoding_cores(pictures_a_second: float) -> float:
    """Processor cores that decode so many pictures."""
    return pictures_a_second / PICTURES_A_CORE


def with_batch(tune: TrainConfig, batch: int, accumulate: int) -> dict[str, int]:
    """The settings of `tune` that differ where a step is split into `accumulate` micro-batches of `batch` records."""
    settings = {"tune.batch": batch, "tune.accumulate": accumulate}
    former = {"tune.batch": tune.batch, "tune.accumulate": tune.accumulate}
    return {name: value for name, value in settings.items() if former[name] != value}
