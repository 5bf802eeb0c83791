"""A backbone of another shape: random weights here, trained ones in practice; `base.path` of a config is its folder."""

from __future__ import annotations

from pathlib import Path

import jax

from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.models.llava import init_model
from hidecmoe_jax.models.store import save_model

VOCABULARY = 320
CONFIG = LlavaConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2, hidden=32, projection=8),
    text=TextConfig(VOCABULARY, context=16, width=16, layers=1, heads=2, hidden=32, projection=8),
    # Two key heads serve four query heads (grouped-query attention).
    decoder=DecoderConfig(VOCABULARY, width=16, hidden=32, layers=3, heads=4, kv_heads=2, head_width=4),
)


def write_backbone(folder: Path, *, seed: int = 0) -> Path:
    """Writes config and weights; `tokenizer.json` (Hugging Face tokenizers) has to be put beside them."""
    save_model(init_model(CONFIG, jax.random.key(seed)), folder)
    return folder
