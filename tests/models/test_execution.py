"""Written-out gradients against the rules of JAX on plain formulas, and what a choice of execution may not change."""

import functools
import math
import re
import zlib
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as ref
import pytest
from jax.extend.core import jaxprs_in_params

from hidecmoe_jax.core.products import product
from hidecmoe_jax.experts.routing import Routing, Voice, routed_weights
from hidecmoe_jax.models.attention import attend_by_products
from hidecmoe_jax.models.execution import ON_CPU, PLAIN, execution_for
from hidecmoe_jax.models.llama import SITES, run_layers
from hidecmoe_jax.models.store import load_model, pocket_folder
from hidecmoe_jax.models.voices import slot_weights, voice_slice

# The plain formulas mix dtypes as they come.
pytestmark = pytest.mark.lax_types
EXACT = 1e-6


def distance(one, other) -> float:
    """Norm of the difference of two trees over the norm of the second."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    differences, norms = zip(
        *((np.asarray(a, np.float64) - b, np.asarray(b, np.float64)) for a, b in pairs), strict=True
    )
    size = [math.sqrt(sum(float(np.square(part).sum()) for part in parts)) for parts in (differences, norms)]
    return size[0] / size[1]


def drawn(seed, *shape, dtype="float32"):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def summed(function, dtype="float32"):
    """Gradients of a weighted sum of what a function gives."""

    def loss(*arguments):
        out = function(*arguments).astype(jnp.float32)
        return jnp.sum(out * drawn(9, *out.shape))

    return loss


def test_the_gradient_of_a_product_is_that_of_the_plain_one():
    x, w = drawn(0, 2, 5, 24), drawn(1, 24, 7)
    ours = jax.jit(jax.value_and_grad(summed(product), argnums=(0, 1)))(x, w)
    plain = jax.jit(jax.value_and_grad(summed(lambda x, w: x @ w), argnums=(0, 1)))(x, w)
    assert distance(ours, plain) < EXACT


def test_a_factor_in_float32_gets_its_gradient_unrounded_from_a_bfloat16_product():
    x, w = drawn(0, 64, 24, dtype="bfloat16"), drawn(1, 24, 7)
    gradient = jax.jit(jax.grad(summed(product), argnums=1))(x, w)
    assert gradient.dtype == jnp.float32
    cotangent = drawn(9, 64, 7).astype(jnp.bfloat16).astype(jnp.float32)
    assert distance(gradient, x.astype(jnp.float32).T @ cotangent) < EXACT


def plain_attention(q, k, v, mask):
    """Softmax attention, one einsum a step; grouped keys are repeated."""
    times = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(leaf, times, axis=2) for leaf in (k, v))
    score = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    share = jax.nn.softmax(jnp.where(mask, score, -1e30), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", share.astype(v.dtype), v)


@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_attention_and_its_gradient_are_the_plain_formula(groups):
    tokens, keys = 6, 9
    q, k, v = drawn(0, 2, tokens, 4, 8), drawn(1, 2, keys, groups, 8), drawn(2, 2, keys, groups, 8)
    # A cache longer than the prompt, padding on the left of the second sample, whose first rows see nothing.
    causal = jnp.arange(keys) <= jnp.arange(tokens)[:, None]
    mask = causal[None, None] & (jnp.arange(keys) >= jnp.array([0, 2])[:, None])[:, None, None]
    assert not bool(mask[1, 0, 0].any())

    def seen(attention):
        # What rows that see nothing give is read by nobody; it must be finite alone.
        return lambda *qkv: attention(*qkv, mask) * mask.any(-1).transpose(0, 2, 1)[..., None]

    ours = jax.jit(jax.value_and_grad(summed(seen(attend_by_products)), argnums=(0, 1, 2)))(q, k, v)
    plain = jax.jit(jax.value_and_grad(summed(seen(plain_attention)), argnums=(0, 1, 2)))(q, k, v)
    assert distance(ours, plain) < EXACT
    attend, plain = jax.jit(attend_by_products), jax.jit(plain_attention)
    assert bool(jnp.isfinite(attend(q, k, v, mask)).all())
    one_mask = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
    same = attend(q, k[:, :tokens], v[:, :tokens], one_mask)
    np.testing.assert_allclose(same, plain(q, k[:, :tokens], v[:, :tokens], one_mask), atol=1e-6)


def plain_decoder(layers, config, x, positions, mask, voices):
    """The decoder as a loop of plain formulas in the dtype of `x`; only the choice of slots is the package's."""
    for layer in range(config.layers):
        here = [jax.tree.map(lambda leaf: leaf[0], voice_slice(voice, layer, layer + 1)) for voice in voices]
        x = plain_block(ref.layer_of(layers, layer), config, x, positions, mask, here)
    return x


def plain_block(p, config, x, positions, mask, voices):
    """One block of it."""
    half = config.head_width // 2
    angle = positions[:, :, None, None] * config.rope_theta ** (-jnp.arange(half) / half)

    def turned(z):
        low, high = jnp.split(z.astype(jnp.float32), 2, axis=-1)
        both = (low * jnp.cos(angle) - high * jnp.sin(angle), high * jnp.cos(angle) + low * jnp.sin(angle))
        return jnp.concatenate(both, -1).astype(x.dtype)

    def normed(z, scale):
        z32 = z.astype(jnp.float32)
        return (z32 / jnp.sqrt(jnp.mean(z32**2, -1, keepdims=True) + config.epsilon) * scale).astype(x.dtype)

    def linear(site, h, weighted):
        out = h @ p[site]["kernel"].astype(x.dtype)
        for voice, (weight, _) in zip(voices, weighted, strict=True):
            out = out + plain_experts(voice, site, h, weight)
        return out

    h = normed(x, p["norm1"]["scale"])
    weighted = _weights(h, voices, "attention")
    heads = (*h.shape[:2], -1, config.head_width)
    q, k, v = (linear(site, h, weighted).reshape(heads) for site in SITES[:3])
    attended = plain_attention(turned(q), turned(k), v, mask)
    x = x + linear("o_proj", attended.reshape(*h.shape[:2], -1), weighted)
    h = normed(x, p["norm2"]["scale"])
    weighted = _weights(h, voices, "feed_forward")
    middle = jax.nn.silu(linear("gate_proj", h, weighted)) * linear("up_proj", h, weighted)
    return x + linear("down_proj", middle, weighted)


def plain_experts(voice, site, h, weight):
    """A sum over slots, with dropout as the package has always drawn it."""
    if voice.site_routers is not None:
        router = voice.site_routers[site]
        weight, _ = routed_weights(h, voice.gain_BS, router[None], router.shape[-1])
    if voice.dropout:
        key = jax.random.fold_in(voice.key, zlib.crc32(site.encode()))
        stays = jax.random.bits(key, h.shape, jnp.uint16) >= round(voice.dropout * 2**16)
        h = jnp.where(stays, h / (1 - voice.dropout), 0)
    weight = weight[:, None] if weight.ndim == 2 else weight
    u = jnp.einsum("btd,dsr->btsr", h, voice.a[site].astype(h.dtype))
    u = u * (weight * voice.scale)[..., None].astype(h.dtype)
    return jnp.einsum("btsr,srf->btf", u, voice.b[site].astype(h.dtype))


def _weights(h, voices, part):
    """`slot_weights` outside a block: its modules hold no parameters."""

    class Bare(nn.Module):
        @nn.compact
        def __call__(self, h):
            return slot_weights(h, voices, part)

    return Bare().apply({}, h)


CONFIG = replace(ref.TINY.decoder, layers=2)


def dropped_mixture():
    """Three slots with gains of each sample, dropout, and a second bank that is frozen."""
    bank, past = ref.random_bank(CONFIG, slots=3), ref.random_bank(CONFIG, slots=2, seed=5)
    gain = jnp.asarray(np.random.default_rng(3).uniform(0.2, 1.5, (CONFIG.layers, 2, 3)), jnp.float32)
    trained = {"factors": bank.factors, "gain": gain}

    def voices(trained):
        live = Voice(bank.with_factors(trained["factors"]), Routing(trained["gain"]), jax.random.key(4), 0.25)
        return (live, Voice(past, Routing(jnp.full((CONFIG.layers, 1, 2), 0.5))))

    return trained, voices


def token_routed():
    """Two banks that share the softmax of a token router."""
    live, past = ref.random_bank(CONFIG, slots=1), ref.random_bank(CONFIG, slots=3, seed=5)
    # Flat, because a steep softmax amplifies the rounding of its input, whichever formula rounds it.
    routers = {name: 0.2 * drawn(7 + bank.slots, CONFIG.layers, 1, CONFIG.width, bank.slots) for name, bank in
               (("live", live), ("past", past))}  # fmt: skip
    trained = {"factors": live.factors, "routers": routers}

    def routing(router, bank):
        return Routing(jnp.ones((CONFIG.layers, 1, bank.slots)), router, 2, "group")

    def voices(trained):
        first = Voice(live.with_factors(trained["factors"]), routing(trained["routers"]["live"], live))
        return (first, Voice(past, routing(trained["routers"]["past"], past)))

    return trained, voices


def site_routed():
    """A router at every linear."""
    bank = ref.random_bank(CONFIG, slots=2)
    shapes = {site: leaf.shape[1] for site, leaf in bank.a.items()}
    routers = {site: 0.1 * drawn(zlib.crc32(site.encode()), CONFIG.layers, width, 2) for site, width in shapes.items()}
    trained = {"factors": bank.factors, "routers": routers}

    def voices(trained):
        routing = Routing(jnp.ones((CONFIG.layers, 1, 2)), site_routers=trained["routers"])
        return (Voice(bank.with_factors(trained["factors"]), routing, jax.random.key(2), 0.1),)

    return trained, voices


def programs(voices, dtype):
    """Value and gradient through the scan as it runs on CPUs, and through the plain loop."""
    params = ref.tiny_model(replace(ref.TINY, decoder=CONFIG)).params["decoder"]["layers"]
    x = drawn(1, 2, 7, CONFIG.width).astype(dtype)
    real = jnp.arange(7) >= jnp.array([0, 2])[:, None]
    positions = jnp.maximum(jnp.cumsum(real, 1) - 1, 0)
    mask = jnp.tril(jnp.ones((7, 7), bool))[None, None] & real[:, None, None]
    shown = real[..., None].astype(jnp.float32) * drawn(2, 2, 7, CONFIG.width)

    def ours(trained, params, x):
        out, _, _ = run_layers(
            params,
            CONFIG,
            x,
            positions_BT=positions,
            mask_B1TS=mask,
            voices=voices(trained),
            execution=ON_CPU,
            recompute="full",
        )
        return jnp.sum(out.astype(jnp.float32) * shown), out * real[..., None]

    def plain(trained, params, x):
        out = plain_decoder(params, CONFIG, x, positions, mask, voices(trained))
        return jnp.sum(out.astype(jnp.float32) * shown), out * real[..., None]

    return (ours, plain), (params, x)


@functools.cache
def plainly(case):
    """Value, states and gradients of a case by the plain loop in float32."""
    trained, voices = case()
    (_, plain), inputs = programs(voices, "float32")
    return jax.jit(jax.value_and_grad(plain, argnums=(0, 2), has_aux=True))(trained, *inputs)


# test_parity_experts.py has gradients of a router at every linear, test_decoder.py token routers by the formula.
SLOW_CASES = [pytest.param(case, marks=pytest.mark.slow) for case in (token_routed, site_routed)]


@pytest.mark.parametrize("case", [dropped_mixture, *SLOW_CASES])
def test_the_decoder_and_its_gradient_are_the_plain_formula(case):
    trained, voices = case()
    (ours, _), inputs = programs(voices, "float32")
    by_us = jax.jit(jax.value_and_grad(ours, argnums=(0, 2), has_aux=True))(trained, *inputs)
    by_rule = plainly(case)
    assert distance(by_us[0][1], by_rule[0][1]) < EXACT
    assert distance(by_us[1], by_rule[1]) < EXACT


def test_bfloat16_gradients_are_no_further_from_float32_than_the_plain_ones():
    trained, voices = dropped_mixture()
    truth, _ = plainly(dropped_mixture)[1]
    (ours, plain), inputs = programs(voices, "bfloat16")
    ours_off = distance(jax.jit(jax.grad(ours, has_aux=True))(trained, *inputs)[0], truth)
    plain_off = distance(jax.jit(jax.grad(plain, has_aux=True))(trained, *inputs)[0], truth)
    assert 1e-3 < ours_off <= plain_off


def test_a_frozen_kernel_has_no_gradient_in_the_program():
    trained, voices = dropped_mixture()
    (ours, _), inputs = programs(voices, "float32")
    program = jax.jit(jax.grad(ours, has_aux=True)).lower(trained, *inputs).compile().as_text()
    results = set(re.findall(r"= f32\[(\d+,\d+)\]\S* dot\(", program))
    kernels = {f"{rows},{columns}" for rows, columns in ((24, 32), (24, 16), (32, 24), (24, 40), (40, 24))}
    assert "24,6" in results, "the gradient of a down projection is one product"
    assert not results & kernels


def test_the_backend_chooses_in_one_place():
    assert execution_for("cpu") is ON_CPU
    assert execution_for("gpu") == execution_for("tpu") == PLAIN
    assert load_model(pocket_folder()).execution == execution_for(jax.default_backend())


def draws_in(jaxpr) -> int:
    """Draws of random bits in a program and in the programs inside it."""
    inside = sum(draws_in(sub) for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params))
    return inside + sum(eqn.primitive.name == "random_bits" for eqn in jaxpr.eqns)


def test_the_masks_of_dropout_are_drawn_once_for_both_passes():
    trained, voices = dropped_mixture()
    (ours, _), inputs = programs(voices, "float32")
    program = jax.make_jaxpr(jax.grad(ours, has_aux=True))(trained, *inputs)
    assert draws_in(program.jaxpr) == len(SITES)
