"""Small banks and the real decoder, shrunk: what the tests of this folder share."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings

from hidecmoe_jax.core.trees import digest
from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig
from hidecmoe_jax.models.llama import init_decoder, site_shapes
from hidecmoe_jax.models.llava import Model, Prompt, logits

DECODER = DecoderConfig(vocabulary=32, width=16, hidden=24, layers=3, heads=2, kv_heads=1, head_width=8)
LAYERS, SLOTS, RANK, SCALE = DECODER.layers, 4, 2, 2.0
SITES = site_shapes(DECODER) | {"ffn": (DECODER.width, DECODER.width)}
LINEARS = site_shapes(DECODER)
# Two sites are enough where sites do not matter: every shape more is a program more to compile.
PAIR = {site: SITES[site] for site in ("up_proj", "down_proj")}
MIX = {site: SITES[site] for site in ("q_proj", "down_proj", "ffn")}  # attention, feed-forward, parallel

few = settings(max_examples=8, derandomize=True, deadline=None, database=None)


@cache
def model() -> Model:
    """The decoder alone: prompts of these tests have no pictures."""
    config = LlavaConfig(decoder=DECODER)
    init = jax.jit(init_decoder, static_argnums=0)
    return Model({"decoder": init(DECODER, jax.random.key(7))}, config)


def prompt(batch: int = 2, length: int = 5) -> Prompt:
    """Random text, the second sample with one token of padding on the left."""
    tokens = np.random.default_rng(3).integers(5, DECODER.vocabulary, (batch, length)).astype(np.int32)
    mask = np.ones((batch, length), bool)
    mask[1:2, 0] = False
    return Prompt(jnp.asarray(tokens), jnp.asarray(mask))


forward = jax.jit(logits)


def random_bank(
    owner_LS, *, seed: int = 0, sites=PAIR, rank: int = RANK, scale: float = SCALE, first_layer: int = 0
) -> Bank:
    """Random factors in every owned slot and zeros in every EMPTY one."""
    owner = np.asarray(owner_LS, np.int32)
    layers, slots = owner.shape
    rng, owned = np.random.default_rng(seed), owner != EMPTY

    def draw(shape, mask):
        return jnp.asarray(np.where(mask, rng.normal(size=shape), 0).astype(np.float32) * 0.3)

    return Bank(
        a={s: draw((layers, d, slots, rank), owned[:, None, :, None]) for s, (d, _) in sites.items()},
        b={s: draw((layers, slots, rank, f), owned[:, :, None, None]) for s, (_, f) in sites.items()},
        owner_LS=jnp.asarray(owner),
        scale=scale,
        first_layer=first_layer,
    )


def row(*owners: int, layers: int = LAYERS) -> list[list[int]]:
    """The same owners in every layer."""
    return [list(owners)] * layers


def same_bytes(left, right) -> bool:
    """Whether two trees hold the same bits."""
    return digest(left) == digest(right)


def naive(x_BTD, bank: Bank, site: str, layer: int, weight) -> np.ndarray:
    """scale * sum_s weight_s (x a_s) b_s by loops over samples, tokens and slots, in float64."""
    x, a, b = (np.asarray(v, np.float64) for v in (x_BTD, bank.a[site][layer], bank.b[site][layer]))
    weight = np.asarray(weight, np.float64)
    out = np.zeros((*x.shape[:2], b.shape[-1]))
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            own = weight[i if weight.shape[0] > 1 else 0]
            own = own[t] if own.ndim == 2 else own
            for s in range(b.shape[0]):
                out[i, t] += bank.scale * own[s] * ((x[i, t] @ a[:, s]) @ b[s])
    return out
