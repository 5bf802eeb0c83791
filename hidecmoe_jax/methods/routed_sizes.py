"""Sizes of a `Routed` method: parameters beyond the base, by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hidecmoe_jax.core import trees
from hidecmoe_jax.methods.base import Learner, no_parameters
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.methods.shared_slots import own_slots
from hidecmoe_jax.models.llava import Model, projector_leaves

if TYPE_CHECKING:
    from hidecmoe_jax.methods.routed import Routed


def stored_after(method: Routed, model: Model, tasks: int) -> dict[str, int]:
    """As `Routed.stored_after`."""
    if not tasks or method.growth == "none":
        return no_parameters()
    layers = model.config.layers
    expanded = len(method.expanded(layers))
    fused = layers - expanded
    per_fused = 1
    locator = 0
    if method.gated:
        per_fused = method.fusion_rule.stored(tasks)
        locator = tasks * method.gate.size(model)
    projector = 0
    if method.train_projector:
        projector = trees.count(projector_leaves(model))
    experts = expanded * tasks + fused * per_fused
    return no_parameters() | {
        "experts": experts * method.lora.size(model),
        "locator": locator,
        "projector": projector,
    }


def sizes(method: Routed, model: Model, learner: Learner) -> dict[str, dict[str, int]]:
    """As `Routed.sizes`."""
    tasks = len(method.learned(learner))
    if not tasks:
        return {"stored": no_parameters(), "archived": no_parameters(), "trained": no_parameters()}
    stored = method.stored_after(model, tasks)
    layer_expert = method.lora.size(model)
    expert = layer_expert * learner.past[LINEARS].layers
    projector = stored["projector"]
    stored["experts"] -= layer_expert * _merged_away(method, learner)
    archived = stored | {"experts": expert * tasks, "projector": projector * tasks}
    trained = no_parameters() | {"experts": expert, "projector": projector}
    return {"stored": stored, "archived": archived, "trained": trained}


def _merged_away(method: Routed, learner: Learner) -> int:
    """Experts that learned tasks lack in layers that store one for every task."""
    if not method.gated:
        return 0
    bank = learner.past[LINEARS]
    tasks = list(method.learned(learner))
    # A factor sum stores the fusion alone; product sums store every task's expert.
    stored_layers = range(bank.layers)
    if method.fusion == "factor_sum":
        stored_layers = method.expanded(bank.layers, learner.memory)
    slot_LN = own_slots(bank)
    slot_in_stored_LN = slot_LN[list(stored_layers)]
    is_lacking_LN = slot_in_stored_LN[:, tasks] < 0
    return int(is_lacking_LN.sum())
