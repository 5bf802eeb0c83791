"""Record of a pre-training stage beside its checkpoint: a small JSON with plan, cost and last loss.

`STAGE.json` is written whenever `STAGE.npz` is. The seconds of a stage that was stopped and continued are added up, and
a plan that was changed in between (more steps, another rate) is recorded as two plans.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

WINDOW = 50
"""Steps that the recorded loss is the mean of."""


def read_facts(folder: Path, stage: str) -> dict:
    """Record of a stage; empty if there is none."""
    path = folder / f"{stage}.json"
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def write_facts(
    folder: Path, stage: str, plan, *, before: dict, start: int, step: int, seconds: float, losses: Sequence
) -> None:
    """Writes `STAGE.json`, replaced atomically.

    Args:
      plan: the stage's dataclass with at least `steps` and `batch`.
      before: record as it was when this process began, at step `start`; its seconds are added to.
      step: steps done in all.
      seconds: wall time of this process so far.
      losses: losses of the last steps, oldest first.
    """
    # A plan that no step was done with is dropped.
    plans = [entry for entry in before.get("plans", []) if entry["from_step"] < start]
    if not plans or plans[-1]["plan"] != asdict(plan):
        plans.append({"from_step": start, "plan": asdict(plan)})
    last_losses = [float(value) for value in losses[-WINDOW:]]
    total_seconds = before.get("seconds", 0.0) + seconds
    facts = {
        "stage": stage,
        "steps": step,
        "batch": plan.batch,
        "samples": _samples(plans, step),
        "seconds": round(total_seconds, 1),
        "final_loss": round(float(np.mean(last_losses)), 4),
        "device": jax.devices()[0].device_kind,
        "plans": plans,
    }
    unfinished = folder / f"{stage}.part.json"
    unfinished.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / f"{stage}.json")


def _samples(plans: list[dict], steps: int) -> int:
    """Number of samples in `steps` steps under plans that followed each other."""
    ends = [entry["from_step"] for entry in plans[1:]] + [steps]
    samples = 0
    for entry, end in zip(plans, ends, strict=True):
        samples += (end - entry["from_step"]) * entry["plan"]["batch"]
    return samples
