"""What a pre-training stage leaves beside its checkpoint: a small JSON with its plan, its cost and its last
loss.

`STAGE.json` is written whenever `STAGE.npz` is, so a stage that was stopped and went on adds up its seconds,
and a plan that was changed on the way (more steps, another rate) is on record as two plans and not as the
last one.
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
    """Facts of a stage, or an empty dict where none were written."""
    path = folder / f"{stage}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_facts(
    folder: Path, stage: str, plan, *, before: dict, start: int, step: int, seconds: float, losses: Sequence
) -> None:
    """Writes `STAGE.json`, replaced atomically.

    Args:
      plan: the stage's dataclass with at least `steps` and `batch`.
      before: facts found when this process began, at step `start`; its seconds are added to.
      step: steps done in all.
      seconds: wall time of this process so far.
      losses: losses of the last steps, oldest first.
    """
    plans = [entry for entry in before.get("plans", []) if entry["from_step"] < start]
    if not plans or plans[-1]["plan"] != asdict(plan):
        plans.append({"from_step": start, "plan": asdict(plan)})
    facts = {
        "stage": stage,
        "steps": step,
        "batch": plan.batch,
        "samples": _samples(plans, step),
        "seconds": round(before.get("seconds", 0.0) + seconds, 1),
        "final_loss": round(float(np.mean([float(value) for value in losses[-WINDOW:]])), 4),
        "device": jax.devices()[0].device_kind,
        "plans": plans,
    }
    part = folder / f"{stage}.part.json"
    part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / f"{stage}.json")


def _samples(plans: list[dict], steps: int) -> int:
    """Samples seen by `steps` steps under plans that followed each other."""
    ends = [entry["from_step"] for entry in plans[1:]] + [steps]
    return sum((end - entry["from_step"]) * entry["plan"]["batch"] for entry, end in zip(plans, ends, strict=True))
