"""What a token-routed mixture costs: floating-point operations of LLaVA-CMoE's forward against the plain model.

Counted by the compiler on shapes alone, unrolled, with one and two layers of each kind (see `flops.py`). The ideal
share is the cost of the two low-rank products of every expert site alone; the router, its top-k and the weights on
the rank are the rest. The locator reads the plain model's last prompt token, so a query needs a second prefill of the
decoder as well (towers and projector are shared), which is listed separately.

    python tools/bench/mixture_flops.py        LLaVA-1.5-7B, 640 tokens, total rank 64 and 128; writes docs/benchmarks
    python tools/bench/mixture_flops.py --toy  a toy
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from flops import Workload, extrapolated, toy, write_record

from hidecmoe_jax.models.config import LlavaConfig, llava_7b
from hidecmoe_jax.models.llama import DecoderBlock, init_decoder, site_shapes
from hidecmoe_jax.models.voices import LayerVoice

ALLOWED = 1.1
RESULT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "mixture_flops.json"
LINEARS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Mix:
    """`experts` of `rank` at `sites` of every layer, `top_k` of them a token."""

    experts: int
    rank: int = 16
    top_k: int = 2
    sites: tuple[str, ...] = ("ffn",)


def _voice(config: LlavaConfig, mix: Mix, batch: int):
    """Shapes of one layer's voice."""
    width = config.decoder.width
    shapes = site_shapes(config.decoder) | {"ffn": (width, width)}

    def shape(*sides, dtype="float32"):
        return jax.ShapeDtypeStruct(sides, jnp.dtype(dtype))

    stored = config.param_dtype
    return LayerVoice(
        a={site: shape(shapes[site][0], mix.experts, mix.rank, dtype=stored) for site in mix.sites},
        b={site: shape(mix.experts, mix.rank, shapes[site][1], dtype=stored) for site in mix.sites},
        gain_BS=shape(batch, mix.experts),
        router_BDS=shape(batch, width, mix.experts),
        key=None, scale=2.0, top_k=mix.top_k, dropout=0.0,
    )  # fmt: skip


def layer_price(config: LlavaConfig, tokens: int, mix: Mix | None, batch: int = 1) -> float:
    """Operations of one decoder layer: a program of two layers less a program of one."""
    thin = jax.eval_shape(lambda: init_decoder(config.decoder, jax.random.key(0), config.param_dtype))
    layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), nn.unbox(thin["layers"]))
    block = DecoderBlock(config.decoder, "float32")

    def run(layers: int):
        def program(params, x, voice):
            positions = jnp.broadcast_to(jnp.arange(tokens), x.shape[:2])
            causal = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
            for _ in range(layers):
                voices = () if voice is None else (voice,)
                x, _, _ = block.apply({"params": params}, x, positions, causal, voices, lambda k, v: (k, v, None))
            return x

        x = jax.ShapeDtypeStruct((batch, tokens, config.decoder.width), jnp.dtype(config.dtype))
        lowered = jax.jit(program).lower(layer, x, None if mix is None else _voice(config, mix, batch))
        return float(lowered.cost_analysis()["flops"])

    return run(2) - run(1)


def measure(config: LlavaConfig, tokens: int, mixes: tuple[Mix, ...]) -> dict:
    """Ratios to the plain forward of the whole model, and what is ideal."""
    plain = extrapolated(config, Workload(tokens=tokens), routed=False)
    plain_layer = layer_price(config, tokens, None)
    layers = config.decoder.layers
    shapes = site_shapes(config.decoder) | {"ffn": (config.decoder.width,) * 2}
    mixtures = []
    for mix in mixes:
        skinny = sum(2 * tokens * mix.experts * mix.rank * sum(shapes[site]) for site in mix.sites)
        extra = layers * (layer_price(config, tokens, mix) - plain_layer)
        ideal = layers * skinny / plain["total"]
        mixtures.append(
            {
                "total_rank": mix.experts * mix.rank, "experts": mix.experts, "top_k": mix.top_k,
                "sites": list(mix.sites), "ratio": 1 + extra / plain["total"], "ideal": 1 + ideal,
                "limit": 1 + ALLOWED * ideal,
            }
        )  # fmt: skip
    return {
        "plain": plain["total"],
        "plain_layer": plain_layer,
        "mixtures": mixtures,
        "second_prefill": layers * plain_layer / plain["total"],
        "tokens": tokens,
    }


def main() -> None:
    """Prints the ratios; writes the result of the real shapes unless told another place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--toy", action="store_true", help="count a toy")
    parser.add_argument("--out", type=Path, help="JSON file to write (default for 7B: docs/benchmarks)")
    chosen = parser.parse_args()
    if chosen.toy:
        config, workload = toy()
        tokens = workload.tokens
    else:
        config = llava_7b()
        tokens = Workload().tokens
    mixes = tuple(Mix(experts, sites=sites) for sites, experts in product((("ffn",), LINEARS), (4, 8)))
    result = {"what": "toy" if chosen.toy else "LLaVA-1.5-7B", **measure(config, tokens, mixes)}
    for mix in result["mixtures"]:
        name = f"{'+'.join(mix['sites'])}, total rank {mix['total_rank']}, k {mix['top_k']}"
        print(f"{name}: {mix['ratio']:.5f} x plain (ideal {mix['ideal']:.5f}, at most {mix['limit']:.5f})")
    print(f"second prefill for the locator: {result['second_prefill']:.3f} x plain on top")
    write_record(result, chosen.out or (None if chosen.toy else RESULT))


if __name__ == "__main__":
    main()
