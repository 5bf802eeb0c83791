"""The CLIP pair (arXiv 2103.00020): a vision tower that feeds both the projector and the anchors, and a text tower.

Vision gives patch tokens of an inner layer (what LLaVA reads) and the projected class embedding (what anchors average).
Text gives the end-of-text state before the projection (what HiDe's anchors average, arXiv 2503.12941) and after it.
"""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.models.config import TextConfig, VisionConfig
from hidecmoe_jax.models.layers import LayerNorm, activation, attend, axes_of, dense, init_stack, small_normal


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
        head_width = width // self.heads
        heads = (count, length, self.heads, head_width)
        inward = ("width", "heads")

        def linear(name: str, features: int, axes: tuple[str, str]) -> nn.Dense:
            return dense(features, axes, x.dtype, bias=True, param_dtype=self.param_dtype, name=name)

        def norm(name: str) -> LayerNorm:
            return LayerNorm(self.epsilon, self.param_dtype, name=name)

        # [N, T, D] to [N, T, heads, D / heads] behind each projection.
        norm1 = norm("norm1")
        h = norm1(x)
        q_proj = linear("q_proj", width, inward)
        q = q_proj(h).reshape(heads)
        k_proj = linear("k_proj", width, inward)
        k = k_proj(h).reshape(heads)
        v_proj = linear("v_proj", width, inward)
        v = v_proj(h).reshape(heads)
        attended = attend(q, k, v, mask)
        outward = ("heads", "width")
        out_proj = linear("out_proj", width, outward)
        x = x + out_proj(attended)
        norm2 = norm("norm2")
        h = norm2(x)
        fc1 = linear("fc1", self.hidden, ("width", "hidden"))
        h = fc1(h)
        h = activation(self.activation, h)
        fc2 = linear("fc2", width, ("hidden", "width"))
        return x + fc2(h)


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
        c = self.config
        dtype = jnp.dtype(self.param_dtype)
        p = c.patch_size
        size = c.image_size
        side = size // p
        shape = pixels.shape
        if shape[1:] != (size, size, 3):
            raise ValueError(f"pixels are {shape}, the tower reads [N, {size}, {size}, 3]")
        # The patch convolution as one product: its stride is its width, so patches do not overlap.
        covered = side * p
        covered_pixels = pixels[:, :covered, :covered]
        squares = covered_pixels.reshape(-1, side, p, side, p, 3)
        squares = squares.transpose(0, 1, 3, 2, 4, 5)
        numbers_of_patch = p * p * 3
        patch_count = side * side
        squares = squares.reshape(-1, patch_count, numbers_of_patch)
        patch_axes = (None, "width")
        patch = dense(c.width, patch_axes, squares.dtype, param_dtype=self.param_dtype, name="patch")
        patches = patch(squares)
        init_class = small_normal(("width",))
        class_token = self.param("class", init_class, (c.width,), dtype)
        class_token = class_token.astype(pixels.dtype)
        init_position = small_normal((None, "width"))
        tokens = 1 + c.patches
        position = self.param("position", init_position, (tokens, c.width), dtype)
        # CLIP was trained with the class token first.
        pictures = patches.shape[0]
        class_tokens = jnp.broadcast_to(class_token, (pictures, 1, c.width))
        x = jnp.concatenate([class_tokens, patches], axis=1)
        position = position.astype(pixels.dtype)
        position = jnp.broadcast_to(position, x.shape)
        x = x + position
        norm = LayerNorm(c.epsilon, self.param_dtype, name="norm")
        return norm(x)


class TextStem(nn.Module):
    """Token ids [N, T] to embeddings with positions [N, T, D]."""

    config: TextConfig
    param_dtype: str
    dtype: str

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        c = self.config
        dtype = jnp.dtype(self.param_dtype)
        length = ids.shape[1]
        if length > c.context:
            raise ValueError(f"{length} tokens, the text tower reads at most {c.context}")
        init_table = small_normal(("vocab", "width"))
        table = self.param("token", init_table, (c.vocabulary, c.width), dtype)
        init_position = small_normal((None, "width"))
        position = self.param("position", init_position, (c.context, c.width), dtype)
        compute = jnp.dtype(self.dtype)
        position = position[:length]
        position = position.astype(compute)
        embedded = table[ids]
        embedded = embedded.astype(compute)
        position = jnp.broadcast_to(position, embedded.shape)
        return embedded + position


class ClipHead(nn.Module):
    """Final norm and bias-free projection of a pooled state: [N, D] -> ([N, D], [N, E])."""

    projection: int
    epsilon: float
    param_dtype: str

    @nn.compact
    def __call__(self, pooled: Array) -> tuple[Array, Array]:
        norm = LayerNorm(self.epsilon, self.param_dtype, name="norm")
        normed = norm(pooled)
        # A tower that came without its projection has embeddings of width 0.
        if not self.projection:
            return normed, normed[:, :0]
        projection = dense(
            self.projection, ("width", None), normed.dtype, param_dtype=self.param_dtype, name="projection"
        )
        return normed, projection(normed)


Modules = dict[str, tuple[nn.Module, tuple]]  # name in the parameter tree: (module, example inputs)


def _modules(config: VisionConfig | TextConfig, param_dtype: str) -> Modules:
    if isinstance(config, VisionConfig):
        return _vision_modules(config, param_dtype)
    return _text_modules(config, param_dtype)


def _vision_modules(config: VisionConfig, param_dtype: str) -> Modules:
    size = config.image_size
    length = 1 + config.patches
    pixels = jnp.zeros((1, size, size, 3))
    tokens = jnp.zeros((1, length, config.width))
    pooled = jnp.zeros((1, config.width))
    stem = VisionStem(config, param_dtype)
    block = _block(config, param_dtype)
    head = ClipHead(config.projection, config.epsilon, param_dtype)
    return {
        "stem": (stem, (pixels,)),
        "layers": (block, (tokens, None)),
        "head": (head, (pooled,)),
    }


def _text_modules(config: TextConfig, param_dtype: str) -> Modules:
    ids = jnp.zeros((1, 4), jnp.int32)
    tokens = jnp.zeros((1, 4, config.width))
    pooled = jnp.zeros((1, config.width))
    stem = TextStem(config, param_dtype, "float32")
    block = _block(config, param_dtype)
    head = ClipHead(config.projection, config.epsilon, param_dtype)
    return {
        "stem": (stem, (ids,)),
        "layers": (block, (tokens, None)),
        "head": (head, (pooled,)),
    }


def init_tower(config: VisionConfig | TextConfig, key: Array, param_dtype: str = "float32") -> dict:
    """Random parameters {stem, layers [L, ...], head} of one tower."""
    modules = _modules(config, param_dtype)
    stem, stem_inputs = modules["stem"]
    block, block_inputs = modules["layers"]
    head, head_inputs = modules["head"]
    stem_key, block_key, head_key = jax.random.split(key, 3)
    stem_variables = stem.init(stem_key, *stem_inputs)
    stem_variables = nn.unbox(stem_variables)
    layers = init_stack(block, config.layers, block_key, *block_inputs)
    head_variables = head.init(head_key, *head_inputs)
    head_variables = nn.unbox(head_variables)
    return {"stem": stem_variables["params"], "layers": layers, "head": head_variables["params"]}


def tower_axes(config: VisionConfig | TextConfig) -> dict:
    """Logical axis names with the tree of `init_tower`."""
    axes = {}
    # Names of axes do not depend on the dtype.
    modules = _modules(config, "float32")
    for name, (module, inputs) in modules.items():
        is_stacked = name == "layers"
        axes[name] = axes_of(module, *inputs, stacked=is_stacked)
    return axes


def vision_tower(
    params: dict, config: VisionConfig, pixels_NHWC: Array, *, feature_layer: int = -2, dtype: str = "float32"
):
    """Patch tokens of `feature_layer` [N, P, D] and the projected class embedding [N, E] (float32), not normalised.

    `pixels_NHWC` are float, already normalised with CLIP's mean and deviation. Hidden states are counted as Hugging
    Face does (0 is the stem, -1 the last block), so -2 leaves out one block.
    """
    chex.assert_rank(pixels_NHWC, 4)
    chex.assert_type(pixels_NHWC, float, custom_message="pixels are normalised floats, not bytes")
    states = config.layers + 1
    output_layer = feature_layer % states
    # `param_dtype` matters to initialisation alone: stored parameters keep their own.
    block = _block(config, "float32")
    stem = VisionStem(config, "float32")
    stem_variables = {"params": params["stem"]}
    compute = jnp.dtype(dtype)
    pixels = pixels_NHWC.astype(compute)
    x = stem.apply(stem_variables, pixels)

    def step(carry, layer):
        x, features = carry
        index, block_params = layer
        x = block.apply({"params": block_params}, x, None)
        # Selected by a mask: stacking the outputs of all layers would take L times the memory.
        is_output = index == output_layer
        features = jnp.where(is_output, x, features)
        return (x, features), None

    indices = jnp.arange(1, states)
    layers = (indices, params["layers"])
    (x, features), _ = jax.lax.scan(step, (x, x), layers)
    head = ClipHead(config.projection, config.epsilon, "float32")
    head_variables = {"params": params["head"]}
    class_state = x[:, 0]
    class_state = class_state.astype(jnp.float32)
    _, pooled_NE = head.apply(head_variables, class_state)
    # Without the class token.
    patches = features[:, 1:]
    return patches, pooled_NE


def text_tower(params: dict, config: TextConfig, ids_NT: Array, *, dtype: str = "float32") -> tuple[Array, Array]:
    """End-of-text state before [N, D] and after [N, E] the projection, float32, not normalised.

    Causal, so whatever follows the first `eos_token` cannot reach the pooled state and padding needs no mask.
    """
    chex.assert_rank(ids_NT, 2)
    chex.assert_type(ids_NT, int)
    length = ids_NT.shape[1]
    all_TT = jnp.ones((length, length), bool)
    causal_TT = jnp.tril(all_TT)
    causal = causal_TT[None, None]
    block = _block(config, "float32")
    stem = TextStem(config, "float32", dtype)
    stem_variables = {"params": params["stem"]}
    x = stem.apply(stem_variables, ids_NT)

    def step(x: Array, block_params: dict) -> tuple[Array, None]:
        x = block.apply({"params": block_params}, x, causal)
        return x, None

    x, _ = jax.lax.scan(step, x, params["layers"])
    # argmax finds the first end-of-text token; padding often repeats it.
    is_end_NT = ids_NT == config.eos_token
    end_N = jnp.argmax(is_end_NT, axis=1)
    end_N11 = end_N[:, None, None]
    pooled_N1D = jnp.take_along_axis(x, end_N11, axis=1)
    pooled_ND = pooled_N1D[:, 0]
    head = ClipHead(config.projection, config.epsilon, "float32")
    head_variables = {"params": params["head"]}
    pooled_ND = pooled_ND.astype(jnp.float32)
    return head.apply(head_variables, pooled_ND)
