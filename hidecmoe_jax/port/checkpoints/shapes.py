"""Shapes of a LLaVA from its config.json alone, as other tools write it: for plans, which need no weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.models.config import LlavaConfig, llava_7b
from hidecmoe_jax.port.checkpoints.recognise import refuse_next
from hidecmoe_jax.port.checkpoints.settings import llava_config
from hidecmoe_jax.port.checkpoints.source import Source, read_config

CONFIG = "config.json"
_LAYOUTS = {"llava": "hf-llava", "llava_llama": "llava"}


def described_shapes(folder: Path) -> LlavaConfig | None:
    """Shapes of the LLaVA-1.5 that a folder's config.json of another tool describes; None where there is none such.

    The towers of CLIP are those of LLaVA-1.5, text tower included, which a conversion with `--clip` brings along.

    Raises:
      CheckpointError: a model of another kind, or settings that change the arithmetic.
    """
    if not (folder / CONFIG).is_file():
        return None
    config = read_config(folder)
    kind = config.get("model_type")
    # A converted base has no such field.
    if kind is None:
        return None
    source = Source(folder, "checkpoint", config, {}, ())
    refuse_next(source)
    if kind not in _LAYOUTS:
        raise CheckpointError(
            "the shapes of this base are not planned", where=f"{folder / CONFIG}: model_type", why=f"found {kind!r}",
            remedy="give the folder of a LLaVA-1.5 (model_type llava or llava_llama), or of a converted base",
        )  # fmt: skip
    # Original LLaVA and Hugging Face's have one name; the latter alone nests the decoder's settings.
    layout = "hf-llava" if "text_config" in config else "llava"
    shapes = llava_config(layout, source, tower=None, projection=None, text=None, dtype="bfloat16")
    known = llava_7b()
    vision = known.vision if layout == "llava" else replace(shapes.vision, projection=known.vision.projection)
    return replace(shapes, vision=vision, text=known.text)
