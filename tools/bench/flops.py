"""Cost of routing: floating-point operations of HiDe's routed forward pass against the same model with merged experts.

Counted by the compiler (`lowered.cost_analysis()`), on shapes only: no weights are allocated. A compiler counts the
body of a scan once, so the programs here are unrolled: every kind of layer (vision, text, merged decoder, routed
decoder) appears once, then once more, and the difference is the price of that kind; the full depth is the sum. The
merged model runs the towers as LLaVA does (vision up to the feature layer, no text tower, no gate) and folds all
experts into its weights. The routed model adds the vision tower's last layer and class projection, the text tower,
the cosine gate, and low-rank experts at the top layer. Both compute the logits of the last position only, as a
prefill does, which makes the routed part weigh more, not less.

    python tools/bench/flops.py        LLaVA-1.5-7B, 640 tokens, six experts of rank 8; writes docs/benchmarks
    python tools/bench/flops.py --toy  a toy, also counted in full to check the extrapolation
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib
from jax.extend.core import jaxprs_in_params

from hidecmoe_jax.experts.routing import Routing
from hidecmoe_jax.locators.anchors import Anchors, Pooled, gate
from hidecmoe_jax.models import clip
from hidecmoe_jax.models.config import LlavaConfig, llava_7b
from hidecmoe_jax.models.layers import RMSNorm
from hidecmoe_jax.models.llama import DecoderBlock, site_shapes
from hidecmoe_jax.models.llava import Model, Prompt, embed, head, init_model
from hidecmoe_jax.models.voices import LayerVoice

LIMIT = 1.005
RESULT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "flops.json"


@dataclass(frozen=True)
class Workload:
    """One picture, `tokens` positions in all, `experts` of `rank` at the seven linears of the top layer."""

    tokens: int = 640
    experts: int = 6
    rank: int = 8
    batch: int = 1


@dataclass(frozen=True)
class Depth:
    """How many layers of each kind a program has."""

    vision: int
    text: int
    merged: int
    routed: int


def toy() -> tuple[LlavaConfig, Workload]:
    """A few layers of each kind, wide enough to look like the real one."""
    real = llava_7b()
    vision = replace(real.vision, image_size=28, width=32, layers=4, heads=2, hidden=64, projection=16)
    text = replace(real.text, vocabulary=50, context=8, width=16, layers=3, heads=2, hidden=32, projection=16)
    text = replace(text, eos_token=2)
    decoder = replace(real.decoder, vocabulary=60, width=64, hidden=96, layers=4, heads=4, kv_heads=4, head_width=16)
    config = replace(real, vision=vision, text=text, decoder=decoder, image_token=4)
    return config, Workload(tokens=12)


def full_depth(config: LlavaConfig, *, routed: bool) -> Depth:
    """Layers of the whole forward. Merged stops at the feature layer, routed needs the last layer as well."""
    vision = config.vision.layers
    layers = config.decoder.layers
    if routed:
        return Depth(vision, config.text.layers, layers - 1, 1)
    # Negative layers count from the last of the states, which are one more than the blocks.
    feature_layer = config.feature_layer % (vision + 1)
    return Depth(feature_layer, 0, layers, 0)


def _vision(params: dict, config: LlavaConfig, pixels, depth: Depth, *, routed: bool):
    """Patches and, for the gate, the projected class token; `depth.vision` blocks in a Python loop."""
    v = config.vision
    x = clip.VisionStem(v, "float32").apply({"params": params["stem"]}, pixels.astype(jnp.dtype(config.dtype)))
    block = clip.ClipBlock(v.heads, v.hidden, v.activation, v.epsilon, "float32")
    layer = _first(params["layers"])
    states = [x]
    for _ in range(depth.vision):
        states.append(block.apply({"params": layer}, states[-1], None))
    if not routed:
        return states[-1][:, 1:], None
    last = clip.ClipHead(v.projection, v.epsilon, "float32")
    return states[-2][:, 1:], last.apply({"params": params["head"]}, states[-1][:, 0].astype(jnp.float32))[1]


def _text(params: dict, config: LlavaConfig, ids, depth: Depth):
    """The end-of-text state; `depth.text` blocks in a Python loop."""
    t = config.text
    causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))[None, None]
    x = clip.TextStem(t, "float32", config.dtype).apply({"params": params["stem"]}, ids)
    block = clip.ClipBlock(t.heads, t.hidden, t.activation, t.epsilon, "float32")
    layer = _first(params["layers"])
    for _ in range(depth.text):
        x = block.apply({"params": layer}, x, causal)
    end = jnp.argmax(ids == t.eos_token, axis=1)
    pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    return clip.ClipHead(t.projection, t.epsilon, "float32").apply({"params": params["head"]}, pooled)[0]


def _first(stacked: dict) -> dict:
    """One layer of a stack of one: a reshape, so the count holds no copying of weights."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[1:]), stacked)


def _decoder(params: dict, config: LlavaConfig, x, depth: Depth, voice: LayerVoice | None):
    """Final hidden state of the last position; merged blocks first, routed ones on top."""
    c = config.decoder
    length = x.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length), x.shape[:2])
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    block = DecoderBlock(c, "float32")
    layer = {"params": _first(params["layers"])}
    for voices in [()] * depth.merged + [(voice,)] * depth.routed:
        x, _, _ = block.apply(layer, x, positions, causal, voices, lambda k, v: (k, v, None))
    return RMSNorm(c.epsilon).apply({"params": params["norm"]}, x[:, -1:])


def forward(params, inputs, config: LlavaConfig, workload: Workload, depth: Depth, *, routed: bool):
    """Logits [B, 1, V] of the unrolled program; the `depth` layers of a kind share one layer's weights."""
    patches, image = _vision(params["vision"], config, inputs["pixels"], depth, routed=routed)
    voice = None
    if routed:
        text = _text(params["text"], config, inputs["text"], depth)
        present = jnp.ones((workload.batch,), bool)
        pooled = Pooled(image, present, text, present)
        scores = gate(inputs["anchors"], pooled, jnp.ones((workload.experts,), bool))
        routing = Routing(scores.weight_BN[None])
        voice = LayerVoice(inputs["a"], inputs["b"], routing.gain_LBS[0], None, None, 2.0, 0, 0.0)
    model = Model(params, config)
    x = embed(model, Prompt(inputs["tokens"], inputs["tokens"] >= 0, patches[:, None]))
    return head(model, _decoder(params["decoder"], config, x, depth, voice))


def abstract_inputs(config: LlavaConfig, workload: Workload) -> tuple[dict, dict]:
    """Shapes and dtypes of a one-layer model's parameters and of one batch; nothing is allocated."""
    thin = replace(
        config,
        vision=replace(config.vision, layers=1),
        text=replace(config.text, layers=1),
        decoder=replace(config.decoder, layers=1),
    )
    params = jax.eval_shape(lambda: nn.unbox(init_model(thin, jax.random.key(0)).params))
    batch = workload.batch
    experts = workload.experts
    rank = workload.rank
    sites = site_shapes(config.decoder)
    size = config.vision.image_size

    def shape(*sides, dtype="float32"):
        return jax.ShapeDtypeStruct(sides, jnp.dtype(dtype))

    counts = shape(experts, dtype="int32")
    inputs = {
        "pixels": shape(batch, size, size, 3),
        "tokens": shape(batch, workload.tokens, dtype="int32"),
        "text": shape(batch, config.text.context, dtype="int32"),
        "anchors": Anchors(shape(experts, config.vision.projection), counts, shape(experts, config.text.width), counts),
        "a": {site: shape(d, experts, rank, dtype=config.param_dtype) for site, (d, _) in sites.items()},
        "b": {site: shape(experts, rank, f, dtype=config.param_dtype) for site, (_, f) in sites.items()},
    }
    return params, inputs


def count(config: LlavaConfig, workload: Workload, depth: Depth, *, routed: bool, what: str = "flops") -> float:
    """Operations of one unrolled program, by the compiler; `what` is another of its counts, say `bytes accessed`."""
    params, inputs = abstract_inputs(config, workload)
    lowered = jax.jit(lambda p, i: forward(p, i, config, workload, depth, routed=routed)).lower(params, inputs)
    return float(lowered.cost_analysis()[what])


def extrapolated(config: LlavaConfig, workload: Workload, *, routed: bool, what: str = "flops") -> dict:
    """Operations of the full depth, from programs with one and two layers of each kind.

    Returns:
      `total`, `rest` (everything outside the layers) and the price of a `layer` of each kind.
    """
    layers = asdict(full_depth(config, routed=routed))
    kinds = [kind for kind, number in layers.items() if number]
    single = Depth(**{kind: int(kind in kinds) for kind in layers})
    base = count(config, workload, single, routed=routed, what=what)
    price = {}
    for kind in kinds:
        doubled = replace(single, **{kind: 2})
        price[kind] = count(config, workload, doubled, routed=routed, what=what) - base
    rest = base - sum(price.values())
    total = rest + sum(layers[kind] * price[kind] for kind in kinds)
    return {"total": total, "rest": rest, "layer": price}


def expert_products(config: LlavaConfig, workload: Workload) -> int:
    """Matrix products that one routed layer has beyond a merged one, read off the traced program."""
    params, inputs = abstract_inputs(config, workload)

    def products(merged: int, routed: int) -> int:
        depth = Depth(1, 1, merged, routed)
        traced = jax.make_jaxpr(lambda p, i: forward(p, i, config, workload, depth, routed=True))(params, inputs)
        return products_of(traced.jaxpr)

    return products(1, 1) - products(2, 0)


def products_of(jaxpr) -> int:
    """Matrix products of a program and of the programs within it."""
    products = 0
    for equation in jaxpr.eqns:
        products += equation.primitive.name == "dot_general"
        for inner in jaxprs_in_params(equation.params):
            products += products_of(inner)
    return products


def measure(config: LlavaConfig, workload: Workload) -> dict:
    """Both counts, their ratio, and where the difference goes."""
    merged = extrapolated(config, workload, routed=False)
    routed = extrapolated(config, workload, routed=True)
    return {
        "ratio": routed["total"] / merged["total"],
        "limit": LIMIT,
        "merged": merged,
        "routed": routed,
        "expert_products_of_a_layer": expert_products(config, workload),
        "setting": asdict(workload),
        "layers": {
            "merged": asdict(full_depth(config, routed=False)),
            "routed": asdict(full_depth(config, routed=True)),
        },
    }


def write_record(result: dict, out: Path | None) -> None:
    """Writes a result with today's date and the versions it was made with; `out` None writes nothing."""
    if out is None:
        return
    versions = {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__}
    dated = result | {"date": date.today().isoformat(), "versions": versions | {"flax": flax.__version__}}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(dated, indent=2) + "\n")
    print(f"wrote {out}")


def main() -> None:
    """Prints the ratio; writes the result of the real shapes unless told another place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--toy", action="store_true", help="count a toy, in full as well")
    parser.add_argument("--out", type=Path, help="JSON file to write (default for 7B: docs/benchmarks/flops.json)")
    chosen = parser.parse_args()
    config, workload = toy() if chosen.toy else (llava_7b(), Workload())
    result = {"what": "LLaVA-1.5-7B" if not chosen.toy else "toy", **measure(config, workload)}
    if chosen.toy:
        result["counted_in_full"] = {
            name: count(config, workload, full_depth(config, routed=routed), routed=routed)
            for name, routed in (("merged", False), ("routed", True))
        }
    print(f"{result['what']}: merged {result['merged']['total']:.4e}, routed {result['routed']['total']:.4e}")
    print(f"ratio {result['ratio']:.6f} (at most {LIMIT} at 7B)")
    write_record(result, chosen.out or (None if chosen.toy else RESULT))


if __name__ == "__main__":
    main()
