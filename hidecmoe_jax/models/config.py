"""Shapes of the frozen multimodal model.

Everything here is static: a config is hashable, travels with `Model` as pytree metadata, and decides which program is
compiled. Nothing in it names a method, a task or an expert.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Activation = Literal["quick_gelu", "gelu"]
Fit = Literal["pad", "crop"]


@dataclass(frozen=True)
class VisionConfig:
    """CLIP vision tower (arXiv 2103.00020): pre-norm ViT with a class token, square pictures of `image_size` pixels."""

    image_size: int = 56
    patch_size: int = 8
    width: int = 128
    layers: int = 6
    heads: int = 4
    hidden: int = 512
    projection: int = 64
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5

    @property
    def patches(self) -> int:
        """Patch tokens of one picture (the class token is not counted)."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig:
    """CLIP text tower (arXiv 2103.00020): causal, pooled at the first end-of-text token."""

    vocabulary: int = 1024
    context: int = 48
    width: int = 128
    layers: int = 3
    heads: int = 4
    hidden: int = 512
    projection: int = 64
    eos_token: int = 2
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5


@dataclass(frozen=True)
class DecoderConfig:
    """LLaMA decoder (arXiv 2302.13971): RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    vocabulary: int = 1024
    width: int = 128
    hidden: int = 344
    layers: int = 10
    heads: int = 4
    kv_heads: int = 4
    head_width: int = 32
    rope_theta: float = 10000.0
    epsilon: float = 1e-5
    tied: bool = False


@dataclass(frozen=True)
class LlavaConfig:
    """LLaVA (arXiv 2310.03744): the CLIP pair, a two-layer GELU projector, and the decoder.

    `feature_layer` counts hidden states as Hugging Face does: -1 is the last block's output, -2 the one before it.
    `dtype` is what towers and decoder compute in, `param_dtype` what parameters are stored in; norms, softmax and
    logits are float32 in any case. `remat` recomputes a decoder block's activations in the backward pass. `text` is
    None in a base without CLIP's text tower, which LLaVA itself does not read; `vision.projection` then is 0, or the
    width of the projection that the vision tower came with.
    `image_fit` is how a picture becomes square: padded as LLaVA-1.5's, or cropped as CLIP's (`data/images.py`).
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig | None = TextConfig()
    decoder: DecoderConfig = DecoderConfig()
    image_token: int = 4
    feature_layer: int = -2
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    image_fit: Fit = "pad"

    # What code outside `models/` and `port/` reads of a shape; the config of another backbone offers the same names.

    @property
    def width(self) -> int:
        """Width of the decoder's hidden states."""
        return self.decoder.width

    @property
    def layers(self) -> int:
        """Number of decoder blocks."""
        return self.decoder.layers

    @property
    def kv_heads(self) -> int:
        """Heads of the decoder's keys and values."""
        return self.decoder.kv_heads

    @property
    def tower_settings(self) -> dict[str, Any]:
        """Everything that the vision tower's program depends on, as plain values."""
        return asdict(self.vision)

    @property
    def vocabulary(self) -> int:
        """Rows of the decoder's token table, which may be padded beyond the tokenizer."""
        return self.decoder.vocabulary

    @property
    def image_size(self) -> int:
        """Side of the square pictures that the vision tower takes, in pixels."""
        return self.vision.image_size

    @property
    def patches(self) -> int:
        """Patch tokens of one picture, so also its image tokens in a prompt."""
        return self.vision.patches

    @property
    def patch_width(self) -> int:
        """Width of a patch token before the projector."""
        return self.vision.width

    @property
    def pooled_widths(self) -> tuple[int, int]:
        """Widths of CLIP's pooled features: projected image embedding, text state before its projection; 0: absent."""
        return self.vision.projection, 0 if self.text is None else self.text.width

    @property
    def has_text_tower(self) -> bool:
        """Whether the base has CLIP's text tower, which only task anchors read."""
        return self.text is not None

    @property
    def text_vocabulary(self) -> int:
        """Rows of the text tower's token table."""
        return self.text.vocabulary

    @property
    def text_context(self) -> int:
        """Most tokens that the text tower reads."""
        return self.text.context

    @property
    def text_end(self) -> int:
        """Id of the text tower's end-of-text token."""
        return self.text.eos_token


def llava_7b() -> LlavaConfig:
    """LLaVA-1.5-7B: Vicuna-7B with CLIP ViT-L/14 at 336 pixels (576 patch tokens)."""
    return LlavaConfig(
        vision=VisionConfig(
            image_size=336, patch_size=14, width=1024, layers=24, heads=16, hidden=4096, projection=768
        ),
        text=TextConfig(
            vocabulary=49408, context=77, width=768, layers=12, heads=12, hidden=3072, projection=768, eos_token=49407
        ),
        decoder=DecoderConfig(
            vocabulary=32064, width=4096, hidden=11008, layers=32, heads=32, kv_heads=32, head_width=128
        ),
        image_token=32000,
        dtype="bfloat16",
        param_dtype="bfloat16",
        remat=True,
    )


def llava_13b() -> LlavaConfig:
    """LLaVA-1.5-13B: Vicuna-13B with the towers of the 7B model."""
    decoder = DecoderConfig(
        vocabulary=32064, width=5120, hidden=13824, layers=40, heads=40, kv_heads=40, head_width=128
    )
    return replace(llava_7b(), decoder=decoder)
