"""Which state of the frozen model represents a prompt, and that state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.models.llava import Model, Prompt, decoder_layers, embed, hidden, with_decoder_layers

PARTS = ("image", "text", "words")
"""Parts of a prompt: means over its image tokens (zero without a picture), over the text tokens behind the last image
token (all where there is none), and over the embeddings of these same text tokens."""


@dataclass(frozen=True)
class Reading:
    """The state of the frozen model that represents a whole prompt (arXiv 2503.21227 takes the last token's).

    Attributes:
      layer: decoder layers to run; -1 for all of them and the final norm, `half` for half of them.
      over: `last` prompt token; the mean over its `image` tokens (the last token where there are none); `parts`, the
        three states of `PARTS` side by side; or `words`, the last of these alone, which takes no layer and no picture.
    """

    layer: int | Literal["half"] = -1
    over: Literal["last", "image", "parts", "words"] = "last"

    def __post_init__(self):
        if self.layer != "half" and self.layer < -1:
            raise ValueError(f"layer {self.layer} must be at least 0, or -1 for all layers, or half")

    def depth(self, layers: int) -> int:
        """Layers of a decoder with `layers` layers that are run; -1 for all of them and the final norm."""
        if not self.reads_pictures:
            return 0
        return layers // 2 if self.layer == "half" else self.layer

    @property
    def reads_pictures(self) -> bool:
        """Whether the state depends on pictures, and on more of the base than its token table."""
        return self.over != "words"

    def width(self, width: int) -> int:
        """Numbers that are read of a model of this width."""
        return len(PARTS) * width if self.over == "parts" else width


def prompt_state(model: Model, prompt: Prompt, reading: Reading) -> Array:
    """The prompt's state that `reading` selects, float32 [B, `reading.width(D)`]."""
    config = model.config
    if not reading.reads_pictures:
        # Without the patches, which no text token needs, nothing is projected.
        x_BTD = embed(model, prompt.replace(patches_BIPD=None))
        return _mean(x_BTD, _text_tokens(model, prompt))
    depth = reading.depth(config.layers)
    if depth >= 0:
        # A shorter stack, so that layers above the one that is read cost nothing.
        shallow_decoder = replace(config.decoder, layers=depth)
        shallow = replace(config, decoder=shallow_decoder)
        layers = decoder_layers(model)
        layers = jax.tree.map(lambda leaf: leaf[:depth], layers)
        model = with_decoder_layers(model, layers)
        model = model.replace(config=shallow)
    h_BTD, _, _ = hidden(model, prompt, normed=depth < 0)
    # The last real token, whichever side the padding is on.
    mask_BT = prompt.mask_BT
    nth_BT = jnp.cumsum(mask_BT.astype(jnp.int32), axis=1)
    is_image_BT = prompt.tokens_BT == config.image_token
    image_BT = mask_BT & is_image_BT
    has_image_B1 = jnp.any(image_BT, axis=1, keepdims=True)
    if reading.over == "parts":
        text_BT = _text_tokens(model, prompt)
        parts = (_mean(h_BTD, image_BT), _mean(h_BTD, text_BT), _mean(embed(model, prompt), text_BT))
        return jnp.concatenate(parts, axis=-1)
    count_B1 = nth_BT[:, -1:]
    is_last_BT = nth_BT == count_B1
    last_BT = mask_BT & is_last_BT
    over_image_B1 = has_image_B1 & (reading.over == "image")
    selected_BT = jnp.where(over_image_B1, image_BT, last_BT)
    return _mean(h_BTD, selected_BT)


def _text_tokens(model: Model, prompt: Prompt) -> Array:
    """The text tokens behind the last image token, all where there is none; bool [B, T]."""
    mask_BT = prompt.mask_BT
    nth_BT = jnp.cumsum(mask_BT.astype(jnp.int32), axis=1)
    image_BT = mask_BT & (prompt.tokens_BT == model.config.image_token)
    last_image_B1 = jnp.max(jnp.where(image_BT, nth_BT, 0), axis=1, keepdims=True)
    return mask_BT & (nth_BT > last_image_B1)


def _mean(h_BTD: Array, selected_BT: Array) -> Array:
    """Mean of the selected states, float32 [B, D]; zero where none is."""
    selected_BT = selected_BT.astype(jnp.float32)
    is_selected_BT1 = selected_BT[..., None] > 0
    h_BTD = h_BTD.astype(jnp.float32)
    selected_BTD = jnp.where(is_selected_BT1, h_BTD, 0.0)
    selected_B1 = jnp.sum(selected_BT, axis=1, keepdims=True)
    total_BD = jnp.sum(selected_BTD, axis=1)
    return total_BD / jnp.maximum(selected_B1, 1.0)
