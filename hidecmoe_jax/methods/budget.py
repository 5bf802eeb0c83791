"""Equal budgets: the rank at which the serving states of different methods are equally large.

Everything beyond the base that answering needs is counted: experts in owned slots, routers, the gate's arrays, the
tuned projector. All but the experts follows from the method, so the rank is the free parameter; `alpha` stays, so that
experts of any rank learn in steps of one size (arXiv 2106.09685, section 4.1; docs/crossings.md has the numbers).
The growth of a mixture that probes is not known beforehand: `probe.expects` is the share of layers that the forecast
takes as expanded, and the report compares the forecast with what was stored in the end.
"""

from __future__ import annotations

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.methods.capabilities import Resizable
from hidecmoe_jax.models.llava import Model

WITHIN = 0.05


def forecast(method: Method, model: Model, tasks: int) -> int:
    """Parameters beyond the base that the method will need to answer after `tasks` tasks.

    Raises:
      ConfigError: a method whose size cannot be forecast.
    """
    by_kind = _resizable(method).stored_after(model, tasks)
    return sum(by_kind.values())


def at_budget(method: Method, model: Model, tasks: int, budget: int) -> Method:
    """The method with the rank at which its serving state is `budget` parameters, within 5 %; a method that stores
    nothing is returned unchanged.

    Raises:
      ConfigError: no rank comes that near (names the nearest one), or the size cannot be forecast.
    """
    if not forecast(method, model, tasks):
        return method
    resizable = _resizable(method)
    # The size is a linear function of the rank: two points give it.
    at_one = forecast(resizable.with_rank(1), model, tasks)
    at_two = forecast(resizable.with_rank(2), model, tasks)
    per_rank = at_two - at_one
    exact_rank = 1 + (budget - at_one) / per_rank
    rank = max(1, round(exact_rank))
    resized = resizable.with_rank(rank)
    size = forecast(resized, model, tasks)
    if abs(size / budget - 1) > WITHIN:
        raise ConfigError(
            f"{method.name} does not fit the budget", where="equal budget",
            why=f"the nearest is rank {rank} with {size:,} numbers, {size / budget:.2f} of {budget:,}; allowed are "
            f"{1 - WITHIN:.2f} to {1 + WITHIN:.2f}",
            remedy="give a larger budget" if rank == 1 and size > budget else "give another budget",
        )  # fmt: skip
    return resized


def rank_of(method: Method) -> int:
    """The rank that `at_budget` chose.

    Raises:
      ConfigError: as `forecast`.
    """
    return _resizable(method).rank


def _resizable(method: Method) -> Resizable:
    if isinstance(method, Resizable):
        return method
    raise ConfigError(
        f"the size of {method.name} cannot be forecast", where="equal budget",
        why="a method of this kind does not state how its size follows from its rank",
        remedy="compare it without --budget",
    )  # fmt: skip
