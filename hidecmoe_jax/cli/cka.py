"""`hidecmoe cka`: similarity of the tasks' features in every layer."""

from __future__ import annotations

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Run


def cka(run: Run, /, *, count: int = 500, legacy: bool = False) -> None:
    """Compare the features of the tasks' own experts layer by layer by CKA, as HiDe-LLaVA does to choose its layers.

    Examples:
      $ hidecmoe cka runs/hide
      $ hidecmoe cka runs/hide --legacy --count 50

    Args:
      run: run folder of a method that keeps one expert per task.
      count: questions answered with every expert.
      legacy: the published form (own questions, biased RBF); it is high even for unrelated features.
    """
    print_text(f"heat map: {hj.study(run, count=count, legacy=legacy)}")
