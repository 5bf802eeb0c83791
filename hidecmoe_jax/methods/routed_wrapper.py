"""A wrapper around a `Routed` method that serves its experts as they are: they are LoRA, and the rank sets the size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jax import Array

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.wrapper import Wrapper
from hidecmoe_jax.models.llava import Model


class RoutedWrapper(Wrapper):
    """Forwards the capabilities `AsLora` and `Resizable` as well."""

    inner: Routed

    @property
    def rank(self) -> int:
        """Rank of the experts."""
        return self.inner.rank

    def with_rank(self, rank: int) -> Method:
        """The method with experts of another rank. A wrapper whose `inner` is a property overrides it."""
        return replace(self, inner=self.inner.with_rank(rank))

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """As the inner method."""
        return self.inner.stored_after(model, tasks)

    def expanded(self, layers: int, memory: Any = None) -> tuple[int, ...]:
        """As the inner method."""
        return self.inner.expanded(layers, memory)

    def lora_bank(self, learner: Learner) -> Bank | None:
        """As the inner method."""
        return self.inner.lora_bank(learner)

    def lora_gains(self, learner: Learner, task: int) -> np.ndarray:
        """As the inner method."""
        return self.inner.lora_gains(learner, task)

    def archived_expert(self, model: Model, factors: dict[str, Array]) -> Bank:
        """As the inner method."""
        return self.inner.archived_expert(model, factors)


def require_shared(inner: Routed, kind: str) -> None:
    """Raises ValueError unless all tasks train one expert in turn, which is what a regulariser or replay protects."""
    if inner.growth != "shared" or inner.union:
        raise ValueError(f"{kind} needs an inner method with growth 'shared' and without union: one expert forgets")
