"""Options of an export, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hidecmoe_jax.runs.config import RunConfig

Form = Literal["peft", "vllm", "hf", "hf-base", "hub"]
Trees = Literal["both", "since5", "before5"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
      form: `peft`, `vllm`, `hf`, `hf-base` or `hub`.
      tasks: names of those that are exported; empty for all.
      tree: LLaVA's module names in adapters: `since5` as in transformers 5, `before5` as in earlier versions, `both`
        one folder inside the other.
      row: number of tasks after which the run is exported; None for all.
      base: name of the base in adapters; None for that of the base's folder, without the folders above it.
      shard_gib: largest file of a checkpoint.
    """

    form: Form
    tasks: tuple[str, ...] = ()
    tree: Trees = "both"
    row: int | None = None
    base: str | None = None
    shard_gib: float = 4.0

    def base_of(self, config: RunConfig) -> str:
        """Name of a run's base; where a folder lies on this machine is nobody else's business."""
        return self.base or Path(config.base.path).name


Wish = ExportOptions  # its name before the layout of 2026-11; kept for callers
