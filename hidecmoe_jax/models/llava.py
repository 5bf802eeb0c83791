"""LLaVA (arXiv 2310.03744): frozen towers, a projector, and a decoder to which voices add their experts.

`Model` is a pytree of parameters with a static config, an argument of every jitted function. Pictures become patch
tokens once (`vision_features`); the decoder then works on tokens and patches, so cached features, training and
generation share one path. An image token stands for one patch: the k-th image token of a sample is replaced by its
k-th patch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.layout import Layout, Recompute, constrain
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.models import clip
from hidecmoe_jax.models.branches import branch_means
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.execution import PLAIN, Execution
from hidecmoe_jax.models.layers import RMSNorm, axes_of
from hidecmoe_jax.models.llama import STREAM_AXES, decoder_axes, init_decoder, run_layers
from hidecmoe_jax.models.llama import site_shapes as decoder_sites
from hidecmoe_jax.models.masks import causal_mask, positions_of, require_constant
from hidecmoe_jax.models.projector import Projector
from hidecmoe_jax.models.stack import Cache
from hidecmoe_jax.models.voices import Tally

TABLE_AXES = ("vocab", "width")
IGNORE = -1  # a token kind that is not counted


class Model(struct.PyTreeNode):
    """Parameters {vision, text, projector, decoder} and the static shapes they have.

    Attributes:
      layout: how they and a batch lie on a mesh of devices; None for programs of one device.
      execution: how the layers are run on the processor at hand.
      constant: voices that every program adds, before those that it is given: experts of a model whose weights cannot
        take them up.
    """

    params: dict
    config: LlavaConfig = struct.field(pytree_node=False)
    layout: Layout | None = struct.field(pytree_node=False, default=None)
    execution: Execution = struct.field(pytree_node=False, default=PLAIN)
    constant: tuple[Voice, ...] = ()

    @property
    def recompute(self) -> Recompute:
        """What the backward pass computes again in every layer."""
        if self.layout is not None:
            return self.layout.recompute
        return "full" if self.config.remat or self.execution.recompute else "none"


class Prompt(struct.PyTreeNode):
    """Input of the decoder.

    Attributes:
      tokens_BT: int32, image tokens already expanded (one per patch); padding left or right.
      mask_BT: bool, False on padding.
      patches_BIPD: vision features of up to I pictures a sample, or None for text alone.
      segment_BT: None where a row holds one sample. Else int32, the number of each token's sample in its row, from 1 on
        and 0 on padding: samples lie one after the other, read themselves alone, and count their own positions; the
        row's pictures are in the order of its samples.
    """

    tokens_BT: Array
    mask_BT: Array
    patches_BIPD: Array | None = None
    segment_BT: Array | None = None


class Batch(struct.PyTreeNode):
    """A prompt with answers; positions are where the hidden state predicts the answer token.

    Attributes:
      where_BA, answer_BA: int32; answer_mask_BA: bool, False on unused columns.
    """

    prompt: Prompt
    where_BA: Array
    answer_BA: Array
    answer_mask_BA: Array


@functools.partial(jax.jit, static_argnames=("config",))
def init_model(config: LlavaConfig, key: Array) -> Model:
    """A model with random parameters."""
    # One program: leaf by leaf they are hundreds, each compiled for a moment's work.
    vision_key, text_key, projector_key, decoder_key = jax.random.split(key, 4)
    dtype = config.param_dtype
    vision = clip.init_tower(config.vision, vision_key, dtype)
    projector = Projector(config.decoder.width, dtype)
    patches = jnp.zeros((1, config.vision.width))
    projector_variables = projector.init(projector_key, patches)
    projector_variables = nn.unbox(projector_variables)
    decoder = init_decoder(config.decoder, decoder_key, dtype)
    params = {"vision": vision, "projector": projector_variables["params"], "decoder": decoder}
    if config.text is not None:
        params["text"] = clip.init_tower(config.text, text_key, dtype)
    return Model(params, config)


@functools.lru_cache(maxsize=8)
def model_template(config: LlavaConfig) -> Model:
    """A model of shapes and dtypes instead of arrays; nothing is allocated."""
    # Tracing the blocks takes longer than reading a small model, so a process does it once for a config.
    return jax.eval_shape(lambda: init_model(config, jax.random.key(0)))


def model_axes(config: LlavaConfig) -> dict:
    """Logical axis names with the tree of `Model.params`."""
    text = {} if config.text is None else {"text": clip.tower_axes(config.text)}
    return {
        "vision": clip.tower_axes(config.vision),
        **text,
        "projector": _projector_axes(config),
        "decoder": decoder_axes(config.decoder),
    }


@functools.lru_cache(maxsize=8)
def _projector_axes(config: LlavaConfig) -> dict:
    """Logical axis names of the projector."""
    projector = Projector(config.decoder.width)
    patches = jnp.zeros((1, config.vision.width))
    return axes_of(projector, patches)


def model_sites(config: LlavaConfig) -> dict[str, tuple[int, int]]:
    """Input and output width of the seven linears of every decoder block."""
    return decoder_sites(config.decoder)


def projector_leaves(model: Model) -> dict[str, Array]:
    """{path: leaf} of the projector; paths are those of the whole model, so that leaves can be put back by path."""
    return trees.flatten({"projector": model.params["projector"]})


def decoder_leaves(model: Model) -> dict[str, Array]:
    """{path: leaf} of the whole decoder, with the paths of `projector_leaves`."""
    return trees.flatten({"decoder": model.params["decoder"]})


def vision_weights(params: dict) -> dict:
    """The vision tower's parameters, or what stands for them, such as shapes."""
    return params["vision"]


def decoder_weights(params: dict) -> dict:
    """The decoder's parameters: token table, stacked `layers`, last norm and head."""
    return params["decoder"]


def decoder_layers(model: Model) -> dict:
    """The decoder blocks' parameters, stacked on a leading layer axis."""
    return model.params["decoder"]["layers"]


def with_decoder_layers(model: Model, layers: dict) -> Model:
    """The model with other stacked decoder blocks."""
    decoder = {**model.params["decoder"], "layers": layers}
    params = {**model.params, "decoder": decoder}
    return model.replace(params=params)


def project(model: Model, patches: Array) -> Array:
    """Patch tokens [..., Dv] in the decoder's width [..., D]."""
    projector = Projector(model.config.width, sums_float32=model.layout is not None)
    params = model.params["projector"]
    if model.layout is not None:
        params = constrain(model.layout, params, _projector_axes(model.config), gathered=True)
    return projector.apply({"params": params}, patches)


def final_norm(model: Model, x: Array) -> Array:
    """The decoder's last norm, [..., D]; the head reads normed states."""
    norm = RMSNorm(model.config.decoder.epsilon)
    params = constrain(model.layout, model.params["decoder"]["norm"], {"scale": ("width",)}, gathered=True)
    return norm.apply({"params": params}, x)


def vision_features(model: Model, pixels_NHWC: Array) -> tuple[Array, Array]:
    """Patch tokens [N, P, Dv] of the feature layer and projected class embeddings [N, E] (float32)."""
    c = model.config
    return clip.vision_tower(
        model.params["vision"], c.vision, pixels_NHWC, feature_layer=c.feature_layer, dtype=c.dtype
    )


def text_features(model: Model, ids_NT: Array) -> tuple[Array, Array]:
    """End-of-text states [N, Dt] before and [N, E] after the projection (float32); the model must have a text tower."""
    return clip.text_tower(model.params["text"], model.config.text, ids_NT, dtype=model.config.dtype)


def embed(model: Model, prompt: Prompt) -> Array:
    """Token embeddings [B, T, D] with projected patches in place of image tokens."""
    check_prompt(model.config, prompt)
    config = model.config
    dtype = jnp.dtype(config.dtype)
    is_image_BT = prompt.tokens_BT == config.image_token
    table = model.params["decoder"]["embedding"]["table"]
    table = constrain(model.layout, table, TABLE_AXES, gathered=True)
    # The image token's id may lie past the table, so its row is never looked up.
    ids_BT = jnp.where(is_image_BT, 0, prompt.tokens_BT)
    x_BTD = table[ids_BT]
    x_BTD = x_BTD.astype(dtype)
    x_BTD = constrain(model.layout, x_BTD, STREAM_AXES)
    if prompt.patches_BIPD is None:
        return x_BTD
    patches_BIPD = prompt.patches_BIPD.astype(dtype)
    projected_BIPD = project(model, patches_BIPD)
    batch = projected_BIPD.shape[0]
    width = projected_BIPD.shape[-1]
    # [B, I, P, D] to [B, I * P, D]: a sample's pictures one after the other, in the order of its image tokens.
    projected_BND = projected_BIPD.reshape(batch, -1, width)
    projected_BND = constrain(model.layout, projected_BND, STREAM_AXES)
    last_patch = projected_BND.shape[1] - 1
    nth_image_BT = jnp.cumsum(is_image_BT, axis=1) - 1
    patch_BT = jnp.clip(nth_image_BT, 0, last_patch)
    patch_BT1 = patch_BT[..., None]
    patch_BTD = jnp.take_along_axis(projected_BND, patch_BT1, axis=1)
    is_image_BT1 = is_image_BT[..., None]
    x_BTD = jnp.where(is_image_BT1, patch_BTD, x_BTD)
    return constrain(model.layout, x_BTD, STREAM_AXES)


def check_prompt(config: LlavaConfig, prompt: Prompt) -> None:
    """Raises AssertionError, while tracing, where a prompt's arrays do not have the documented shapes and types."""
    chex.assert_rank(prompt.tokens_BT, 2)
    chex.assert_type(prompt.tokens_BT, int, custom_message="tokens are integer ids")
    chex.assert_equal_shape([prompt.tokens_BT, prompt.mask_BT], custom_message="the mask must cover every token")
    chex.assert_type(prompt.mask_BT, bool, custom_message="the mask is bool, False on padding")
    if prompt.patches_BIPD is not None:
        batch = prompt.tokens_BT.shape[0]
        chex.assert_shape(
            prompt.patches_BIPD, (batch, None, config.patches, config.patch_width),
            custom_message="patches are [batch, pictures, patches of a picture, vision width]",
        )  # fmt: skip


def last_positions(prompt: Prompt) -> Array:
    """Position of the last real token of every sample, whichever side the padding is on; int32 [B]."""
    from_end_BT = prompt.mask_BT[:, ::-1]
    padding_B = jnp.argmax(from_end_BT, axis=1)
    return prompt.mask_BT.shape[1] - 1 - padding_B


def hidden(
    model: Model,
    prompt: Prompt,
    voices: Sequence[Voice] = (),
    *,
    kinds_BT: Array | None = None,
    cache: Cache | None = None,
    normed: bool = True,
    at_BQ: Array | None = None,
) -> tuple[Array, Cache | None, list[list[Tally]]]:
    """Hidden states [B, T, D] of a whole prompt (causal, padding masked), the cache, and the tallies.

    With `at_BQ` they are those at these positions, [B, Q, D], and the last layer computes little more than them.
    """
    check_prompt(model.config, prompt)
    config = model.config
    length = prompt.tokens_BT.shape[1]
    capacity = length if cache is None else cache.k.shape[2]
    # Slots of the cache that no token has filled yet are masked like padding.
    unfilled = capacity - length
    keys_BS = jnp.pad(prompt.mask_BT, ((0, 0), (0, unfilled)))
    segment_BT = prompt.segment_BT
    if segment_BT is not None:
        assert cache is None, "a row of several samples has no cache"
        require_constant(voices)
    x, cache, tallies = run_layers(
        decoder_layers(model),
        config.decoder,
        embed(model, prompt),
        positions_BT=positions_of(prompt.mask_BT, segment_BT),
        mask_B1TS=causal_mask(keys_BS, length, segment_BT),
        voices=(*model.constant, *voices),
        cache=cache,
        kinds_BT=kinds_BT,
        recompute=model.recompute,
        layout=model.layout,
        execution=model.execution,
        at_BQ=at_BQ,
        real_BS=keys_BS if segment_BT is None else segment_BT,
    )
    if normed:
        x = final_norm(model, x)
    return x, cache, tallies


def layer_features(model: Model, prompt: Prompt, voices: Sequence[Voice] = ()) -> Array:
    """Token means of every layer's feed-forward branch, float32 [L, B, D]; the voices must cover the whole stack."""
    length = prompt.tokens_BT.shape[1]
    all_TS = jnp.ones((length, length), bool)
    causal_TS = jnp.tril(all_TS)
    return branch_means(
        decoder_layers(model), model.config.decoder, embed(model, prompt),
        positions_BT=positions_of(prompt.mask_BT), voices=voices, real_BT=prompt.mask_BT,
        mask_B1TS=prompt.mask_BT[:, None, None, :] & causal_TS[None, None], layout=model.layout,
    )  # fmt: skip


def head(model: Model, h: Array) -> Array:
    """Logits [..., V], float32."""
    decoder = model.params["decoder"]
    if model.config.decoder.tied:
        kernel = decoder["embedding"]["table"].T
    else:
        kernel = decoder["head"]["kernel"]
    kernel = constrain(model.layout, kernel, ("width", "vocab"), gathered=True)
    kernel = kernel.astype(h.dtype)
    # float32 output: a product rounded to bfloat16 first would tie neighbouring tokens.
    return jnp.matmul(h, kernel, preferred_element_type=jnp.float32)


def logits(model: Model, prompt: Prompt, voices: Sequence[Voice] = ()) -> Array:
    """Logits at every position [B, T, V], float32."""
    h, _, _ = hidden(model, prompt, voices)
    return head(model, h)


def token_kinds(model: Model, batch: Batch) -> Array:
    """0 image, 1 text, 2 answer, IGNORE on padding; int32 [B, T]. An answer token counts where it is an input."""
    prompt = batch.prompt
    is_image_BT = prompt.tokens_BT == model.config.image_token
    kinds_BT = jnp.where(is_image_BT, 0, 1)
    # One after the position that predicts it; unused columns are nowhere.
    after_BA = jnp.where(batch.answer_mask_BA, batch.where_BA + 1, -1)
    # Compared, not written to places: devices that share a batch would send each other the places.
    place_T = jnp.arange(kinds_BT.shape[1])
    is_place_BAT = after_BA[..., None] == place_T
    is_answer_BT = jnp.any(is_place_BAT, axis=1)
    kinds_BT = jnp.where(is_answer_BT, 2, kinds_BT)
    return jnp.where(prompt.mask_BT, kinds_BT, IGNORE)


def answer_logits(
    model: Model, batch: Batch, voices: Sequence[Voice] = (), *, kinds_BT: Array | None = None
) -> tuple[Array, list[list[Tally]]]:
    """Logits at every answer column [B, A, V] (float32, unused columns too), and tallies.

    The last layer beyond its keys and values, and the vocabulary product, run on answer tokens only.
    """
    columns = [batch.where_BA, batch.answer_BA, batch.answer_mask_BA]
    chex.assert_equal_shape(columns, custom_message="answers, positions and mask are [B, A]")
    h_BAD, _, tallies = hidden(model, batch.prompt, voices, kinds_BT=kinds_BT, at_BQ=batch.where_BA)
    return head(model, h_BAD), tallies


def answer_nll(
    model: Model, batch: Batch, voices: Sequence[Voice] = (), *, kinds_BT: Array | None = None
) -> tuple[Array, list[list[Tally]]]:
    """Negative log-likelihood at every answer column [B, A] (float32, unused columns too), and tallies."""
    logits_BAV, tallies = answer_logits(model, batch, voices, kinds_BT=kinds_BT)
    log_p_BAV = jax.nn.log_softmax(logits_BAV, axis=-1)
    answer_BA1 = batch.answer_BA[..., None]
    answer_log_p_BA1 = jnp.take_along_axis(log_p_BAV, answer_BA1, axis=-1)
    answer_log_p_BA = answer_log_p_BA1[..., 0]
    return -answer_log_p_BA, tallies


def answer_loss(
    model: Model, batch: Batch, voices: Sequence[Voice] = (), *, tally: bool = False
) -> tuple[Array, Array, list[list[Tally]]]:
    """Summed negative log-likelihood of the answers (float32), the number of answer tokens (int32), and tallies."""
    kinds_BT = token_kinds(model, batch) if tally else None
    nll_BA, tallies = answer_nll(model, batch, voices, kinds_BT=kinds_BT)
    counted_BA = jnp.where(batch.answer_mask_BA, nll_BA, 0.0)
    # A sum and a count, not a mean: accumulated steps then weigh every answer token alike.
    total = jnp.sum(counted_BA)
    one_if_answer_BA = batch.answer_mask_BA.astype(jnp.int32)
    count = jnp.sum(one_if_answer_BA)
    return total, count, tallies
