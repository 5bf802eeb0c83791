"""Floating-point operations of a query: closed formulas of the model's shapes, whole numbers, no compiled program.

A multiply and an add count two; comparisons, exponentials and the like count nothing, as in the compiler's own count,
which these formulas meet within one percent (a test compares them). A query is one prompt up to the logits of its
first answer token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.models.llama import site_shapes

# Operations beside the matrix products, per number they act on. The exact GELU costs much: erf is a polynomial.
SOFTMAX = 6
RMS_NORM = 3
LAYER_NORM = 7
ROTARY = 3
SWIGLU = 5
ACTIVATION = {"quick_gelu": 5, "gelu": 66}
ATTENTION_SITES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})


@dataclass(frozen=True)
class Experts:
    """Shapes of one voice.

    Attributes:
      layers, slots, rank: of its bank; empty slots are computed like others, for shapes never change.
      sites: {name: (input width, output width)}.
      routed: whether a token router weights the slots; `routed_at_sites` whether every site has one of its own.
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
    d = config.width
    f = config.hidden
    linears = 4 * product(tokens, d, d) + product(tokens, d, f) + product(tokens, f, d)
    # Query, key, value, output and the second feed-forward linear are D wide, the first F.
    biases = tokens * (5 * d + f)
    # Two norms and two residual sums of D numbers.
    norms = (2 * LAYER_NORM + 2) * d
    elementwise = tokens * (norms + ACTIVATION[config.activation] * f)
    scores = attention(tokens, config.heads, d // config.heads)
    return linears + biases + scores + elementwise


def vision(config: VisionConfig, layers: int, *, pooled: bool) -> int:
    """One picture through the stem and `layers` blocks; with `pooled` also its projected class token."""
    tokens = config.patches + 1
    d = config.width
    patches = product(config.patches, 3 * config.patch_size**2, d)
    # A position is added to every token, then the norm.
    stem = patches + tokens * (1 + LAYER_NORM) * d
    ending = 0
    if pooled:
        ending = product(1, d, config.projection) + LAYER_NORM * d
    return stem + layers * clip_layer(config, tokens) + ending


def text(config: TextConfig) -> int:
    """One text, always as long as the context, up to the end-of-text state."""
    positions = config.context * config.width
    return positions + config.layers * clip_layer(config, config.context)


def projector(config: LlavaConfig) -> int:
    """The patches of one picture."""
    patches = config.patches
    d = config.width
    linears = product(patches, config.patch_width, d) + product(patches, d, d)
    # Two biases, and the exact GELU between the two linears.
    elementwise = (2 + ACTIVATION["gelu"]) * patches * d
    return linears + elementwise


def decoder_layer(config: DecoderConfig, tokens: int) -> int:
    """One block on a whole prompt, without experts."""
    shapes = site_shapes(config)
    linears = sum(product(tokens, *shape) for shape in shapes.values())
    _, queries = shapes["q_proj"]
    _, keys = shapes["k_proj"]
    # Two norms and two residual sums, as in a CLIP block; values are not rotated.
    norms = (2 * RMS_NORM + 2) * config.width
    elementwise = tokens * (norms + ROTARY * (queries + keys) + SWIGLU * config.hidden)
    scores = attention(tokens, config.heads, config.head_width)
    return linears + scores + elementwise


def experts(config: DecoderConfig, tokens: int, added: Experts) -> int:
    """Two skinny products at every site, and a router's product where the slots of a token are selected."""
    width = added.slots * added.rank
    sites = 0
    site_routers = 0
    for d, f in added.sites.values():
        # The gains multiply the inner product, and the result joins the linear's.
        sites += product(tokens, d, width) + product(tokens, width, f) + tokens * (width + f)
        site_routers += product(tokens, d, added.slots)
    routers = site_routers if added.routed_at_sites else 0
    if added.routed:
        # The router runs before attention and before the feed-forward part, where that part has experts.
        in_attention = bool(ATTENTION_SITES & set(added.sites))
        in_feed_forward = bool(set(added.sites) - ATTENTION_SITES)
        routers += (in_attention + in_feed_forward) * product(tokens, config.width, added.slots)
    return added.layers * (sites + routers)


def prefill(config: LlavaConfig, tokens: int, *, pictures: int, layers: int | None = None) -> int:
    """Projector and decoder on a prompt, without the vision tower; `layers` of the decoder, by default all."""
    count = config.layers if layers is None else layers
    # A prefill that stops early reads the state before the final norm.
    final_norm = RMS_NORM * tokens * config.width if layers is None else 0
    return pictures * projector(config) + count * decoder_layer(config.decoder, tokens) + final_norm


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
    tower_layers = config.vision.layers
    if not clip:
        tower_layers = config.feature_layer % (config.vision.layers + 1)
    picture = vision(config.vision, tower_layers, pooled=clip)
    text_tower = text(config.text) if clip else 0
    voices = sum(experts(config.decoder, tokens, voice) for voice in added)
    base = prefill(config, tokens, pictures=pictures)
    # Of one token: only the last one's logits are needed.
    head = product(1, config.width, config.vocabulary)
    return pictures * picture + text_tower + base + voices + head
