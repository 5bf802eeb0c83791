"""Ratios of operations, by the compiler's count at LLaVA-1.5-7B's shapes; nothing is allocated, nothing is run.

A compiler counts the body of a loop over layers once, so a program is counted with one layer and with one more, and the
difference is the price of a layer. A second layer of the same loop would be counted once with the first: two banks that
cover a layer each divide the stack into two loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import flops
import jax
import jax.numpy as jnp
import mixture_flops
from ratio_work import Size

from hidecmoe_jax.experts.routing import Voice, constant
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.models.config import LlavaConfig, llava_7b
from hidecmoe_jax.models.llama import site_shapes
from hidecmoe_jax.models.llava import Batch, Model, Prompt, answer_loss, logits, model_template

RANK = 64
TOKENS = 704
ANSWERS = 16


@dataclass(frozen=True)
class Case:
    """Shapes that are counted."""

    config: LlavaConfig
    tokens: int = TOKENS
    rank: int = RANK
    answers: int = ANSWERS


def case_of(size: Size) -> Case:
    """The 7B shapes, whatever is timed; the smallest size has its own."""
    if size.name == "smallest":
        return Case(size.config, size.tokens, 8, 4)
    return Case(replace(llava_7b(), text=None, remat=False))


def _operations(function: Callable, *inputs) -> float:
    return float(jax.jit(function).lower(*inputs).cost_analysis()["flops"])


def _model(case: Case, layers: int) -> Model:
    """A model of shapes with so many decoder layers (with none the leaves are those of one, and unused)."""
    thin = replace(case.config, decoder=replace(case.config.decoder, layers=max(layers, 1)))
    decoder = replace(case.config.decoder, layers=layers)
    return Model(model_template(thin).params, replace(case.config, decoder=decoder))


def _batch(case: Case) -> Batch:
    shape = jax.ShapeDtypeStruct
    patches = shape((1, 1, case.config.patches, case.config.patch_width), jnp.dtype(case.config.dtype))
    tokens = shape((1, case.tokens), jnp.int32)
    prompt = Prompt(tokens, shape((1, case.tokens), jnp.bool_), patches)
    columns = shape((1, case.answers), jnp.int32)
    return Batch(prompt, columns, columns, shape((1, case.answers), jnp.bool_))


def loss_of(model: Model, params: dict, batch: Batch, voices=()):
    """The answer loss, with the head on the answers alone."""
    return answer_loss(model.replace(params=params), batch, voices)[0]


def loss_on_all(model: Model, params: dict, batch: Batch, voices=()):
    """The same number with the head on all tokens."""
    log_p = jax.nn.log_softmax(logits(model.replace(params=params), batch.prompt, voices))
    row = jnp.arange(log_p.shape[0])[:, None]
    picked = log_p[row, batch.where_BA, batch.answer_BA]
    return -jnp.sum(jnp.where(batch.answer_mask_BA, picked, 0.0))


def lora_gradient(case: Case, layers: int, loss: Callable) -> float:
    """Operations of value and gradient of experts at all linears of so many layers, one bank a layer."""
    model = _model(case, layers)
    banks = []
    for layer in range(layers):
        blank = jax.eval_shape(lambda at=layer: Lora(rank=case.rank).blank(model, 1, range(at, at + 1)))
        banks.append(blank)

    def program(factors, params, batch, banks):
        gain = constant(jnp.ones((1, 1)))
        voices = [Voice(bank.with_factors(leaf), gain) for bank, leaf in zip(banks, factors, strict=True)]
        return loss(model, params, batch, voices)

    factors = [bank.factors for bank in banks]
    return _operations(jax.value_and_grad(program), factors, model.params, _batch(case), banks)


def _whole(case: Case, fewer: float, more: float, layers_of_fewer: int) -> float:
    """Operations at full depth from those with a number of layers and with one more."""
    return fewer + (case.config.layers - layers_of_fewer) * (more - fewer)


def lora_total(case: Case, loss: Callable = loss_of) -> float:
    """Operations of LoRA's value and gradient at full depth."""
    # The first layer needs no gradient of its input, and the last is computed at the answers alone.
    return _whole(case, lora_gradient(case, 2, loss), lora_gradient(case, 3, loss), 2)


def plain_total(case: Case, *, full: bool) -> float:
    """Operations at full depth of the forward pass, or of value and gradient of all of the decoder."""
    counts = []
    # The last layer is computed at the answers alone, so what a layer adds shows from the second one on.
    for layers in (1, 2):
        model = _model(case, layers)
        function = lambda params, batch, model=model: loss_of(model, params, batch)  # noqa: E731
        if full:

            def gradient(decoder, params, batch, model=model):
                return loss_of(model, {**params, "decoder": decoder}, batch)

            counts.append(
                _operations(jax.value_and_grad(gradient), model.params["decoder"], model.params, _batch(case))
            )
        else:
            counts.append(_operations(function, model.params, _batch(case)))
    return _whole(case, *counts, 1)


def ideal_of_lora(case: Case) -> float:
    """Gradient of LoRA / forward, by products alone: the base forward and to its input, experts and scores thrice."""
    decoder = case.config.decoder
    shapes = site_shapes(decoder).values()
    base = decoder.layers * sum(2 * case.tokens * d * f for d, f in shapes)
    base += 2 * case.answers * decoder.width * decoder.vocabulary
    experts = decoder.layers * sum(2 * case.tokens * case.rank * (d + f) for d, f in shapes)
    scores = decoder.layers * 4 * case.tokens**2 * decoder.heads * decoder.head_width
    return (2 * base + 3 * experts + 3 * scores) / (base + scores)


def training(size: Size, kind: str) -> dict:
    """Rows 1, 2 and 16."""
    case = case_of(size)
    forward = plain_total(case, full=False)
    lora = lora_total(case)
    full = plain_total(case, full=True)
    everywhere = lora_total(case, loss_on_all)
    ideal = ideal_of_lora(case)
    return {
        1: {"FLOPs / ideal": lora / forward / ideal, "FLOPs": lora / forward, "ideal": ideal},
        2: {"FLOPs": full / lora},
        16: {"bytes of logits": case.answers / case.tokens, "FLOPs": lora / everywhere},
    }


def routing(size: Size, kind: str) -> dict:
    """Rows 5, 6 and 19."""
    config, workload = flops.toy() if size.name == "smallest" else (llava_7b(), flops.Workload())
    merged = flops.extrapolated(config, workload, routed=False)
    routed = flops.extrapolated(config, workload, routed=True)
    moved = [flops.extrapolated(config, workload, routed=choice, what="bytes accessed") for choice in (True, False)]
    mixes = tuple(mixture_flops.Mix(experts, sites=mixture_flops.LINEARS) for experts in (4, 8))
    mixtures = mixture_flops.measure(config, workload.tokens, mixes)["mixtures"]
    depth = flops.full_depth(config, routed=True)
    towers = depth.vision * routed["layer"]["vision"] + depth.text * routed["layer"]["text"]
    added = {}
    for mix in mixtures:
        added[f"FLOPs added / ideal, rank {mix['total_rank']}"] = (mix["ratio"] - 1) / (mix["ideal"] - 1)
    return {
        5: {"FLOPs": routed["total"] / merged["total"], "bytes": moved[0]["total"] / moved[1]["total"]},
        6: added,
        19: {"FLOPs": (routed["total"] - towers) / routed["total"]},
    }
