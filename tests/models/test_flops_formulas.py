"""The closed formulas of what a query costs, against the compiler's own count: within one percent."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.models import flops
from hidecmoe_jax.models.config import LlavaConfig, llava_7b
from hidecmoe_jax.models.llama import site_shapes
from hidecmoe_jax.models.llava import Prompt, head, hidden, init_model
from hidecmoe_jax.models.reading import Reading, prompt_state

FILE = Path(__file__).resolve().parents[2] / "tools" / "bench" / "flops.py"
spec = importlib.util.spec_from_file_location("bench_flops_counted", FILE)
bench = importlib.util.module_from_spec(spec)
sys.modules["bench_flops_counted"] = bench
spec.loader.exec_module(bench)

TOKENS = 96
POCKET = LlavaConfig()
# A compiler counts the body of a scan once, so one decoder layer is the whole stack.
THIN = replace(
    POCKET,
    vision=replace(POCKET.vision, layers=2),
    text=replace(POCKET.text, layers=1),
    decoder=replace(POCKET.decoder, layers=1),
)


def counted(program, *shapes) -> float:
    return float(jax.jit(program).lower(*shapes).cost_analysis()["flops"])


def shaped(*sides, dtype="float32"):
    return jax.ShapeDtypeStruct(sides, jnp.dtype(dtype))


@pytest.fixture(scope="module")
def world():
    model = jax.eval_shape(lambda: init_model(THIN, jax.random.key(0)))
    patches = shaped(1, 1, THIN.vision.patches, THIN.vision.width)
    return model, Prompt(shaped(1, TOKENS, dtype="int32"), shaped(1, TOKENS, dtype="bool"), patches)


@pytest.mark.parametrize("clip", [False, True])
def test_a_forward_with_its_towers(clip):
    session = bench.Workload(tokens=TOKENS)
    depth = bench.Depth(2, 1, 0, 1) if clip else bench.Depth(1, 0, 1, 0)
    whole = bench.count(THIN, session, depth, routed=clip)
    added = [flops.Experts(1, session.experts, session.rank, site_shapes(THIN.decoder), False)] if clip else []
    assert flops.forward(THIN, TOKENS, clip=clip, added=added) == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("sites", [("ffn",), ("gate_proj", "up_proj", "down_proj"), ("q_proj", "ffn")])
def test_a_forward_with_token_routed_experts(world, sites):
    model, prompt = world
    shapes = site_shapes(THIN.decoder) | {"ffn": (THIN.decoder.width,) * 2}
    bank = Bank(
        {site: shaped(1, shapes[site][0], 9, 16) for site in sites},
        {site: shaped(1, 9, 16, shapes[site][1]) for site in sites},
        shaped(1, 9, dtype="int32"), scale=2.0,
    )  # fmt: skip
    voice = Voice(bank, Routing(shaped(1, 1, 9), shaped(1, 1, THIN.decoder.width, 9), 2))

    def program(model, prompt, voice):
        return head(model, hidden(model, prompt, (voice,))[0][:, -1])

    added = flops.Experts(1, 9, 16, {site: shapes[site] for site in sites}, True)
    tower = flops.vision(THIN.vision, 1, pooled=False)
    whole = counted(program, model, prompt, voice)
    plain = flops.forward(THIN, TOKENS) - tower
    assert flops.forward(THIN, TOKENS, added=[added]) - tower == pytest.approx(whole, rel=0.01)
    assert plain < 0.95 * whole  # so a formula that forgot the experts would not pass


@pytest.mark.parametrize("layer", [-1, 1])
def test_the_locator_s_prefill(world, layer):
    whole = counted(lambda model, prompt: prompt_state(model, prompt, Reading(layer)), *world)
    layers = None if layer < 0 else layer
    assert flops.prefill(THIN, TOKENS, pictures=1, layers=layers) == pytest.approx(whole, rel=0.01)


def test_depth_and_pictures_multiply():
    tower = flops.vision(POCKET.vision, 5, pooled=False) + flops.projector(POCKET)
    assert flops.forward(POCKET, TOKENS, pictures=3) - flops.forward(POCKET, TOKENS, pictures=1) == 2 * tower
    deeper = replace(POCKET, decoder=replace(POCKET.decoder, layers=POCKET.decoder.layers + 4))
    more = flops.forward(deeper, TOKENS) - flops.forward(POCKET, TOKENS)
    assert more == 4 * flops.decoder_layer(POCKET.decoder, TOKENS)
    big = llava_7b()  # by hand: two operations per weight and token, two T x T products a layer
    products = 2 * 640 * (4 * 4096**2 + 3 * 4096 * 11008) + 4 * 640**2 * 4096
    assert flops.decoder_layer(big.decoder, 640) == pytest.approx(products, rel=0.01)
