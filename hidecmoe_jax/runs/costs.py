"""Floating-point operations of one query, from the shapes of the voices and from what the gate reads.

Three kinds of gates cost differently: one that is given the task costs nothing; one that reads a state of the frozen
base needs a second prefill (arXiv 2503.21227); one that reads CLIP's pooled features needs CLIP's text tower and
projections, which LLaVA alone does not compute.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.methods.base import FrozenFeatures, Learner, Method, Serving
from hidecmoe_jax.models import flops
from hidecmoe_jax.models.llava import Model


def flops_per_query(
    method: Method, model: Model, learner: Learner, *, tokens: int, pictures: int = 1
) -> dict[str, int | float]:
    """Floating-point operations of one prompt up to its first answer token.

    Args:
      tokens: length that prompts are padded to, image tokens included.
      pictures: of one prompt.

    Returns:
      forward_base: the plain model. forward_method: the same with the experts and what the gate needs of CLIP.
      locator_prefill: the frozen base's own pass over the prompt for the locator (towers shared), 0 without one.
      total and ratio (total / forward_base), tokens and pictures.
    """
    config = model.config
    reading = method.traits.reads
    serving = method.serve(model, learner)
    voices, tasks = _served_shapes(method, serving)
    # Where the task is named or none is learned, no gate runs.
    routed = tasks > 0 and not method.traits.needs_task_name
    experts = [_added(voice) for voice in voices]
    base = flops.forward(config, tokens, pictures=pictures)
    # A gate that stores something and reads no state of the base reads CLIP's pooled features, which LLaVA alone does
    # not compute.
    reads_clip = routed and reading is None and method.gate.size(model) > 0
    forward = flops.forward(config, tokens, pictures=pictures, clip=reads_clip, added=experts)
    if routed:
        forward += _scoring(method, model, learner, tasks)
    prefill = 0
    if routed and reading is not None:
        depth = reading.depth(config.layers)
        layers = depth if depth >= 0 else None
        read = pictures if reading.reads_pictures else 0
        prefill = flops.prefill(config, tokens, pictures=read, layers=layers)
    total = forward + prefill
    return {
        "tokens": tokens, "pictures": pictures, "forward_base": base, "forward_method": forward,
        "locator_prefill": prefill, "total": total, "ratio": total / base,
    }  # fmt: skip


def _scoring(method: Method, model: Model, learner: Learner, tasks: int) -> int:
    """Operations of the gate's decision for one query."""
    stored = method.sizes(model, learner)["stored"]
    return method.gate.flops(stored["locator"], model=model, tasks=tasks)


def _served_shapes(method: Method, serving: Serving) -> tuple[tuple[Voice, ...], int]:
    """Shapes of the voices for one sample, and the number of tasks that a decision weighs; nothing is computed."""
    config = serving.model.config
    image_width, text_width = config.pooled_widths
    present = jax.ShapeDtypeStruct((1,), jnp.bool_)
    image = jax.ShapeDtypeStruct((1, image_width), jnp.float32)
    text = jax.ShapeDtypeStruct((1, text_width), jnp.float32)
    reading = method.traits.reads
    width = config.width if reading is None else reading.width(config.width)
    state = jax.ShapeDtypeStruct((1, width), jnp.float32)
    pooled = Pooled(image, present, text, present)
    frozen = FrozenFeatures(pooled, state)
    task = None
    if method.traits.needs_task_name:
        task = jax.ShapeDtypeStruct((1,), jnp.int32)

    def serve(serving, frozen, task):
        decision = method.decide(serving, frozen, task)
        return method.voices(serving, decision), decision.weight_BN

    # Shapes alone: at 7B nothing may be allocated to count operations.
    voices, weight_BN = jax.eval_shape(serve, serving, frozen, task)
    return voices, weight_BN.shape[1]


def _added(voice: Voice) -> flops.Experts:
    """The experts of a voice as the formulas count them."""
    bank = voice.bank
    routing = voice.routing
    sites = {}
    for site, a_LDSR in bank.a.items():
        width = a_LDSR.shape[1]
        features = bank.b[site].shape[-1]
        sites[site] = (width, features)
    by_block = routing.router_LBDS is not None
    by_site = routing.site_routers is not None
    return flops.Experts(bank.layers, bank.slots, bank.rank, sites, by_block, by_site, routing.most)
