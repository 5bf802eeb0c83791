"""HiDe's anchors and gate (arXiv 2503.12941, section 3): where in CLIP space a task lives, and how near an input
is.

An anchor is the mean CLIP embedding of a task's training pictures, another the mean CLIP text feature of its
instructions. Sums are float32 and counts are integers; means are formed when read and only their direction is used.
The gate is a softmax over the tasks of the mixed cosine similarities, per sample. The official code keeps bfloat16
running means per device and takes the maximum over the batch; `legacy` brings back that arithmetic for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

EPSILON = 1e-8


@struct.dataclass
class Pooled:
    """CLIP's pooled features of a batch, float32: projected image embedding, text state before projection.

    A sample without a picture (or without text) has False in `has_image_B` (`has_text_B`), whatever stands in its row.
    """

    image_BE: Array
    has_image_B: Array
    text_BD: Array
    has_text_B: Array


@struct.dataclass
class Anchors:
    """Sums (float32) and counts (int32) per task; a task with count 0 has not been learned in that modality."""

    image_NE: Array
    image_count_N: Array
    text_ND: Array
    text_count_N: Array


@struct.dataclass
class Scores:
    """Per sample and task: gate weights, the mixed similarity they come from, and both cosines. Float32 [B, N]."""

    weight_BN: Array
    mixed_BN: Array
    image_BN: Array
    text_BN: Array


def no_anchors(tasks: int, image_width: int, text_width: int) -> Anchors:
    """Room for `tasks` anchors, none learned."""
    count = jnp.zeros((tasks,), jnp.int32)
    return Anchors(jnp.zeros((tasks, image_width)), count, jnp.zeros((tasks, text_width)), count)


def accumulate(anchors: Anchors, task: Array | int, pooled: Pooled, valid_B: Array) -> Anchors:
    """Adds a batch to one task's anchors, all devices' shards included. Rows not `valid_B` are padding."""
    with_image, with_text = pooled.has_image_B & valid_B, pooled.has_text_B & valid_B
    image = jnp.sum(jnp.where(with_image[:, None], pooled.image_BE.astype(jnp.float32), 0.0), axis=0)
    text = jnp.sum(jnp.where(with_text[:, None], pooled.text_BD.astype(jnp.float32), 0.0), axis=0)
    return Anchors(
        anchors.image_NE.at[task].add(image),
        anchors.image_count_N.at[task].add(jnp.sum(with_image.astype(jnp.int32))),
        anchors.text_ND.at[task].add(text),
        anchors.text_count_N.at[task].add(jnp.sum(with_text.astype(jnp.int32))),
    )


def _cosine(x_BD: Array, y_ND: Array) -> Array:
    x = x_BD.astype(jnp.float32)
    lengths = jnp.linalg.norm(x, axis=-1)[:, None] * jnp.linalg.norm(y_ND, axis=-1)[None]
    # Accelerators shorten float32 products unless told not to, and the gate divides them by a temperature of 0.1.
    return jnp.matmul(x, y_ND.T, precision=jax.lax.Precision.HIGHEST) / jnp.maximum(lengths, EPSILON)


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
    image_BN, text_BN = _cosine(pooled.image_BE, anchors.image_NE), _cosine(pooled.text_BD, anchors.text_ND)
    if legacy:
        image_BN = jnp.broadcast_to(jnp.max(image_BN, axis=0, keepdims=True), image_BN.shape)
        text_BN = jnp.broadcast_to(jnp.max(text_BN, axis=0, keepdims=True), text_BN.shape)
        mixed = mixing * image_BN + (1 - mixing) * text_BN
        return Scores(jax.nn.softmax(mixed / temperature, axis=-1), mixed, image_BN, text_BN)
    see = (pooled.has_image_B[:, None] & (anchors.image_count_N > 0)[None]).astype(jnp.float32) * mixing
    read = (pooled.has_text_B[:, None] & (anchors.text_count_N > 0)[None]).astype(jnp.float32) * (1 - mixing)
    mixed = (see * image_BN + read * text_BN) / jnp.maximum(see + read, EPSILON)
    logits = jnp.where(learned_N[None], mixed / temperature, -jnp.inf)
    top = jnp.max(jnp.where(learned_N[None], logits, -1e30), axis=-1, keepdims=True)
    power = jnp.where(learned_N[None], jnp.exp(jnp.where(learned_N[None], logits, top) - top), 0.0)
    weight = power / jnp.maximum(jnp.sum(power, axis=-1, keepdims=True), EPSILON)
    return Scores(weight, mixed, image_BN, text_BN)


def anchors_of(memory: dict[str, Array]) -> Anchors:
    """The anchors among a gate's or a locator's arrays."""
    return Anchors(*(memory[name] for name in ("image_NE", "image_count_N", "text_ND", "text_count_N")))


@dataclass(frozen=True)
class ClipAnchors:
    """HiDe's anchors as a locator: what a task scores is the mixed cosine. Its features are `Pooled`, not a state.

    Attributes:
      mixing: weight of the image cosine; the rest is text.
    """

    kind: ClassVar[str] = "anchors"
    mixing: float = 0.5

    def blank(self, capacity: int, width: tuple[int, int]) -> dict[str, Array]:
        """Room for the anchors of `capacity` tasks; `width` are those of the image and the text features."""
        return dict(vars(no_anchors(capacity, *width)))

    def fit(self, memory: dict[str, Array], task: int, pooled: Pooled, *, key: Array) -> dict[str, Array]:
        """Adds samples to a task's anchors; nothing is random."""
        everyone_B = jnp.ones(pooled.has_text_B.shape, bool)
        return memory | vars(accumulate(anchors_of(memory), task, pooled, everyone_B))

    def scores(self, memory: dict[str, Array], pooled: Pooled, learned_N: Array) -> Array:
        """Mixed cosines, float32 [B, N]; -inf where not `learned_N` (bool)."""
        found = gate(anchors_of(memory), pooled, learned_N, mixing=self.mixing)
        return jnp.where(learned_N[None], found.mixed_BN, -jnp.inf)

    def size(self, width: tuple[int, int]) -> int:
        """Numbers stored per task."""
        return sum(width)
