"""Layout of a checkpoint, recognised from the names of its tensors and never from the folder's name.

The config is read only to refuse models with similar names but other arithmetic (LLaVA-NeXT, other language models),
before a thousand tensor names are reported as unknown.
"""

from __future__ import annotations

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.port.checkpoints.source import Source

# layout -> its name in reports
NAMES = {
    "hf-llava": "Hugging Face LLaVA (LlavaForConditionalGeneration)",
    "llava": "original LLaVA-1.5 (language model with mm_projector)",
    "llama": "LLaMA/Vicuna language model",
    "clip": "CLIP, both towers (CLIPModel)",
    "clip-vision": "CLIP vision tower",
    "clip-text": "CLIP text tower",
    "projector": "stage-1 projector",
}
BASES = ("hf-llava", "llava", "llama")
# What each flag may bring.
ALLOWED = {
    "checkpoint": BASES,
    "--clip": ("clip", "clip-vision", "clip-text"),
    "--vision": ("clip", "clip-vision"),
    "--projector": ("projector",),
    "separate projector": ("projector",),
}
_NEXT = "LLaVA-NeXT (1.6) cuts pictures into tiles, which is not supported yet; LLaVA-1.5 is"


def recognise(source: Source) -> str:
    """The layout of a source, a key of `names.LAYOUTS`.

    Raises:
      CheckpointError: unknown or unsupported (LLaVA-NeXT and adapters by name), or not what the flag is for.
    """
    refuse_next(source)
    layout = _layout(source)
    if layout is None:
        keys = sorted(source.tensors)[:5]
        raise CheckpointError(
            "the format is not recognised",
            where=str(source.path),
            why=f"model_type {source.config.get('model_type')!r}, tensors {keys}",
            remedy=f"known are: {'; '.join(NAMES.values())}",
        )
    if layout not in ALLOWED[source.role]:
        expected = [NAMES[allowed] for allowed in ALLOWED[source.role]]
        raise CheckpointError(
            f"{source.role} got a {NAMES[layout]}",
            where=str(source.path),
            why=f"expected one of: {'; '.join(expected)}",
            remedy=_redirect(layout, source.role),
        )
    return layout


def _layout(source: Source) -> str | None:
    """The layout of the first sign that is present; specific signs come before general ones."""
    keys = source.tensors
    signs = (
        ("hf-llava", lambda key: "multi_modal_projector." in key and _has(keys, "language_model.")),
        ("llava", lambda key: key.startswith("model.mm_projector.") and _has(keys, "model.layers.")),
        ("projector", lambda key: "mm_projector." in key or "multi_modal_projector." in key),
        ("llama", lambda key: key == "model.embed_tokens.weight"),
    )
    for layout, sign in signs:
        if any(sign(key) for key in keys):
            return layout
    has_vision = False
    has_text = False
    for key in keys:
        has_vision |= key.endswith("embeddings.class_embedding")
        has_text |= key.endswith("embeddings.token_embedding.weight")
    towers = {(True, True): "clip", (True, False): "clip-vision", (False, True): "clip-text"}
    return towers.get((has_vision, has_text))


def _has(keys, start: str) -> bool:
    return any(key.startswith((start, f"model.{start}")) for key in keys)


def refuse_next(source: Source) -> None:
    """Refuses LLaVA-NeXT and adapters by name."""
    kind = str(source.config.get("model_type", ""))
    tiles = source.config.get("image_grid_pinpoints")
    newline = next((key for key in source.tensors if key.endswith("image_newline")), None)
    if kind.startswith("llava_next") or tiles or newline:
        sign = newline or ("image_grid_pinpoints" if tiles else f"model_type {kind!r}")
        raise CheckpointError("a LLaVA-NeXT checkpoint", where=str(source.path), why=f"{sign}: {_NEXT}")
    adapter = next((key for key in source.tensors if ".lora_A." in key or ".lora_B." in key), None)
    if adapter is not None:
        raise CheckpointError(
            "an adapter, not a base model",
            where=str(source.path),
            why=f"it holds {adapter}",
            remedy="convert its base model first, then import the adapter into a run of that base",
        )


def _redirect(layout: str, role: str) -> str:
    """The flag that a misplaced source belongs to, as a sentence."""
    flags: dict[str, str] = {}
    # Reversed, so that the first flag that may bring a layout is the one that is recommended.
    for flag, layouts in reversed(ALLOWED.items()):
        flags |= dict.fromkeys(layouts, flag)
    if role == "checkpoint":
        return f"give it with {flags[layout]} beside a LLaVA or Vicuna checkpoint: it is only a part of a base model"
    return "give that folder as SRC" if layout in BASES else f"give it with {flags[layout]}"
