"""Cached outputs of the frozen towers for every record of a split.

The towers do not train, so their patch tokens and pooled embeddings are computed once and used by training epochs,
anchors, routing and evaluation. Patches are kept in memory up to a budget; above it they are recomputed batch by batch
from the same picture files by the same compiled program. Records that show the same picture share its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from hidecmoe_jax.core.layout import split_batch
from hidecmoe_jax.core.processes import to_host
from hidecmoe_jax.data.images import LIMITS, Limits, normalise
from hidecmoe_jax.data.loader import read_images
from hidecmoe_jax.data.prompts import routing_text
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.tokenizer import Tokenizer, text_ids
from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.models.llava import Model, text_features, vision_features

_vision = jax.jit(vision_features)
_text = jax.jit(text_features)


@dataclass(frozen=True)
class Features:
    """Tower outputs of N records that show up to I pictures each, M distinct ones in all.

    Attributes:
      model: the model, for patches that are recomputed.
      picture_NI: int32, row of `paths` for every picture of a record; -1 where it has fewer.
      paths: distinct picture files.
      patches_MPD: patch tokens of every file, or None where they exceed the budget.
      image_NE, text_ND: pooled features, float32; several pictures are averaged. Width 0 where the base lacks CLIP's
        projection or text tower.
      has_text_N: bool, False for records whose first question is a picture alone.
      truncated: number of routing texts that the text tower's context cut.
      batch: pictures in one run of the vision tower.
      limits: what pictures may be, for those that are decoded again.
    """

    model: Model
    picture_NI: np.ndarray
    paths: tuple[str, ...]
    patches_MPD: np.ndarray | None
    image_NE: np.ndarray
    text_ND: np.ndarray
    has_text_N: np.ndarray
    truncated: int
    batch: int
    limits: Limits = LIMITS

    def only(self, rows: np.ndarray) -> Features:
        """Returns the features of some of the records; the arrays of pictures are shared."""
        return replace(
            self,
            picture_NI=self.picture_NI[rows],
            image_NE=self.image_NE[rows],
            text_ND=self.text_ND[rows],
            has_text_N=self.has_text_N[rows],
        )

    def patches(self, rows: np.ndarray) -> np.ndarray | None:
        """Returns patch tokens [B, I, P, D] of records `rows` (-1 pads with zeros); None if no record has a picture."""
        if self.picture_NI.shape[1] == 0:
            return None
        is_record_B1 = rows[:, None] >= 0
        pictures_BI = np.where(is_record_B1, self.picture_NI[rows], -1)
        # Padding reads picture 0 and is set to zero below; every distinct picture is loaded once.
        readable_BI = np.maximum(pictures_BI, 0)
        wanted, position = np.unique(readable_BI, return_inverse=True)
        if self.patches_MPD is not None:
            patches = self.patches_MPD[wanted]
        else:
            paths = [self.paths[row] for row in wanted]
            patches, _ = _tower_outputs(self.model, paths, self.batch, keep=True, progress=iter, limits=self.limits)
        position_BI = position.reshape(pictures_BI.shape)
        patches_BIPD = patches[position_BI]
        is_real_BI = pictures_BI >= 0
        zero = np.zeros((), patches_BIPD.dtype)
        return np.where(is_real_BI[..., None, None], patches_BIPD, zero)

    def pooled(self, rows: np.ndarray) -> Pooled:
        """Returns pooled features of records `rows`; -1 gives a record with neither picture nor text."""
        is_real = rows >= 0
        is_picture_BI = self.picture_NI[rows] >= 0
        shows_any = is_picture_BI.any(axis=1)
        has_image = is_real & shows_any
        has_text = is_real & self.has_text_N[rows]
        return Pooled(self.image_NE[rows], has_image, self.text_ND[rows], has_text)


def _tower_outputs(
    model: Model, paths: Sequence[str], batch: int, *, keep: bool, progress, limits: Limits
) -> tuple[np.ndarray | None, np.ndarray]:
    """Patches [M, P, D] (None unless `keep`) and pooled embeddings [M, E] of picture files, in batches of one shape."""
    patches = []
    pooled = []
    for start in progress(range(0, len(paths), batch)):
        files = list(paths[start : start + batch])
        count = len(files)
        # The last batch is filled with repeats: one shape, one compiled program.
        filled = files + [files[-1]] * (batch - count)
        images = read_images(filled, model.config.image_size, fit=model.config.image_fit, limits=limits)
        pixels = split_batch(model.layout, normalise(images))
        patches_BPD, pooled_BE = _vision(model, pixels)
        if keep:
            patches.append(to_host(patches_BPD)[:count])
        pooled.append(to_host(pooled_BE)[:count])
    patches_MPD = None
    if keep:
        patches_MPD = np.concatenate(patches)
    return patches_MPD, np.concatenate(pooled)


def _texts(model: Model, tokenizer: Tokenizer, texts: Sequence[str], batch: int) -> tuple[np.ndarray, int]:
    """Pooled text states [N, D] of routing texts, and how many of them the tower's context cut."""
    if not model.config.has_text_tower:
        return np.zeros((len(texts), 0), np.float32), 0
    # Records of a task often share a question, so every distinct text runs through the tower once.
    distinct = sorted(set(texts))
    tower_tokenizer = tokenizer.text or tokenizer
    rows = []
    cut = set()
    for text in distinct:
        ids, _, lost = text_ids(tower_tokenizer, text, model.config.text_context)
        rows.append(ids)
        if lost:
            cut.add(text)
    states = []
    for start in range(0, len(rows), batch):
        ids = np.stack(rows[start : start + batch])
        missing = batch - len(ids)
        repeats = np.repeat(ids[-1:], missing, axis=0)
        padded = np.concatenate([ids, repeats])
        state, _ = _text(model, split_batch(model.layout, padded))
        states.append(to_host(state)[: len(ids)])
    state_of = dict(zip(distinct, np.concatenate(states), strict=True))
    text_ND = np.stack([state_of[text] for text in texts])
    truncated = sum(text in cut for text in texts)
    return text_ND, truncated


def extract(
    model: Model,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    *,
    batch: int = 64,
    budget_gib: float = 4.0,
    limits: Limits = LIMITS,
    progress=iter,
) -> Features:
    """Runs both towers over the records and returns their outputs.

    Args:
      budget_gib: patches are kept in memory up to this size and recomputed on demand above it.
      limits: what pictures may be; those that the records were read with.
      progress: wraps the iteration over batches (a progress bar), or `iter`.

    Raises:
      DataError: a picture is outside the limits, or was damaged since the records were read.
    """
    config = model.config
    paths, picture_NI = _pictures(records)
    # Counted as float32, the largest dtype that patches have.
    bytes_of_picture = config.patches * config.patch_width * 4
    bytes_of_patches = len(paths) * bytes_of_picture
    keep = bytes_of_patches / 2**30 <= budget_gib
    width = config.pooled_widths[0]
    image_NE = np.zeros((len(records), width), np.float32)
    patches = None
    if paths:
        patches, pooled_ME = _tower_outputs(model, paths, batch, keep=keep, progress=progress, limits=limits)
        image_NE = _mean_over_pictures(pooled_ME, picture_NI)
    texts = list(map(routing_text, records))
    text_ND, truncated = _texts(model, tokenizer, texts, batch)
    has_text = np.array(list(map(bool, texts)))
    return Features(model, picture_NI, paths, patches, image_NE, text_ND, has_text, truncated, batch, limits)


def _pictures(records: Sequence[Record]) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct picture files, in order of appearance, and their rows by record, int32 [N, I] (-1: none)."""
    row_of: dict[str, int] = {}
    for record in records:
        for path in record.images:
            row_of.setdefault(path, len(row_of))
    most = max(len(record.images) for record in records)
    picture_NI = np.full((len(records), most), -1, np.int32)
    for row, record in enumerate(records):
        for position, path in enumerate(record.images):
            picture_NI[row, position] = row_of[path]
    return tuple(row_of), picture_NI


def _mean_over_pictures(pooled_ME: np.ndarray, picture_NI: np.ndarray) -> np.ndarray:
    """Mean embedding of every record's pictures, float32 [N, E]; zero for a record without any."""
    is_real = picture_NI >= 0
    # Absent pictures (-1) take row 0, and count as zeros.
    rows_NI = np.maximum(picture_NI, 0)
    embedded_NIE = pooled_ME[rows_NI] * is_real[..., None]
    count = np.maximum(is_real.sum(axis=1), 1)
    mean_NE = embedded_NIE.sum(axis=1) / count[:, None]
    return mean_NE.astype(np.float32)
