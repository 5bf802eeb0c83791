"""Feed-forward output of every decoder layer, for studies of how alike layers are."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.core.layout import Layout
from hidecmoe_jax.experts.routing import Voice
from hidecmoe_jax.models.config import DecoderConfig
from hidecmoe_jax.models.llama import DecoderBlock, whole_layer
from hidecmoe_jax.models.voices import LayerVoice, check_voices, voice_slice


def branch_means(
    layers: dict,
    config: DecoderConfig,
    x_BTD: Array,
    *,
    positions_BT: Array,
    mask_B1TS: Array,
    voices: Sequence[Voice],
    real_BT: Array,
    layout: Layout | None = None,
) -> Array:
    """Feed-forward output of every layer before it joins the residual, averaged over real tokens: float32 [L, B, D].

    The voices must cover the whole stack. Similarity studies of layers compare these means; nothing is cached.
    """
    check_voices(voices, x_BTD.shape[0])
    block = DecoderBlock(config, "float32", layout)
    count_B1 = jnp.sum(real_BT, axis=1, keepdims=True)
    count_B1 = jnp.maximum(count_B1, 1)
    share_BT = real_BT / count_B1
    share_BT = share_BT.astype(jnp.float32)
    share_BT1 = share_BT[..., None]

    def step(x: Array, inputs: tuple[dict, list[LayerVoice]]) -> tuple[Array, Array]:
        params, layer_voices = inputs
        params = whole_layer(params, config, layout)
        (x, _, _), sown = block.apply(
            {"params": params}, x, positions_BT, mask_B1TS, layer_voices, mutable=["intermediates"]
        )
        (branch,) = sown["intermediates"]["branch"]
        weighted_BTD = branch.astype(jnp.float32) * share_BT1
        mean_BD = jnp.sum(weighted_BTD, axis=1)
        return x, mean_BD

    layer_voices = [voice_slice(voice, 0, config.layers) for voice in voices]
    _, means_LBD = jax.lax.scan(step, x_BTD, (layers, layer_voices))
    return means_LBD
