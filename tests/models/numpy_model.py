"""The frozen model again, in numpy and float64, written from the papers' formulas and not from the package.

One sample at a time, Python loops over layers, heads and slots, no padding, no masks but the causal one, no
cache: slow and plain enough to be checked by eye. Parameters come in the package's trees. Also the tiny
shapes and random parts all tests of this folder share."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.models.llama import site_shapes
from hidecmoe_jax.models.llava import Model, init_model

IMAGE = 4
TINY = LlavaConfig(
    vision=VisionConfig(image_size=12, patch_size=6, width=16, layers=3, heads=2, hidden=24, projection=8),
    text=TextConfig(vocabulary=40, context=10, width=16, layers=2, heads=4, hidden=20, projection=12, eos_token=2),
    decoder=DecoderConfig(
        vocabulary=48, width=24, hidden=40, layers=3, heads=4, kv_heads=2, head_width=8, rope_theta=500.0
    ),
    image_token=IMAGE,
)


def drawn(init, seed: int = 0) -> dict:
    """Parameters with the shapes of `init()`, drawn in numpy: no bias is zero, no norm scale is one."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(size=shape.shape) / math.sqrt(shape.shape[-2])
        return (1.0 if name == "scale" else 0.0) + rng.normal(scale=0.2, size=shape.shape)

    shapes = jax.eval_shape(init)
    return jax.tree_util.tree_map_with_path(lambda path, s: jnp.asarray(draw(path, s), s.dtype), shapes)


@functools.cache
def tiny_model(config: LlavaConfig = TINY, seed: int = 0) -> Model:
    return Model(drawn(lambda: init_model(config, jax.random.key(0)).params, seed), config)


def tiny_config(**decoder) -> LlavaConfig:
    return replace(TINY, decoder=replace(TINY.decoder, **decoder))


def random_bank(
    config: DecoderConfig,
    *,
    slots: int = 3,
    rank: int = 2,
    first: int = 0,
    layers: int | None = None,
    sites: tuple[str, ...] | None = None,
    seed: int = 1,
    size: float = 0.2,
) -> Bank:
    """Experts with no zero in them, owner s in slot s, on layers `first ..`."""
    rng = np.random.default_rng(seed)
    count = config.layers - first if layers is None else layers
    shapes = dict(site_shapes(config), ffn=(config.width, config.width))
    shapes = {site: shapes[site] for site in sites or site_shapes(config)}

    def draw(*shape):
        return jnp.asarray(size * rng.normal(size=shape), jnp.float32)

    a = {site: draw(count, d, slots, rank) for site, (d, _) in shapes.items()}
    b = {site: draw(count, slots, rank, f) for site, (_, f) in shapes.items()}
    owner = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (count, slots))
    return Bank(a, b, owner, 2.0, first)


def f64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def layer_of(tree, index: int):
    return jax.tree.map(lambda a: a[index], tree)


def softmax(z):
    power = np.exp(z - z.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


def act(name: str, z):
    if name == "quick_gelu":
        return z / (1 + np.exp(-1.702 * z))
    return z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


def layer_norm(p, x, epsilon):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def rms_norm(p, x, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"]


def affine(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def head_attention(q, k, v, causal: bool):
    """One head: q, k, v [T, K]."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape, bool)), scores, -np.inf)
    return softmax(scores) @ v


def clip_block(p, x, config, causal: bool):
    h = layer_norm(p["norm1"], x, config.epsilon)
    q, k, v = (affine(p[name], h) for name in ("q_proj", "k_proj", "v_proj"))
    width = config.width // config.heads
    cuts = [slice(i * width, (i + 1) * width) for i in range(config.heads)]
    x = x + affine(p["out_proj"], np.concatenate([head_attention(q[:, c], k[:, c], v[:, c], causal) for c in cuts], 1))
    h = act(config.activation, affine(p["fc1"], layer_norm(p["norm2"], x, config.epsilon)))
    return x + affine(p["fc2"], h)


def vision(p, config: VisionConfig, picture):
    """All hidden states as Hugging Face counts them and the projected class token; picture [H, W, 3]."""
    side, size = config.image_size // config.patch_size, config.patch_size
    kernel = p["stem"]["patch"]["kernel"].reshape(size, size, 3, config.width)
    rows = [p["stem"]["class"]]
    for i in range(side):
        for j in range(side):
            square = picture[i * size : (i + 1) * size, j * size : (j + 1) * size]
            rows.append(np.einsum("hwc,hwcd->d", square, kernel))
    states = [layer_norm(p["stem"]["norm"], np.stack(rows) + p["stem"]["position"], config.epsilon)]
    for index in range(config.layers):
        states.append(clip_block(layer_of(p["layers"], index), states[-1], config, causal=False))
    pooled = layer_norm(p["head"]["norm"], states[-1][0], config.epsilon)
    return states, affine(p["head"]["projection"], pooled)


def text(p, config: TextConfig, ids):
    """End-of-text state before and after the projection; ids end with the first end-of-text token."""
    x = p["stem"]["token"][ids] + p["stem"]["position"][: len(ids)]
    for index in range(config.layers):
        x = clip_block(layer_of(p["layers"], index), x, config, causal=True)
    pooled = layer_norm(p["head"]["norm"], x[-1], config.epsilon)
    return pooled, affine(p["head"]["projection"], pooled)


def projector(p, patches):
    return affine(p["linear2"], act("gelu", affine(p["linear1"], patches)))


def turn(x, theta):
    """Rotary positions by complex multiplication: dimensions i and i + K/2 are one number; x [T, K]."""
    half = x.shape[1] // 2
    z = x[:, :half] + 1j * x[:, half:]
    angle = np.arange(len(x))[:, None] / theta ** (2 * np.arange(half)[None] / x.shape[1])
    z = z * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=1)


def top_k_softmax(logits, heard, k):
    """One token: softmax over the k largest heard logits."""
    best = sorted((s for s in range(len(logits)) if heard[s]), key=lambda s: -logits[s])[:k]
    power = {s: math.exp(logits[s] - max(logits[t] for t in best)) for s in best}
    return np.array([power[s] / sum(power.values()) if s in power else 0.0 for s in range(len(logits))])


def slot_weights(h, voice):
    """Weights [T, S] of one layer's slots; voice holds a, b, gain [S], scale, and router [D, S] or None."""
    if voice["router"] is None:
        return np.broadcast_to(voice["gain"], (len(h), len(voice["gain"])))
    return np.stack([top_k_softmax(t @ voice["router"], voice["gain"] > 0, voice["top_k"]) for t in h]) * voice["gain"]


def site(p, name, x, h, voices):
    """`W x` plus every expert, one slot at a time; the weights come from the normed block input `h`."""
    y = affine(p[name], x) if name in p else np.zeros_like(x)
    for voice in voices:
        if name not in voice["a"]:
            continue
        weights = slot_weights(h, voice)
        for s in range(weights.shape[1]):
            y = y + voice["scale"] * weights[:, s : s + 1] * (x @ voice["a"][name][:, s] @ voice["b"][name][s])
    return y


def llama_block(p, x, config: DecoderConfig, voices=()):
    """One block on one unpadded sample [T, D]; its output and the normed input of the feed-forward part."""
    h = rms_norm(p["norm1"], x, config.epsilon)
    q, k, v = (site(p, name, h, h, voices) for name in ("q_proj", "k_proj", "v_proj"))
    w, shared, heads = config.head_width, config.heads // config.kv_heads, []
    for index in range(config.heads):
        mine, theirs = (
            slice(index * w, (index + 1) * w),
            slice(index // shared * w, (index // shared + 1) * w),
        )
        turned = turn(q[:, mine], config.rope_theta), turn(k[:, theirs], config.rope_theta)
        heads.append(head_attention(*turned, v[:, theirs], causal=True))
    x = x + site(p, "o_proj", np.concatenate(heads, 1), h, voices)
    h = rms_norm(p["norm2"], x, config.epsilon)
    gate = site(p, "gate_proj", h, h, voices)
    inner = gate / (1 + np.exp(-gate)) * site(p, "up_proj", h, h, voices)
    return x + site(p, "down_proj", inner, h, voices) + site(p, "ffn", h, h, voices), h


def voice_layer(bank: Bank, gain_LS, layer: int, router_LDS=None, top_k: int = 0) -> dict | None:
    """A bank's cut at a decoder layer in the form `site` reads; None where the bank does not reach."""
    index = layer - bank.first_layer
    if not 0 <= index < bank.layers:
        return None
    return {
        "a": {k: np.asarray(v[index], np.float64) for k, v in bank.a.items()},
        "b": {k: np.asarray(v[index], np.float64) for k, v in bank.b.items()},
        "gain": np.asarray(gain_LS[index], np.float64),
        "router": None if router_LDS is None else np.asarray(router_LDS[index], np.float64),
        "top_k": top_k,
        "scale": bank.scale,
    }


def llava_logits(params, config: LlavaConfig, tokens, patches=None, voices_by_layer=None):
    """Logits [T, V] and feed-forward inputs of one sample; image tokens read patches [I, P, Dv] in order."""
    p, rows, seen = f64(params), [], 0
    projected = None if patches is None else projector(p["projector"], f64(patches).reshape(-1, patches.shape[-1]))
    for token in tokens:
        if token == config.image_token:
            rows.append(projected[seen])
            seen += 1
        else:
            rows.append(p["decoder"]["embedding"]["table"][token])
    x, inputs = np.stack(rows), []
    for index in range(config.decoder.layers):
        voices = [v for v in (voices_by_layer[index] if voices_by_layer else ()) if v is not None]
        x, h = llama_block(layer_of(p["decoder"]["layers"], index), x, config.decoder, voices)
        inputs.append(h)
    x = rms_norm(p["decoder"]["norm"], x, config.decoder.epsilon)
    head = p["decoder"]["embedding"]["table"].T if config.decoder.tied else p["decoder"]["head"]["kernel"]
    return x @ head, inputs
