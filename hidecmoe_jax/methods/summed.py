"""Methods in which every task trains an expert of its own and no input chooses among them: all are always active.

Such a method needs no task at inference and stores no gate. Its experts are frozen after their task, so a sum or a
merge of them can be made anew when a task is added or could not be loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from hidecmoe_jax.methods.base import Traits
from hidecmoe_jax.methods.gates.anchors import NamedGate
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.routed_wrapper import RoutedWrapper


@dataclass(frozen=True)
class Summed(RoutedWrapper):
    """The sum of all tasks' experts; each trains on top of the sum of those before, which is frozen.

    Attributes:
      lora: shape of one task's expert.
      train_projector: whether the projector is tuned along, shared by all tasks.
    """

    kind: ClassVar[str] = "summed"
    name: str = "summed"
    lora: Lora = Lora()
    train_projector: bool = False

    def __post_init__(self):
        self.lora.require_linears()

    @property
    def inner(self) -> Routed:
        """One expert a task, all in one sum; the gate has nothing to choose and stores nothing."""
        return Routed(
            name=self.name, lora=self.lora, expand="none", fusion="product_sum", gate=NamedGate(),
            train_projector=self.train_projector, train_as="served",
        )  # fmt: skip

    @property
    def gate(self) -> None:
        """None: there is no task to choose."""
        return None

    @property
    def gated(self) -> bool:
        """There is no task to choose."""
        return False

    @property
    def traits(self) -> Traits:
        """Experts are kept, and answers change with every task."""
        return Traits(keeps_old_experts=True)

    def variants(self) -> dict[str, Summed]:
        """No other way to serve the same experts."""
        return {}

    def with_rank(self, rank: int) -> Summed:
        """The method with experts of another rank."""
        return replace(self, lora=replace(self.lora, rank=rank))
