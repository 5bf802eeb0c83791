"""The frozen base in int8 (`scale.bits: 8`), behind a check against the base as it was loaded.

The check is the mean loss of the answers to the first training records, before anything is learned, with both bases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.models.llava import Batch, Model, answer_loss
from hidecmoe_jax.models.quantised import quantise_model

CHECKED_RECORDS = 8
WARN_ABOVE = 0.05
"""Change of the mean loss, in nats per answer token, from which on a warning is printed."""
REFUSE_ABOVE = 0.5
"""Change of the mean loss from which on the base is refused."""

_loss = jax.jit(answer_loss)


def quantised_base(model: Model, batch: Batch, say: Callable[[str], None]) -> tuple[Model, dict[str, Any]]:
    """The model in int8, and what the check found. The kernels of `model` are deleted, for both rarely fit a device.

    Raises:
      ConfigError: the loss changes by more than `REFUSE_ABOVE`, or the package that quantises is not installed.
    """
    before = _mean_loss(model, batch)
    model = quantise_model(model, consume=True)
    after = _mean_loss(model, batch)
    change = after - before
    facts = {"records": len(np.asarray(batch.where_BA)), "loss": before, "loss_int8": after}
    line = f"loss of the first records {before:.4f}, in int8 {after:.4f}"
    # A loss that is not a number is refused too.
    if not abs(change) <= REFUSE_ABOVE:
        raise ConfigError(
            "the base loses too much in int8", where="scale.bits: 8",
            why=f"{line}; allowed: a change of {REFUSE_ABOVE} nats per token", remedy="--set scale.bits=16",
        )  # fmt: skip
    if abs(change) > WARN_ABOVE:
        say(f"warning: int8 base: {line}, which is more than {WARN_ABOVE} nats per token apart")
    else:
        say(f"int8 base: {line}")
    return model, facts


def _mean_loss(model: Model, batch: Batch) -> float:
    total, count, _ = _loss(model, batch)
    return float(total) / max(int(count), 1)
