"""Thresholds of unknown inputs of a finished run, with what their records can promise, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.strict import plain
from hidecmoe_jax.locators.calibrate import carried
from hidecmoe_jax.locators.standard import LOWEST
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.methods.gates.unknown import BOTH, UNREACHED, threshold_records
from hidecmoe_jax.runs.edits import read
from hidecmoe_jax.runs.ledger import Ledger


def thresholds_of(method: Method, learner: Learner, ledger: Ledger, run: Path, names: Sequence[str]) -> dict[str, Any]:
    """A task's `threshold`, and what `Carried` says of it with `text` in words, by task; empty where none decides.

    Args:
      names: of the tasks; a lesson of several tasks has no threshold of its own.
    """
    if not method.gated or not method.traits.one_task_per_lesson:
        return {}
    memory = method.gate_memory(learner)
    calibrations = [entry.calibration for entry in read(run) if entry.calibration is not None]
    if BOTH not in memory or (method.gate.foreign is None and not calibrations):
        return {}
    limits = np.asarray(memory[BOTH])
    table = {}
    for task in method.learned(learner):
        share = method.gate.foreign
        records = threshold_records(method.gate, ledger.meta(task).get("samples", 0))
        for calibration in calibrations:
            if str(task) in calibration.records:
                share = calibration.false_alarms
                records = calibration.records[str(task)]
        if share is None or not records:
            continue
        promise = carried(records, share)
        # The extremes stand for no threshold and for one that nothing reaches.
        is_number = LOWEST < limits[task] < UNREACHED
        threshold = float(limits[task]) if is_number else None
        table[names[task]] = {"threshold": threshold, **plain(promise), "text": str(promise)}
    return table
