"""One budget for methods of different kinds: the rank at which their serving states are equally large.

What counts is everything beyond the base that answering needs: experts in owned slots, routers, what the locator
knows, the tuned projector. All but the experts is given by the method, so the rank is the free knob; `alpha` stays, so
that experts of any rank learn in steps of one size (arXiv 2106.09685, section 4.1; docs/crossings.md has the numbers).
A mixture that grows by probes cannot know how much it will grow: its `probe.expects` says what to reckon with, and the
report holds the forecast against what was stored in the end.
"""

from __future__ import annotations

from dataclasses import replace

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.stacked import Stacked
from hidecmoe_jax.models.llava import Model

WITHIN = 0.05


def forecast(method: Method, model: Model, tasks: int) -> int:
    """Numbers beyond the base that the method will need to answer after `tasks` tasks.

    Raises:
      ConfigError: a method whose size nobody knows beforehand.
    """
    if not isinstance(method, Routed | Mixture | Stacked):
        raise ConfigError(
            f"the size of {method.name} cannot be forecast", where="equal budget",
            why=f"{type(method).__name__} is neither of the shipped families", remedy="compare it without --budget",
        )  # fmt: skip
    return sum(method.stored_after(model, tasks).values())


def at_budget(method: Method, model: Model, tasks: int, budget: int) -> Method:
    """The method with the rank at which its serving state is `budget` numbers, within 5 %; a method that stores nothing
    is left alone.

    Raises:
      ConfigError: no rank comes that near; names the nearest one.
    """
    if not forecast(method, model, tasks):
        return method
    one, two = (forecast(_ranked(method, rank), model, tasks) for rank in (1, 2))
    rank = max(1, round(1 + (budget - one) / (two - one)))
    found = _ranked(method, rank)
    size = forecast(found, model, tasks)
    if abs(size / budget - 1) > WITHIN:
        raise ConfigError(
            f"{method.name} does not fit the budget", where="equal budget",
            why=f"the nearest is rank {rank} with {size:,} numbers, {size / budget:.2f} of {budget:,}; allowed are "
            f"{1 - WITHIN:.2f} to {1 + WITHIN:.2f}",
            remedy="give a larger budget" if rank == 1 and size > budget else "give another budget",
        )  # fmt: skip
    return found


def rank_of(method: Method) -> int:
    """The rank that `at_budget` chose; a stacked method has one for both of its parts."""
    return method.below.lora.rank if isinstance(method, Stacked) else method.lora.rank


def _ranked(method: Method, rank: int) -> Method:
    if isinstance(method, Stacked):
        return replace(method, below=_ranked(method.below, rank), above=_ranked(method.above, rank))
    return replace(method, lora=replace(method.lora, rank=rank))
