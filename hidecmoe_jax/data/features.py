"""Outputs of the frozen towers, computed once for every record of a split.

The towers never train, so their patch tokens and pooled embeddings are facts about the data: training epochs, anchors,
routing and evaluation all read them from here. Patches stay in memory while they fit a stated budget; above it they are
recomputed batch by batch from the same picture files by the same program. Two records with one picture share its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from hidecmoe_jax.data.images import normalise
from hidecmoe_jax.data.loader import read_images
from hidecmoe_jax.data.prompts import routing_text
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.tokenizer import Tokenizer, text_ids
from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.models.llava import Model, text_features, vision_features

_see = jax.jit(vision_features)
_read = jax.jit(text_features)


@dataclass(frozen=True)
class Features:
    """Tower outputs of N records that show up to I pictures each.

    Attributes:
      picture_NI: int32, row of `paths` for every picture of a record; -1 where it has fewer.
      paths: distinct picture files.
      image_NE, text_ND: pooled features, float32; several pictures are averaged.
      truncated: routing texts that the text tower's context cut.
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

    def only(self, rows: np.ndarray) -> Features:
        """Features of some of the records."""
        kept = {name: getattr(self, name)[rows] for name in ("picture_NI", "image_NE", "text_ND", "has_text_N")}
        return replace(self, **kept)

    def patches(self, rows: np.ndarray) -> np.ndarray | None:
        """Patch tokens [B, I, P, D] of records `rows` (-1 pads with zeros); None where no record has a picture."""
        if self.picture_NI.shape[1] == 0:
            return None
        pictures = np.where(rows[:, None] >= 0, self.picture_NI[rows], -1)
        wanted, place = np.unique(np.maximum(pictures, 0), return_inverse=True)
        if self.patches_MPD is not None:
            source = self.patches_MPD[wanted]
        else:
            source, _ = _look(self.model, [self.paths[row] for row in wanted], self.batch, keep=True, progress=iter)
        seen = source[place.reshape(pictures.shape)]
        return np.where((pictures >= 0)[..., None, None], seen, np.zeros((), seen.dtype))

    def pooled(self, rows: np.ndarray) -> Pooled:
        """Pooled features of records `rows`; -1 gives a record with neither picture nor text."""
        real = rows >= 0
        return Pooled(
            self.image_NE[rows],
            real & (self.picture_NI[rows] >= 0).any(axis=1),
            self.text_ND[rows],
            real & self.has_text_N[rows],
        )


def _look(model: Model, paths: Sequence[str], batch: int, *, keep: bool, progress):
    """Patches [M, P, D] (or None) and pooled embeddings [M, E] of picture files, in batches of one shape."""
    patches, pooled = [], []
    for start in progress(range(0, len(paths), batch)):
        part = list(paths[start : start + batch])
        pixels = normalise(read_images(part + [part[-1]] * (batch - len(part)), model.config.image_size))
        seen, embedded = _see(model, pixels)
        if keep:
            patches.append(np.asarray(seen)[: len(part)])
        pooled.append(np.asarray(embedded)[: len(part)])
    return (np.concatenate(patches) if keep else None), np.concatenate(pooled)


def _texts(model: Model, tokenizer: Tokenizer, texts: Sequence[str], batch: int) -> tuple[np.ndarray, int]:
    """Pooled text states [N, D] of routing texts, and how many were cut to the tower's context."""
    distinct, reader = sorted(set(texts)), tokenizer.text or tokenizer
    rows = [text_ids(reader, text, model.config.text_context) for text in distinct]
    cut = {text for text, (_, _, lost) in zip(distinct, rows, strict=True) if lost}
    states = []
    for start in range(0, len(rows), batch):
        ids = np.stack([row[0] for row in rows[start : start + batch]])
        padded = np.concatenate([ids, np.repeat(ids[-1:], batch - len(ids), axis=0)])
        states.append(np.asarray(_read(model, padded)[0])[: len(ids)])
    state_of = dict(zip(distinct, np.concatenate(states), strict=True))
    return np.stack([state_of[text] for text in texts]), sum(text in cut for text in texts)


def extract(
    model: Model,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    *,
    batch: int = 64,
    budget_gib: float = 4.0,
    progress=iter,
) -> Features:
    """Runs both towers over the records.

    Args:
      budget_gib: patches are kept in memory up to this size and recomputed on demand above it.
      progress: wraps the iteration over batches (a progress bar), or `iter`.
    """
    paths = tuple(dict.fromkeys(path for record in records for path in record.images))
    row_of = {path: row for row, path in enumerate(paths)}
    most = max(len(record.images) for record in records)
    picture_NI = np.full((len(records), most), -1, np.int32)
    for row, record in enumerate(records):
        picture_NI[row, : len(record.images)] = [row_of[path] for path in record.images]
    config = model.config
    keep = len(paths) * config.patches * config.patch_width * 4 / 2**30 <= budget_gib
    image_NE = np.zeros((len(records), config.pooled_widths[0]), np.float32)
    patches = None
    if paths:
        patches, pooled_ME = _look(model, paths, batch, keep=keep, progress=progress)
        shown = picture_NI >= 0
        total = (pooled_ME[np.maximum(picture_NI, 0)] * shown[..., None]).sum(axis=1)
        image_NE = (total / np.maximum(shown.sum(axis=1), 1)[:, None]).astype(np.float32)
    texts = [routing_text(record) for record in records]
    text_ND, truncated = _texts(model, tokenizer, texts, batch)
    has_text = np.array([bool(text) for text in texts])
    return Features(model, picture_NI, paths, patches, image_NE, text_ND, has_text, truncated, batch)
