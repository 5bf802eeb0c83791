"""Shape of one LoRA expert and the family names of experts in a learner."""

from __future__ import annotations

from dataclasses import dataclass

from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.models.llama import SITES
from hidecmoe_jax.models.llava import Model, model_sites

PARALLEL = "ffn"
"""The site beside the whole feed-forward block: reads what the block reads, writes what it writes."""

LINEARS = "linears"
"""Family name, in a learner, of experts at the linears of every decoder layer."""


@dataclass(frozen=True)
class Lora:
    """Shape of one task's expert (arXiv 2106.09685).

    Attributes:
      rank: inner width R of the two factors, [D, R] and [R, F].
      alpha: `alpha / rank` scales the expert's output (2.0 in HiDe's recipe).
      dropout: share of the expert's input that is dropped in training.
      sites: names of the linears that get an expert, or `ffn` for one beside the whole feed-forward block.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    sites: tuple[str, ...] = SITES

    def __post_init__(self):
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"rank {self.rank} must be at least 1 and dropout {self.dropout} in [0, 1)")
        known = (*SITES, PARALLEL)
        unknown = sorted(set(self.sites) - set(known))
        if unknown or not self.sites:
            raise ValueError(f"sites {unknown or 'empty'}: known are {', '.join(known)}")

    def require_linears(self) -> None:
        """Raises ValueError where an expert has no weight of the base to be folded into."""
        if PARALLEL in self.sites:
            raise ValueError(f"lora.sites: an expert at {PARALLEL!r} has no weight to be folded into; use linears")

    def shapes(self, model: Model) -> dict[str, tuple[int, int]]:
        """Input and output width of every site."""
        width = model.config.width
        known = model_sites(model.config) | {PARALLEL: (width, width)}
        return {site: known[site] for site in self.sites}

    def blank(self, model: Model, slots: int, layers: range | None = None) -> Bank:
        """A bank of `slots` EMPTY slots in consecutive decoder layers; None for all of them."""
        if layers is None:
            layers = range(model.config.layers)
        return surgery.blank(
            self.shapes(model), layers=len(layers), slots=slots, rank=self.rank, scale=self.alpha / self.rank,
            first_layer=layers.start,
        )  # fmt: skip

    def size(self, model: Model) -> int:
        """Parameters of one expert in one layer, R (D + F) summed over sites."""
        shapes = self.shapes(model).values()
        # a is [D, R] and b is [R, F]: together R * (D + F).
        widths = [sum(shape) for shape in shapes]
        return self.rank * sum(widths)
