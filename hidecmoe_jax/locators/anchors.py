"""HiDe's anchors and gate (arXiv 2503.12941, section 3): a task's mean CLIP features, and an input's cosine to them.

A task has two anchors: the mean CLIP embedding of its training pictures and the mean CLIP text feature of its
instructions. Sums are float32 and counts are integers; only the direction of the mean is used, which is that of the
sum. The gate is a softmax over the tasks of the mixed cosine similarities, per sample. The official code keeps bfloat16
running means per device and takes the maximum over the batch; `legacy` is that arithmetic, for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from hidecmoe_jax.experts.routing import masked_softmax

EPSILON = 1e-8
# Accelerators shorten float32 products by default, and the gate divides cosines by a temperature of 0.1.
_EXACT = jax.lax.Precision.HIGHEST


class Pooled(struct.PyTreeNode):
    """CLIP's pooled features of a batch, float32: projected image embedding, text state before projection.

    A sample without a picture (or without text) has False in `has_image_B` (`has_text_B`), whatever its row holds.
    """

    image_BE: Array
    has_image_B: Array
    text_BD: Array
    has_text_B: Array


class Anchors(struct.PyTreeNode):
    """Sums (float32) and counts (int32) per task; a task with count 0 has not been learned in that modality."""

    image_NE: Array
    image_count_N: Array
    text_ND: Array
    text_count_N: Array


class Scores(struct.PyTreeNode):
    """Per sample and task: gate weights, the mixed similarity they come from, and both cosines. Float32 [B, N]."""

    weight_BN: Array
    mixed_BN: Array
    image_BN: Array
    text_BN: Array


def no_anchors(tasks: int, image_width: int, text_width: int) -> Anchors:
    """Anchors of `tasks` tasks, none learned."""
    count = jnp.zeros((tasks,), jnp.int32)
    image = jnp.zeros((tasks, image_width))
    text = jnp.zeros((tasks, text_width))
    return Anchors(image, count, text, count)


def check_pooled(pooled: Pooled, anchors: Anchors) -> None:
    """Raises AssertionError, while tracing, where pooled features do not fit the anchors."""
    batch = pooled.has_image_B.shape[0]
    masks = [pooled.has_image_B, pooled.has_text_B]
    chex.assert_shape(masks, (batch,))
    chex.assert_type(masks, bool)
    image_width = anchors.image_NE.shape[1]
    text_width = anchors.text_ND.shape[1]
    chex.assert_shape(pooled.image_BE, (batch, image_width), custom_message="pictures must have the anchors' width")
    chex.assert_shape(pooled.text_BD, (batch, text_width), custom_message="texts must have the anchors' width")


def accumulate(anchors: Anchors, task: Array | int, pooled: Pooled, valid_B: Array) -> Anchors:
    """Adds a batch to one task's anchors, all devices' shards included. Rows not `valid_B` are padding."""
    check_pooled(pooled, anchors)
    with_image_B = pooled.has_image_B & valid_B
    with_text_B = pooled.has_text_B & valid_B
    image_sum_E = _masked_sum(pooled.image_BE, with_image_B)
    text_sum_D = _masked_sum(pooled.text_BD, with_text_B)
    image_NE = anchors.image_NE.at[task].add(image_sum_E)
    one_if_image_B = with_image_B.astype(jnp.int32)
    images = jnp.sum(one_if_image_B)
    image_count_N = anchors.image_count_N.at[task].add(images)
    text_ND = anchors.text_ND.at[task].add(text_sum_D)
    one_if_text_B = with_text_B.astype(jnp.int32)
    texts = jnp.sum(one_if_text_B)
    text_count_N = anchors.text_count_N.at[task].add(texts)
    return Anchors(image_NE, image_count_N, text_ND, text_count_N)


def _masked_sum(rows_BD: Array, mask_B: Array) -> Array:
    mask_B1 = mask_B[:, None]
    rows_BD = rows_BD.astype(jnp.float32)
    masked_BD = jnp.where(mask_B1, rows_BD, 0.0)
    return jnp.sum(masked_BD, axis=0)


def _cosine(x_BD: Array, y_ND: Array) -> Array:
    x_BD = x_BD.astype(jnp.float32)
    x_B = jnp.linalg.norm(x_BD, axis=-1)
    y_N = jnp.linalg.norm(y_ND, axis=-1)
    x_B1 = x_B[:, None]
    lengths_BN = x_B1 * y_N[None]
    product_BN = jnp.matmul(x_BD, y_ND.T, precision=_EXACT)
    lengths_BN = jnp.maximum(lengths_BN, EPSILON)
    return product_BN / lengths_BN


def gate(
    anchors: Anchors,
    pooled: Pooled,
    learned_N: Array,
    *,
    mixing: float = 0.5,
    temperature: float = 0.1,
    legacy: bool = False,
) -> Scores:
    """Weights of every task for every sample: softmax((mixing * cos image + (1 - mixing) * cos text) / temperature).

    A sample (or a task's anchor) that lacks one modality is scored on the other alone; with neither, all learned tasks
    weigh the same. Tasks outside `learned_N` (bool) get weight 0, unless `legacy`: then every slot is in the softmax,
    and each cosine is the maximum over the batch, as in the official code.
    """
    check_pooled(pooled, anchors)
    chex.assert_shape(learned_N, anchors.image_count_N.shape)
    image_BN = _cosine(pooled.image_BE, anchors.image_NE)
    text_BN = _cosine(pooled.text_BD, anchors.text_ND)
    if legacy:
        best_image_1N = jnp.max(image_BN, axis=0, keepdims=True)
        image_BN = jnp.broadcast_to(best_image_1N, image_BN.shape)
        best_text_1N = jnp.max(text_BN, axis=0, keepdims=True)
        text_BN = jnp.broadcast_to(best_text_1N, text_BN.shape)
        image_part_BN = mixing * image_BN
        text_part_BN = (1 - mixing) * text_BN
        mixed_BN = image_part_BN + text_part_BN
        logits_BN = mixed_BN / temperature
        weight_BN = jax.nn.softmax(logits_BN, axis=-1)
    else:
        mixed_BN = _mixed(anchors, pooled, image_BN, text_BN, mixing)
        logits_BN = mixed_BN / temperature
        weight_BN = masked_softmax(logits_BN, learned_N[None])
    return Scores(weight_BN, mixed_BN, image_BN, text_BN)


def _mixed(anchors: Anchors, pooled: Pooled, image_BN: Array, text_BN: Array, mixing: float) -> Array:
    """Weighted mean of the two cosines [B, N]; one counts 0 where the sample or the anchor lacks that modality."""
    has_image_B1 = pooled.has_image_B[:, None]
    has_image_N = anchors.image_count_N > 0
    has_image_BN = has_image_B1 & has_image_N[None]
    has_text_B1 = pooled.has_text_B[:, None]
    has_text_N = anchors.text_count_N > 0
    has_text_BN = has_text_B1 & has_text_N[None]
    image_weight_BN = has_image_BN.astype(jnp.float32) * mixing
    text_weight_BN = has_text_BN.astype(jnp.float32) * (1 - mixing)
    total_BN = image_weight_BN + text_weight_BN
    image_part_BN = image_weight_BN * image_BN
    text_part_BN = text_weight_BN * text_BN
    weighted_BN = image_part_BN + text_part_BN
    # At least EPSILON: a sample with neither modality has weight 0 for every task.
    return weighted_BN / jnp.maximum(total_BN, EPSILON)


def anchors_of(memory: dict[str, Array]) -> Anchors:
    """The anchors among a gate's or a locator's arrays."""
    return Anchors(memory["image_NE"], memory["image_count_N"], memory["text_ND"], memory["text_count_N"])


@dataclass(frozen=True)
class ClipAnchors:
    """HiDe's anchors as a locator: a task's score is the mixed cosine. Its features are `Pooled`, not a state.

    Attributes:
      mixing: weight of the image cosine; the rest is text.
      shared_leaves: arrays of the memory that belong to all tasks together: none.
      fewest: samples that `fit` takes at least.
    """

    kind: ClassVar[str] = "anchors"
    shared_leaves: ClassVar[tuple[str, ...]] = ()
    fewest: ClassVar[int] = 1
    mixing: float = 0.5

    def blank(self, capacity: int, width: tuple[int, int]) -> dict[str, Array]:
        """Memory for the anchors of `capacity` tasks; `width` are those of the image and the text features."""
        anchors = no_anchors(capacity, *width)
        return dict(vars(anchors))

    def fit(self, memory: dict[str, Array], task: int, pooled: Pooled, *, key: Array) -> dict[str, Array]:
        """Adds samples to a task's anchors; nothing is random."""
        anchors = anchors_of(memory)
        valid_B = jnp.ones(pooled.has_text_B.shape, bool)
        anchors = accumulate(anchors, task, pooled, valid_B)
        return memory | vars(anchors)

    def scores(self, memory: dict[str, Array], pooled: Pooled, learned_N: Array) -> Array:
        """Mixed cosines, float32 [B, N]; -inf where not `learned_N` (bool)."""
        anchors = anchors_of(memory)
        scores = gate(anchors, pooled, learned_N, mixing=self.mixing)
        learned_1N = learned_N[None]
        return jnp.where(learned_1N, scores.mixed_BN, -jnp.inf)

    def typical_scores(self, memory: dict[str, Array], pooled: Pooled, scores_BN: Array) -> Array:
        """Scores that thresholds of unknown inputs are fitted on: the ordinary ones."""
        del memory, pooled
        return scores_BN

    def flops(self, stored: int, *, width: int, tasks: int) -> int:
        """Operations of scoring one query: a multiply and an add for each of the `stored` numbers."""
        del width, tasks
        return 2 * stored

    def size(self, width: tuple[int, int]) -> int:
        """Numbers stored per task."""
        return sum(width)
