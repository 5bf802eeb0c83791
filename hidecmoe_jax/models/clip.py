"""The CLIP pair (arXiv 2103.00020): a vision tower that feeds both the projector and the anchors, and a text tower.

Vision gives patch tokens of an inner layer (what LLaVA reads) and the projected class embedding (what anchors average).
Text gives the end-of-text state before the projection (what HiDe's anchors average, arXiv 2503.12941) and after it.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.models.config import TextConfig, VisionConfig
from hidecmoe_jax.models.layers import LayerNorm, Linear, activation, attend, axes_of, init_stack, named


class ClipBlock(nn.Module):
    """Pre-norm transformer block with biases; x [N, T, D] -> [N, T, D]."""

    heads: int
    hidden: int
    activation: str
    epsilon: float
    param_dtype: str

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        count, length, width = x.shape

        def linear(name: str, features: int, axes: tuple[str, str]) -> Linear:
            return Linear(features, axes, bias=True, param_dtype=self.param_dtype, name=name)

        def norm(name: str) -> LayerNorm:
            return LayerNorm(self.epsilon, self.param_dtype, name=name)

        h = norm("norm1")(x)
        split = (count, length, self.heads, width // self.heads)
        q, k, v = (linear(n, width, ("width", "heads"))(h).reshape(split) for n in ("q_proj", "k_proj", "v_proj"))
        x = x + linear("out_proj", width, ("heads", "width"))(attend(q, k, v, mask))
        h = activation(self.activation, linear("fc1", self.hidden, ("width", "hidden"))(norm("norm2")(x)))
        return x + linear("fc2", width, ("hidden", "width"))(h)


def _block(config: VisionConfig | TextConfig, param_dtype: str) -> ClipBlock:
    return ClipBlock(config.heads, config.hidden, config.activation, config.epsilon, param_dtype)


class VisionStem(nn.Module):
    """Pixels [N, H, W, 3] to normed tokens [N, 1 + P, D]: patch convolution, class token, positions, pre-norm.

    Rows and columns that do not fill a patch are left out, as a strided convolution does.
    """

    config: VisionConfig
    param_dtype: str

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        c, dtype = self.config, jnp.dtype(self.param_dtype)
        side, p = c.image_size // c.patch_size, c.patch_size
        if pixels.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(f"pixels are {pixels.shape}, the tower reads [N, {c.image_size}, {c.image_size}, 3]")
        cut = pixels[:, : side * p, : side * p].reshape(-1, side, p, side, p, 3)
        cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, p * p * 3)
        patches = Linear(c.width, (None, "width"), param_dtype=self.param_dtype, name="patch")(cut)
        normal = nn.initializers.normal(0.02)
        cls = self.param("class", named(normal, ("width",)), (c.width,), dtype).astype(pixels.dtype)
        place = self.param("position", named(normal, (None, "width")), (1 + c.patches, c.width), dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (patches.shape[0], 1, c.width)), patches], axis=1)
        x = x + jnp.broadcast_to(place.astype(pixels.dtype), x.shape)
        return LayerNorm(c.epsilon, self.param_dtype, name="norm")(x)


class TextStem(nn.Module):
    """Token ids [N, T] to embeddings with positions [N, T, D]."""

    config: TextConfig
    param_dtype: str
    dtype: str

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        c, dtype = self.config, jnp.dtype(self.param_dtype)
        if ids.shape[1] > c.context:
            raise ValueError(f"{ids.shape[1]} tokens, the text tower reads at most {c.context}")
        normal = nn.initializers.normal(0.02)
        table = self.param("token", named(normal, ("vocab", "width")), (c.vocabulary, c.width), dtype)
        place = self.param("position", named(normal, (None, "width")), (c.context, c.width), dtype)
        compute = jnp.dtype(self.dtype)
        place = jnp.broadcast_to(place[: ids.shape[1]].astype(compute), (*ids.shape, c.width))
        return table[ids].astype(compute) + place


class ClipHead(nn.Module):
    """Final norm and bias-free projection of a pooled state: [N, D] -> ([N, D], [N, E])."""

    projection: int
    epsilon: float
    param_dtype: str

    @nn.compact
    def __call__(self, pooled: Array) -> tuple[Array, Array]:
        normed = LayerNorm(self.epsilon, self.param_dtype, name="norm")(pooled)
        return normed, Linear(self.projection, ("width", None), param_dtype=self.param_dtype, name="projection")(normed)


def _vision_parts(config: VisionConfig, param_dtype: str):
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    tokens, pooled = jnp.zeros((1, 1 + config.patches, config.width)), jnp.zeros((1, config.width))
    return {
        "stem": (VisionStem(config, param_dtype), (pixels,)),
        "layers": (_block(config, param_dtype), (tokens, None)),
        "head": (ClipHead(config.projection, config.epsilon, param_dtype), (pooled,)),
    }


def _text_parts(config: TextConfig, param_dtype: str):
    ids = jnp.zeros((1, 4), jnp.int32)
    tokens, pooled = jnp.zeros((1, 4, config.width)), jnp.zeros((1, config.width))
    return {
        "stem": (TextStem(config, param_dtype, "float32"), (ids,)),
        "layers": (_block(config, param_dtype), (tokens, None)),
        "head": (ClipHead(config.projection, config.epsilon, param_dtype), (pooled,)),
    }


def init_tower(config: VisionConfig | TextConfig, key: Array, param_dtype: str = "float32") -> dict:
    """Random parameters {stem, layers [L, ...], head} of one tower."""
    parts = (_vision_parts if isinstance(config, VisionConfig) else _text_parts)(config, param_dtype)
    stem, block, head = jax.random.split(key, 3)
    return {
        "stem": nn.unbox(parts["stem"][0].init(stem, *parts["stem"][1]))["params"],
        "layers": init_stack(parts["layers"][0], config.layers, block, *parts["layers"][1]),
        "head": nn.unbox(parts["head"][0].init(head, *parts["head"][1]))["params"],
    }


def tower_axes(config: VisionConfig | TextConfig) -> dict:
    """Logical axis names with the tree of `init_tower`."""
    parts = (_vision_parts if isinstance(config, VisionConfig) else _text_parts)(config, "float32")
    return {name: axes_of(module, *inputs, stacked=name == "layers") for name, (module, inputs) in parts.items()}


def vision_tower(
    params: dict, config: VisionConfig, pixels_NHWC: Array, *, feature_layer: int = -2, dtype: str = "float32"
):
    """Patch tokens of `feature_layer` [N, P, D] and the projected class embedding [N, E] (float32), not normalised.

    `pixels_NHWC` are float, already normalised with CLIP's mean and deviation. Hidden states are counted as Hugging
    Face does (0 is the stem, -1 the last block), so -2 leaves out one block.
    """
    kept_at = feature_layer % (config.layers + 1)
    block = _block(config, "float32")
    x = VisionStem(config, "float32").apply({"params": params["stem"]}, pixels_NHWC.astype(jnp.dtype(dtype)))

    def step(carry, layer):
        x, kept = carry
        index, block_params = layer
        x = block.apply({"params": block_params}, x, None)
        return (x, jnp.where(index == kept_at, x, kept)), None

    layers = (jnp.arange(1, config.layers + 1), params["layers"])
    (x, kept), _ = jax.lax.scan(step, (x, x), layers)
    head = ClipHead(config.projection, config.epsilon, "float32")
    _, pooled_NE = head.apply({"params": params["head"]}, x[:, 0].astype(jnp.float32))
    return kept[:, 1:], pooled_NE


def text_tower(params: dict, config: TextConfig, ids_NT: Array, *, dtype: str = "float32") -> tuple[Array, Array]:
    """End-of-text state before [N, D] and after [N, E] the projection, float32, not normalised.

    Causal, so whatever follows the first `eos_token` cannot reach the pooled state and padding needs no mask.
    """
    length = ids_NT.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    block = _block(config, "float32")
    x = TextStem(config, "float32", dtype).apply({"params": params["stem"]}, ids_NT)
    x, _ = jax.lax.scan(lambda x, p: (block.apply({"params": p}, x, causal), None), x, params["layers"])
    end = jnp.argmax(ids_NT == config.eos_token, axis=1)
    pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    return ClipHead(config.projection, config.epsilon, "float32").apply({"params": params["head"]}, pooled)
