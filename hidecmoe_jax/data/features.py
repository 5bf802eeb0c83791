"""Cached outputs of the frozen towers for every record of a split.

The towers do not train, so their patch tokens and pooled embeddings are computed once and used by training epochs,
anchors, routing and evaluation. Patches are kept in memory up to a budget; above it they come batch by batch from the
store on disk, or are recomputed from the same picture files by the same compiled program. Records that show the same
picture share its row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.layout import split_batch
from hidecmoe_jax.core.processes import to_host
from hidecmoe_jax.data.ahead import DEPTH
from hidecmoe_jax.data.feature_store import FeatureStore
from hidecmoe_jax.data.images import LIMITS, Limits
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.prompts import routing_text
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.tokenizer import Tokenizer, text_ids
from hidecmoe_jax.data.vision import VisionReader, keep_on_disk
from hidecmoe_jax.locators.anchors import Pooled
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Model, text_features

_text = jax.jit(text_features)


@dataclass(frozen=True)
class Features:
    """Tower outputs of N records that show up to I pictures each, M distinct ones in all.

    Attributes:
      reader: reads pictures again, for patches that are not in memory.
      picture_NI: int32, row of `paths` for every picture of a record; -1 where it has fewer.
      paths: distinct picture files.
      ids: of the first record that shows each file, for errors.
      patches_MPD: patch tokens of every file, or None where they exceed the budget.
      image_NE, text_ND: pooled features, float32; several pictures are averaged. Width 0 where the base lacks CLIP's
        projection or text tower.
      has_text_N: bool, False for records whose first question is a picture alone.
      truncated: number of routing texts that the text tower's context cut.
    """

    reader: VisionReader
    picture_NI: np.ndarray
    paths: tuple[str, ...]
    ids: tuple[str, ...]
    patches_MPD: np.ndarray | None
    image_NE: np.ndarray
    text_ND: np.ndarray
    has_text_N: np.ndarray
    truncated: int

    def only(self, rows: np.ndarray) -> Features:
        """Returns the features of some of the records; the arrays of pictures are shared."""
        return replace(
            self,
            picture_NI=self.picture_NI[rows],
            image_NE=self.image_NE[rows],
            text_ND=self.text_ND[rows],
            has_text_N=self.has_text_N[rows],
        )

    @property
    def depth(self) -> int:
        """How many batches another thread may make ahead (`data.ahead`): none where each runs the tower on several
        devices, for all of them must start their programs in one order."""
        runs_tower = bool(self.paths) and self.patches_MPD is None
        return 0 if runs_tower and self.reader.model.layout is not None else DEPTH

    def patches(self, rows: np.ndarray) -> np.ndarray | None:
        """Returns patch tokens [B, I, P, D] of records `rows` (-1 pads with zeros); None if no record has a picture."""
        if self.picture_NI.shape[1] == 0:
            return None
        is_record_B1 = rows[:, None] >= 0
        pictures_BI = np.where(is_record_B1, self.picture_NI[rows], -1)
        is_real_BI = pictures_BI >= 0
        picture_K = pictures_BI[is_real_BI]
        if self.patches_MPD is not None:
            patches_KPD = self.patches_MPD[picture_K]
        else:
            # Every distinct picture is read once, and none for padding.
            wanted, place_K = np.unique(picture_K, return_inverse=True)
            paths = [self.paths[row] for row in wanted]
            with _naming(paths, [self.ids[row] for row in wanted]):
                patches_UPD, _ = self.reader.outputs(paths, keep=True)
            patches_KPD = patches_UPD[place_K]
        patches_BIPD = np.zeros((*pictures_BI.shape, *patches_KPD.shape[1:]), patches_KPD.dtype)
        patches_BIPD[is_real_BI] = patches_KPD
        return patches_BIPD

    def pooled(self, rows: np.ndarray) -> Pooled:
        """Returns pooled features of records `rows`; -1 gives a record with neither picture nor text."""
        is_real = rows >= 0
        is_picture_BI = self.picture_NI[rows] >= 0
        shows_any = is_picture_BI.any(axis=1)
        has_image = is_real & shows_any
        has_text = is_real & self.has_text_N[rows]
        return Pooled(self.image_NE[rows], has_image, self.text_ND[rows], has_text)


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
    store: FeatureStore | None = None,
    pictures: Pictures | None = None,
    progress=iter,
) -> Features:
    """Runs both towers over the records and returns their outputs.

    Args:
      budget_gib: patches are kept in memory up to this size and recomputed on demand above it.
      limits: what pictures may be; those that the records were read with.
      store: entries on disk, read and written as its `keep` says.
      pictures: what has read the records' pictures; by default they are decoded here.
      progress: wraps the iteration over batches (a progress bar), or `iter`.

    Raises:
      DataError: a picture is outside the limits, or was damaged or changed since the records were read; with the
        record's id.
    """
    config = model.config
    paths, ids, picture_NI = _pictures(records)
    reader = VisionReader(model, batch, limits, store, pictures=pictures)
    width = config.pooled_widths[0]
    image_NE = np.zeros((len(records), width), np.float32)
    patches = None
    if paths:
        in_memory = len(paths) * reader.patch_bytes / 2**30 <= budget_gib
        reader = replace(reader, keep=keep_on_disk(store, reader, in_memory=in_memory))
        with _naming(paths, ids):
            patches, pooled_ME = reader.outputs(paths, keep=in_memory, progress=progress)
        image_NE = _mean_over_pictures(pooled_ME, picture_NI)
    texts = list(map(routing_text, records))
    text_ND, truncated = _texts(model, tokenizer, texts, batch)
    has_text = np.array(list(map(bool, texts)))
    return Features(reader, picture_NI, paths, ids, patches, image_NE, text_ND, has_text, truncated)


def cuts_routing_text(config: LlavaConfig, tokenizer: Tokenizer, record: Record) -> bool:
    """Whether the text tower of a base, by which gates compare questions, reads only the beginning of this one's."""
    if not config.has_text_tower:
        return False
    _, _, lost = text_ids(tokenizer.text or tokenizer, routing_text(record), config.text_context)
    return lost > 0


def with_texts(
    features: Features, model: Model, tokenizer: Tokenizer, records: Sequence[Record], *, batch: int = 64
) -> Features:
    """The features with the routing texts of reworded records, which show the same pictures in the same order."""
    texts = list(map(routing_text, records))
    text_ND, truncated = _texts(model, tokenizer, texts, batch)
    has_text = np.array(list(map(bool, texts)))
    return replace(features, text_ND=text_ND, has_text_N=has_text, truncated=truncated)


@contextlib.contextmanager
def _naming(paths: Sequence[str], ids: Sequence[str]) -> Iterator[None]:
    """Adds to an error about a picture the id of the record that shows it."""
    try:
        yield
    except DataError as error:
        if error.where not in paths:
            raise
        record = ids[paths.index(error.where)]
        raise DataError(
            error.what, where=f"{error.where} (record {record})", why=error.why, remedy=error.remedy
        ) from error


def _pictures(records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """The distinct picture files, in order of appearance, the first record of each, and their rows by record, int32
    [N, I] (-1: none)."""
    row_of: dict[str, int] = {}
    ids: list[str] = []
    for record in records:
        for path in record.images:
            if path not in row_of:
                row_of[path] = len(row_of)
                ids.append(record.id)
    most = max(len(record.images) for record in records)
    picture_NI = np.full((len(records), most), -1, np.int32)
    for row, record in enumerate(records):
        for position, path in enumerate(record.images):
            picture_NI[row, position] = row_of[path]
    return tuple(row_of), tuple(ids), picture_NI


def _mean_over_pictures(pooled_ME: np.ndarray, picture_NI: np.ndarray) -> np.ndarray:
    """Mean embedding of every record's pictures, float32 [N, E]; zero for a record without any."""
    is_real = picture_NI >= 0
    # Absent pictures (-1) take row 0, and count as zeros.
    rows_NI = np.maximum(picture_NI, 0)
    embedded_NIE = pooled_ME[rows_NI] * is_real[..., None]
    count = np.maximum(is_real.sum(axis=1), 1)
    mean_NE = embedded_NIE.sum(axis=1) / count[:, None]
    return mean_NE.astype(np.float32)
