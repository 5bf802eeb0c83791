"""What a query costs under a method, from what the opened run serves: the shapes of its voices and what its gate reads.

A gate either is told the task, or reads a state of the frozen base, which is a second prefill (arXiv 2503.21227), or
reads CLIP's pooled features, which LLaVA alone would not compute. That tells the three apart for any method.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.locators.gaussian import SharedGaussian
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
    serving, config = method.serve(model, learner), model.config
    voices, tasks = _heard(method, serving)
    found = tasks > 0 and not method.traits.needs_task_name
    base = flops.forward(config, tokens, pictures=pictures)
    own = flops.forward(
        config, tokens, pictures=pictures, clip=found and method.traits.reads is None, added=[_added(v) for v in voices]
    )
    gate = _finding(method, model, learner, tasks) if found else 0
    second = 0
    if found and method.traits.reads is not None:
        layers = method.traits.reads.layer if method.traits.reads.layer >= 0 else None
        second = flops.prefill(config, tokens, pictures=pictures, layers=layers)
    total = own + gate + second
    return {
        "tokens": tokens, "pictures": pictures, "forward_base": base, "forward_method": own + gate,
        "locator_prefill": second, "total": total, "ratio": total / base,
    }  # fmt: skip


def _finding(method: Method, model: Model, learner: Learner, tasks: int) -> int:
    """Operations of scoring one query: every number a gate stores (weights, means, covariances, kept features) meets it
    once. A covariance in common is factored and inverted for every call, which a batch shares, and whitens every task's
    deviation."""
    stored = 2 * method.sizes(model, learner)["stored"]["locator"]
    if not isinstance(getattr(method.gate, "by", None), SharedGaussian):
        return stored
    width = model.config.width
    return stored + 4 * width**3 // 3 + 2 * tasks * width**2


def _heard(method: Method, serving: Serving) -> tuple[tuple[Voice, ...], int]:
    """Shapes of what the decoder hears for one sample, and how many tasks a decision weighs; nothing is computed."""
    config = serving.model.config
    image_width, text_width = config.pooled_widths
    one = jax.ShapeDtypeStruct((1,), jnp.bool_)
    image = jax.ShapeDtypeStruct((1, image_width), jnp.float32)
    text = jax.ShapeDtypeStruct((1, text_width), jnp.float32)
    state = jax.ShapeDtypeStruct((1, config.width), jnp.float32)
    named = jax.ShapeDtypeStruct((1,), jnp.int32) if method.traits.needs_task_name else None

    def hear(serving, seen, named):
        decision = method.decide(serving, seen, named)
        return method.voices(serving, decision), decision.weight_BN

    voices, weight_BN = jax.eval_shape(hear, serving, FrozenFeatures(Pooled(image, one, text, one), state), named)
    return voices, weight_BN.shape[1]


def _added(voice: Voice) -> flops.Experts:
    bank = voice.bank
    sites = {site: (leaf.shape[1], bank.b[site].shape[-1]) for site, leaf in bank.a.items()}
    routing = voice.routing
    by_block, by_site = routing.router_LBDS is not None, routing.site_routers is not None
    return flops.Experts(bank.layers, bank.slots, bank.rank, sites, by_block, by_site)
