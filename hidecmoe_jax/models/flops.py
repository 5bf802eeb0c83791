"""What a query costs in floating-point operations: closed formulas of the model's shapes, whole numbers, no program.

A multiply and an add count two; comparisons, exponentials and the like count nothing, as in the compiler's own count,
which these formulas meet within one percent (a test compares them). A query is one prompt up to the logits of its
first answer token. Everything here is plain arithmetic, so a report can state it at no cost and a reader can check it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.models.llama import site_shapes

# Operations beside the matrix products, for every number they act on. An exact GELU is dear: erf is a polynomial.
SOFTMAX, RMS_NORM, LAYER_NORM, ROTARY, SWIGLU = 6, 3, 7, 3, 5
ACTIVATION = {"quick_gelu": 5, "gelu": 66}
ATTENTION_SITES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})


@dataclass(frozen=True)
class Experts:
    """What one voice adds to a forward pass.

    Attributes:
      layers, slots, rank: of its bank; empty slots are computed like others, for shapes never change.
      sites: {name: (input width, output width)}.
      routed: whether a token router weighs the slots; `routed_at_sites` whether every site has one of its own.
    """

    layers: int
    slots: int
    rank: int
    sites: Mapping[str, tuple[int, int]]
    routed: bool
    routed_at_sites: bool = False


def product(rows: int, width: int, features: int) -> int:
    """A matrix product [rows, width] x [width, features]."""
    return 2 * rows * width * features


def attention(tokens: int, heads: int, head_width: int) -> int:
    """Two T x T products and the softmax of the scores."""
    return 2 * heads * product(tokens, tokens, head_width) + SOFTMAX * heads * tokens**2


def clip_layer(config: VisionConfig | TextConfig, tokens: int) -> int:
    """One block of a CLIP tower; its linears have biases."""
    d, f = config.width, config.hidden
    linears = 4 * product(tokens, d, d) + product(tokens, d, f) + product(tokens, f, d) + tokens * (5 * d + f)
    beside = tokens * ((2 * LAYER_NORM + 2) * d + ACTIVATION[config.activation] * f)
    return linears + attention(tokens, config.heads, d // config.heads) + beside


def vision(config: VisionConfig, layers: int, *, pooled: bool) -> int:
    """One picture through the stem and `layers` blocks; with `pooled` also its projected class token."""
    tokens, d = config.patches + 1, config.width
    stem = product(config.patches, 3 * config.patch_size**2, d) + tokens * (1 + LAYER_NORM) * d
    ending = product(1, d, config.projection) + LAYER_NORM * d if pooled else 0
    return stem + layers * clip_layer(config, tokens) + ending


def text(config: TextConfig) -> int:
    """One text, always as long as the context, up to the end-of-text state."""
    return config.context * config.width + config.layers * clip_layer(config, config.context)


def projector(config: LlavaConfig) -> int:
    """The patches of one picture."""
    patches, d = config.vision.patches, config.decoder.width
    return product(patches, config.vision.width, d) + product(patches, d, d) + (2 + ACTIVATION["gelu"]) * patches * d


def decoder_layer(config: DecoderConfig, tokens: int) -> int:
    """One block on a whole prompt, without experts."""
    shapes = site_shapes(config)
    linears = sum(product(tokens, *shape) for shape in shapes.values())
    rotated = shapes["q_proj"][1] + shapes["k_proj"][1]
    beside = tokens * ((2 * RMS_NORM + 2) * config.width + ROTARY * rotated + SWIGLU * config.hidden)
    return linears + attention(tokens, config.heads, config.head_width) + beside


def experts(config: DecoderConfig, tokens: int, added: Experts) -> int:
    """Two skinny products at every site, and a router's product where the slots of a token are chosen."""
    width = added.slots * added.rank
    sites = sum(product(tokens, d, width) + product(tokens, width, f) for d, f in added.sites.values())
    beside = sum(tokens * (width + f) for _, f in added.sites.values())
    # A layer asks its router before attention and before the feed-forward part, where an expert stands there.
    asked = bool(ATTENTION_SITES & set(added.sites)) + bool(set(added.sites) - ATTENTION_SITES)
    gates = asked * product(tokens, config.width, added.slots) if added.routed else 0
    if added.routed_at_sites:
        gates += sum(product(tokens, d, added.slots) for d, _ in added.sites.values())
    return added.layers * (sites + beside + gates)


def prefill(config: LlavaConfig, tokens: int, *, pictures: int, layers: int | None = None) -> int:
    """Projector and decoder on a prompt whose pictures the tower has seen; `layers` of the decoder, by default all."""
    count = config.decoder.layers if layers is None else layers
    ending = RMS_NORM * tokens * config.decoder.width if layers is None else 0
    return pictures * projector(config) + count * decoder_layer(config.decoder, tokens) + ending


def forward(
    config: LlavaConfig,
    tokens: int,
    *,
    pictures: int = 1,
    clip: bool = False,
    added: Sequence[Experts] = (),
) -> int:
    """One prompt of `tokens` (image tokens included) up to the logits of the next one.

    Args:
      clip: whether CLIP's pooled features of pictures and text are needed as well; LLaVA itself reads an inner layer
        of the vision tower and no text tower.
      added: the experts that are mixed per sample; those folded into the weights cost nothing.
    """
    whole = config.vision.layers
    seen = vision(config.vision, whole if clip else config.feature_layer % (whole + 1), pooled=clip)
    head = product(1, config.decoder.width, config.decoder.vocabulary)
    read = text(config.text) if clip else 0
    spoken = sum(experts(config.decoder, tokens, one) for one in added)
    return pictures * seen + read + prefill(config, tokens, pictures=pictures) + spoken + head
