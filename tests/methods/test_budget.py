"""Equal budgets: forecasts against sizes counted after learning, and ranks that meet a budget or say why not."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, tiny_model

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import pool
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.locators.gaussian import NearestMean
from hidecmoe_jax.methods.budget import WITHIN, at_budget, forecast, rank_of
from hidecmoe_jax.methods.ewc import Ewc
from hidecmoe_jax.methods.gates.anchors import NamedGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.growth.layer_choice import LayerChoice
from hidecmoe_jax.methods.growth.probe import Probe
from hidecmoe_jax.methods.incmoe import IncMoe
from hidecmoe_jax.methods.lora import PARALLEL, Lora
from hidecmoe_jax.methods.merged import Merged
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.moelora import MoeLora
from hidecmoe_jax.methods.olora import OLora
from hidecmoe_jax.methods.reglora import RegLora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.stacked import LowerLayers, Stacked

BLOCK = Lora(rank=2, alpha=4.0, sites=(PARALLEL,))
METHODS = {
    "hide": Routed(),
    "product_mean": Routed(fusion="product_mean", train_projector=False),
    "chosen": Routed(expand=LayerChoice(2), gate=LocatorGate(by=NearestMean())),
    "per_task": Routed(expand="all", gate=NamedGate()),
    "sequential": Routed(growth="shared"),
    "stacked": Stacked(below=LowerLayers(layers=2), above=Mixture(lora=BLOCK, gate=LocatorGate(by=NearestMean()))),
    "cmoe_uniform": Mixture(lora=BLOCK, growth="uniform", start="blank", gate=LocatorGate(by=NearestMean())),
    "moelora": MoeLora(experts=2),
    "ewc": Ewc(),
    "o-lora": OLora(),
    "reglora": RegLora(),
    "incmoe": IncMoe(),
    "merged": Merged(),
    "merged into a fixed rank": Merged(merged_rank=16),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model(0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [40_000, 123_456])
def test_the_rank_that_meets_a_budget(model, name, budget):
    found = at_budget(METHODS[name], model, 3, budget)
    assert abs(forecast(found, model, 3) / budget - 1) <= WITHIN
    assert bare(found) == bare(METHODS[name])


def bare(method):
    """The method with experts of rank 1, whatever rank they had."""
    if isinstance(method, Stacked):
        assert method.below.lora.rank == method.above.lora.rank == rank_of(method) or method == METHODS["stacked"]
        return replace(method, below=bare(method.below), above=bare(method.above))
    if isinstance(method, Ewc):
        return replace(method, inner=bare(method.inner))
    if isinstance(method, Merged) and method.merged_rank is not None:
        return replace(method, merged_rank=1)
    return replace(method, lora=replace(method.lora, rank=1))


def test_a_forecast_of_uniform_growth_is_what_is_counted_afterwards(model):
    method, tasks = METHODS["cmoe_uniform"], 3
    learner = method.init(model, 4)
    past, memory = learner.past[POOL], learner.memory
    for task in range(tasks):
        own = method.slots(task)
        young = method.lora.blank(model, len(own))
        past = pool.write_slots(past, own.start, young.replace(owner_LS=jnp.full_like(young.owner_LS, task)))
        memory = memory.replace(visible=memory.visible.at[task].set(past.owner_LS >= 0))
    grown = learner.replace(past={POOL: past}, memory=memory)
    assert method.stored_after(model, tasks) == method.sizes(model, grown)["stored"]
    assert method.stored_after(model, 0) == method.sizes(model, learner)["stored"]


def test_probing_is_reckoned_with_as_expected(model):
    layers, size = TINY.decoder.layers, BLOCK.size(model)
    half = Mixture(lora=BLOCK, probe=Probe(expects=0.5)).stored_after(model, 3)
    assert half["experts"] == size * layers * (2 + 2 * 0.5)
    assert half["routers"] == TINY.decoder.width * layers * (2 + 2.5 + 3)


def test_what_does_not_fit_is_refused_with_the_nearest_rank(model):
    with pytest.raises(ConfigError, match="(?s)rank 1 with .* larger budget"):
        at_budget(Routed(), model, 3, 1000)
    assert at_budget(Routed(growth="none"), model, 3, 1000) == Routed(growth="none")


def test_a_method_of_another_family_has_no_forecast(model):
    class Own:
        name = "own"

    with pytest.raises(ConfigError, match="cannot be forecast"):
        forecast(Own(), model, 2)
    assert np.isfinite(forecast(Routed(), model, 2))
