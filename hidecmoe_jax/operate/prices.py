"""What a request, a review and a misrouting cost, and which limits a stage must keep; read from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.yaml_text import read_yaml


@dataclass(frozen=True)
class Limits:
    """When a pilot may be widened, and when it must be stopped.

    Attributes:
      answers, reviews: least number of answers, and of reviews of those drawn, before anything is decided.
      misrouting: highest upper end of the interval of the misrouting rate.
      unknown: highest share of answers to inputs of no known task.
      p95_milliseconds: within which 95 of 100 answers come.
      stop_misrouting: stop where even the lower end of the interval is above it.
    """

    answers: int = 200
    reviews: int = 50
    misrouting: float = 0.05
    unknown: float = 0.2
    p95_milliseconds: float = 2000.0
    stop_misrouting: float = 0.2

    def __post_init__(self):
        for name in ("misrouting", "unknown", "stop_misrouting"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}, allowed 0..1")


@dataclass(frozen=True)
class Prices:
    """Prices in one currency.

    Attributes:
      machine_hour: an hour of the machine that serves.
      review: one decision of a person.
      misrouting: one answer by the wrong task, where `confusions` has no price for the pair.
      confusions: the same by the task that answered, and by the right one (`unknown` for no task).
      gigabyte_month: a month of one GB of disk.
    """

    currency: str = "JPY"
    machine_hour: float = 0.0
    review: float = 0.0
    misrouting: float = 0.0
    confusions: Mapping[str, dict[str, float]] = field(default_factory=dict)
    gigabyte_month: float = 0.0
    limits: Limits = Limits()

    def __post_init__(self):
        for name in ("machine_hour", "review", "misrouting", "gigabyte_month"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name):g}, a price is 0 or more")

    def of_confusion(self, task: str, right: str) -> float:
        """What one answer of `task` to an input of `right` costs."""
        return self.confusions.get(task, {}).get(right, self.misrouting)


def read_prices(path: str | Path) -> Prices:
    """Returns the prices of a YAML file.

    Raises:
      ConfigError: the file cannot be read, or has an unknown key or a wrong value.
    """
    return strict.build(Prices, read_yaml(path), str(path))
