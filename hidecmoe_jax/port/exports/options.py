"""What a user wants written of a run, as plain data that every writer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["peft", "vllm", "hf", "hf-base", "hub"]
Trees = Literal["both", "since5", "before5"]


@dataclass(frozen=True)
class ExportOptions:
    """What is to be written.

    Attributes:
      form: `peft`, `vllm`, `hf`, `hf-base` or `hub`.
      tasks: names of those that are exported; empty for all.
      tree: LLaVA's module names that adapters carry: `since5` as transformers 5 has them, `before5` as it had them
        before, `both` one folder inside the other.
      row: the run as it was after so many tasks; None for now.
      base: what adapters call their base; None for the base's folder as the run names it.
      shard_gib: largest file of a checkpoint.
    """

    form: Form
    tasks: tuple[str, ...] = ()
    tree: Trees = "both"
    row: int | None = None
    base: str | None = None
    shard_gib: float = 4.0


Wish = ExportOptions  # its name before the layout of 2026-11; kept for callers
