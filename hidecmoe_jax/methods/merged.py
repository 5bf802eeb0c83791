"""Everything merged into one expert: every task trains a LoRA alone, and one LoRA of them all answers.

The rules work on the updates a_i b_i themselves, site by site and layer by layer (`experts/combine.py`): their
`average`; `ties` (TIES-Merging, arXiv 2306.01708: trim each to its largest entries, elect a sign, mean of those that
agree); `dare` (DARE, arXiv 2311.03099: drop entries at random, enlarge the rest, average); `dare_ties` (dropping, then
electing). The result is compressed to the best update of `merged_rank`: as wide as all experts together by default, or
as one, which then no longer grows with the tasks.

Different from the papers: they merge all weights of fine-tuned models, and trim each model's whole vector at once; here
a matrix is trimmed by itself and what no product of `merged_rank` can hold is lost. Trained is one expert a task,
stored to answer is the merged one, archived are all. The merge is computed when answers begin, not stored: on a CPU
minutes for a layer of a 7B model, except for `average`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.combine import combine
from hidecmoe_jax.methods.base import Learner, Serving, no_parameters, with_experts_folded, with_leaves
from hidecmoe_jax.methods.fusion import owning_tasks, slot_of
from hidecmoe_jax.methods.gates.anchors import NamedGate
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.summed import Summed
from hidecmoe_jax.models.llava import Model

Rule = Literal["average", "ties", "dare", "dare_ties"]
MODES: dict[Rule, str] = {
    "average": "svd",
    "ties": "ties_svd",
    "dare": "dare_linear_svd",
    "dare_ties": "dare_ties_svd",
}
"""Modes of `combine`, by rule."""


@dataclass(frozen=True)
class Merged(Summed):
    """Experts trained alone, and merged.

    Attributes:
      rule: how they are merged.
      merged_rank: of the result; null for the ranks of all tasks together, which loses nothing of an average.
      density: share of entries that trimming and dropping keep (0.2 in TIES-Merging).
      volume: multiplies the result (lambda of task arithmetic).
      draw: seed of what DARE drops.
    """

    kind: ClassVar[str] = "merged"
    name: str = "merged"
    rule: Rule = "average"
    merged_rank: int | None = None
    density: float = 0.2
    volume: float = 1.0
    draw: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.merged_rank is not None and self.merged_rank < 1:
            raise ValueError(f"merged_rank {self.merged_rank} must be at least 1, or null for that of all experts")
        if not 0 < self.density <= 1 or not 0 < self.volume < float("inf"):
            raise ValueError(f"density {self.density} must be in (0, 1] and volume {self.volume} above 0 and finite")
        if not 0 <= self.draw < 2**32:
            raise ValueError(f"draw {self.draw} must be from 0 to 2**32 - 1")

    @property
    def inner(self) -> Routed:
        """One expert a task, each trained alone."""
        return Routed(
            name=self.name, lora=self.lora, expand="none", fusion="product_mean", gate=NamedGate(),
            train_projector=self.train_projector,
        )  # fmt: skip

    def variants(self) -> dict[str, Merged]:
        """The same experts under every rule, by its name."""
        return {rule: replace(self, rule=rule) for rule in MODES}

    def merge(self, bank: Bank) -> Bank:
        """The experts of all tasks as one, a bank of one slot owned by FUSED."""
        tasks = owning_tasks(bank)
        slots = tuple(slot_of(task) for task in tasks)
        # TIES is a mean by itself, of weights of 1.
        weight = self.volume if self.rule in ("ties", "dare_ties") else self.volume / len(tasks)
        return combine(
            bank, slots, mode=MODES[self.rule], weights=(weight,) * len(tasks), density=self.density,
            rank=self._result_rank(len(tasks)), key=jax.random.key(self.draw),
        )  # fmt: skip

    def _result_rank(self, tasks: int) -> int:
        """Rank of the merged expert of so many tasks."""
        return self.merged_rank or self.lora.rank * tasks

    def serve(self, model: Model, learner: Learner) -> Serving:
        """The base with the merged expert folded in."""
        model = with_leaves(model, learner.shared)
        if not self.learned(learner):
            return Serving(model, None, None, learner.memory)
        merged = self.merge(learner.past[LINEARS])
        gain_L1 = jnp.ones(merged.owner_LS.shape)
        return Serving(with_experts_folded(model, merged, gain_L1), None, None, learner.memory)

    def lora_bank(self, learner: Learner) -> Bank | None:
        """The merged expert; None where nothing was learned."""
        if not self.learned(learner):
            return None
        return self.merge(learner.past[LINEARS])

    def lora_gains(self, learner: Learner, task: int) -> np.ndarray:
        """1 in every layer, whatever the task."""
        return np.ones((learner.past[LINEARS].layers, 1), np.float32)

    @property
    def rank(self) -> int:
        """The rank that sets what is stored: that of the merged expert, or where it follows from them of one task's."""
        return self.merged_rank or self.lora.rank

    def with_rank(self, rank: int) -> Merged:
        """The method with another `rank`."""
        if self.merged_rank is None:
            return super().with_rank(rank)
        return replace(self, merged_rank=rank)

    def stored_after(self, model: Model, tasks: int) -> dict[str, int]:
        """Parameters beyond the base that answering needs after `tasks` tasks, by kind: one merged expert."""
        counts = no_parameters() | self.inner.stored_after(model, tasks)
        if not tasks:
            return counts
        merged = replace(self.lora, rank=self._result_rank(tasks))
        return counts | {"experts": merged.size(model) * model.config.layers}

    def sizes(self, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
        """As the inner method, but for what is stored to answer."""
        sizes: dict[str, Any] = self.inner.sizes(model, learner)
        return sizes | {"stored": self.stored_after(model, len(self.learned(learner)))}
