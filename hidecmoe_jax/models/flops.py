"""Floating-point operations of a query: closed formulas of the model's shapes, whole numbers, no compiled program.

A multiply and an add count two; comparisons, exponentials and the like count nothing, as in the compiler's own count,
which these formulas meet within one percent (a test compares them). A query is one prompt up to the logits of its
first answer token, every layer at all of its positions; programs compute most of the last layer at the last one alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hidecmoe_jax.experts.bank import multiplied_slots
from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.models.llama import site_shapes
from hidecmoe_jax.models.voices import ATTENTION_SITES

# Operations beside the matrix products, per number they act on. The exact GELU costs much: erf is a polynomial.
SOFTMAX = 6
RMS_NORM = 3
LAYER_NORM = 7
ROTARY = 3
SWIGLU = 5
ACTIVATION = {"quick_gelu": 5, "gelu": 66}


@dataclass(frozen=True)
class Experts:
    """Shapes of one voice.

    Attributes:
      layers, slots, rank: of its bank; empty slots are computed like others, for shapes never change.
      sites: {name: (input width, output width)}.
      routed: whether a token router weights the slots; `routed_at_sites` whether every site has one of its own.
      most: slots that a sample uses at most; None where that is not known.
    """

    layers: int
    slots: int
    rank: int
    sites: Mapping[str, tuple[int, int]]
    routed: bool
    routed_at_sites: bool = False
    most: int | None = None


def product(rows: int, width: int, features: int) -> int:
    """A matrix product [rows, width] x [width, features]."""
    return 2 * rows * width * features


def attention(tokens: int, heads: int, head_width: int) -> int:
    """Two T x T products and the softmax of the scores."""
    products = 2 * heads * product(tokens, tokens, head_width)
    softmax = SOFTMAX * heads * tokens**2
    return products + softmax


def clip_layer(config: VisionConfig | TextConfig, tokens: int) -> int:
    """One block of a CLIP tower; its linears have biases."""
    d = config.width
    f = config.hidden
    attention_linears = 4 * product(tokens, d, d)
    feed_forward = product(tokens, d, f) + product(tokens, f, d)
    linears = attention_linears + feed_forward
    # Query, key, value, output and the second feed-forward linear are D wide, the first F.
    biases = tokens * (5 * d + f)
    # Two norms and two residual sums of D numbers.
    norms = (2 * LAYER_NORM + 2) * d
    activation = ACTIVATION[config.activation] * f
    elementwise = tokens * (norms + activation)
    head_width = d // config.heads
    scores = attention(tokens, config.heads, head_width)
    return linears + biases + scores + elementwise


def vision(config: VisionConfig, layers: int, *, pooled: bool) -> int:
    """One picture through the stem and `layers` blocks; with `pooled` also its projected class token."""
    tokens = config.patches + 1
    d = config.width
    numbers_of_patch = 3 * config.patch_size**2
    patches = product(config.patches, numbers_of_patch, d)
    # A position is added to every token, then the norm.
    position_and_norm = tokens * (1 + LAYER_NORM) * d
    stem = patches + position_and_norm
    blocks = layers * clip_layer(config, tokens)
    ending = 0
    if pooled:
        ending = product(1, d, config.projection) + LAYER_NORM * d
    return stem + blocks + ending


def text(config: TextConfig) -> int:
    """One text, always as long as the context, up to the end-of-text state."""
    positions = config.context * config.width
    blocks = config.layers * clip_layer(config, config.context)
    return positions + blocks


def projector(config: LlavaConfig) -> int:
    """The patches of one picture."""
    patches = config.patches
    d = config.width
    first = product(patches, config.patch_width, d)
    second = product(patches, d, d)
    # Two biases, and the exact GELU between the two linears.
    per_number = 2 + ACTIVATION["gelu"]
    elementwise = per_number * patches * d
    return first + second + elementwise


def decoder_layer(config: DecoderConfig, tokens: int) -> int:
    """One block on a whole prompt, without experts."""
    shapes = site_shapes(config)
    linears = sum(product(tokens, *shape) for shape in shapes.values())
    _, queries = shapes["q_proj"]
    _, keys = shapes["k_proj"]
    # Two norms and two residual sums, as in a CLIP block; values are not rotated.
    norms = (2 * RMS_NORM + 2) * config.width
    rotary = ROTARY * (queries + keys)
    swiglu = SWIGLU * config.hidden
    elementwise = tokens * (norms + rotary + swiglu)
    scores = attention(tokens, config.heads, config.head_width)
    return linears + scores + elementwise


def experts(config: DecoderConfig, tokens: int, added: Experts) -> int:
    """Two skinny products at every site, and a router's product where the slots of a token are selected."""
    sites = 0
    site_routers = 0
    for d, f in added.sites.values():
        slots = multiplied_slots((1, tokens, d), added.slots, added.rank, f, added.most)
        width = slots * added.rank
        down = product(tokens, d, width)
        up = product(tokens, width, f)
        # The gains multiply the inner product, and the result joins the linear's.
        elementwise = tokens * (width + f)
        sites += down + up + elementwise
        site_routers += product(tokens, d, added.slots)
    routers = site_routers if added.routed_at_sites else 0
    if added.routed:
        # The router runs before attention and before the feed-forward part, where that part has experts.
        names = set(added.sites)
        in_attention = bool(names & ATTENTION_SITES)
        in_feed_forward = bool(names - ATTENTION_SITES)
        parts = in_attention + in_feed_forward
        routers += parts * product(tokens, config.width, added.slots)
    return added.layers * (sites + routers)


def prefill(config: LlavaConfig, tokens: int, *, pictures: int, layers: int | None = None) -> int:
    """Projector and decoder on a prompt, without the vision tower; `layers` of the decoder, by default all."""
    count = layers
    # A prefill that stops early reads the state before the final norm.
    final_norm = 0
    if layers is None:
        count = config.layers
        final_norm = RMS_NORM * tokens * config.width
    projected = pictures * projector(config)
    blocks = count * decoder_layer(config.decoder, tokens)
    return projected + blocks + final_norm


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
        states = tower_layers + 1
        tower_layers = config.feature_layer % states
    picture = vision(config.vision, tower_layers, pooled=clip)
    text_tower = text(config.text) if clip and config.text is not None else 0
    voices = sum(experts(config.decoder, tokens, voice) for voice in added)
    base = prefill(config, tokens, pictures=pictures)
    # Of one token: only the last one's logits are needed.
    head = product(1, config.width, config.vocabulary)
    towers = pictures * picture + text_tower
    return towers + base + voices + head
